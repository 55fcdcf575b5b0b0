"""Swin blocks that were copied from repository to repository, torchvision's, and what looks like them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import msformer_fast as mf
from msformer_fast.nn import MicrosoftSwinBlock, TorchvisionShiftedWindowAttention
from tests import published_networks as published
from tests.swin_blocks import assert_equal, results, timm_swin

pytestmark = pytest.mark.usefixtures("drop_ins_compute")


def microsoft(window: int = 4, shift: int = 2, size: tuple[int, int] = (8, 12), **options: Any) -> Any:
    block = published.SwinTransformerBlock(12, size, 3, window, shift)
    if options:
        block.attn = published.WindowAttention(12, window, 3, **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    return block.double()


def tokens(count: int = 96) -> Tensor:
    return torch.randn(2, count, 12, dtype=torch.float64)


@pytest.mark.parametrize(
    ("window", "shift", "size"), [(4, 2, (8, 12)), (4, 0, (8, 12)), (3, 1, (12, 9)), (4, 0, (4, 4))]
)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_microsofts_block(window: int, shift: int, size: tuple[int, int], backend: str | None) -> None:
    block, x = microsoft(window, shift, size), tokens(size[0] * size[1])
    model = nn.Sequential(block)
    swaps = mf.accelerate(model, backend=backend)
    assert [swap.kind for swap in swaps.swapped] == ["SwinTransformerBlock of Microsoft"], str(swaps)
    assert isinstance(model[0], MicrosoftSwinBlock) and model[0].backend == backend
    assert_equal(results(model[0], x), results(block, x))
    assert_equal(results(copy.deepcopy(model)[0], x), results(block, x))
    assert model[0].state_dict().keys() == block.state_dict().keys()


def test_microsofts_own_code_runs() -> None:
    """For a map of another size, hooks inside the attention, attention dropout, and what was changed since."""
    block = microsoft()
    drop_in, x, seen = MicrosoftSwinBlock.of(block), tokens(), []
    with pytest.raises(Exception, match="unflatten") as theirs, torch.no_grad():
        block(tokens(90))
    with pytest.raises(type(theirs.value), match="unflatten"):
        drop_in(tokens(90))
    handle = block.attn.softmax.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(drop_in(x), block(x)) and seen == [1, 1]
    handle.remove()
    block.mlp.register_forward_hook(lambda *_: seen.append(2))  # which is called in any case
    drop_in(x)
    assert seen == [1, 1, 2]
    drop_in.shift_size = 1
    block.shift_size = 1
    assert torch.equal(drop_in(x), block(x))
    dropping = microsoft(drop=0.5)
    torch.manual_seed(1)
    want = dropping(x)
    torch.manual_seed(1)
    assert torch.equal(MicrosoftSwinBlock.of(dropping)(x), want)


def other_mask() -> nn.Module:
    block = microsoft()
    block.attn_mask[0, 0, 3] -= 1.0
    return block


def logit_scale() -> nn.Module:
    block = microsoft()
    block.attn.logit_scale = nn.Parameter(torch.ones(3, 1, 1))
    return block


def doubled() -> nn.Module:
    class SwinTransformerBlock(published.SwinTransformerBlock):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    return SwinTransformerBlock(12, (8, 12), 3, 4, 2)


def named(name: str) -> nn.Module:
    return type(name, (nn.Module,), {})()


LEFT = {
    "another mask": (other_mask, "SwinTransformerBlock of Microsoft", "it must have Swin's attn_mask"),
    "a logit scale": (logit_scale, "SwinTransformerBlock of Microsoft", "its attention is made of"),
    "twice its result": (doubled, "SwinTransformerBlock of Microsoft", "its result differs by"),
    "Swin V2": (lambda: named("SwinTransformerV2Block"), "without a drop-in", "its scores are cosines"),
    "SegFormer": (lambda: named("SegformerEfficientSelfAttention"), "without a drop-in", "its keys and values are of"),
    "three axes": (lambda: named("WindowAttention3D"), "without a drop-in", "its windows are of three axes"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_looks_alike(case: str) -> None:
    make, kind, reason = LEFT[case]
    swaps = mf.accelerate(nn.Sequential(make()))
    assert len(swaps) == 0
    (left,) = swaps.left
    assert left.kind == kind and left.reason.startswith(reason)


def torchvision_attention(window: tuple[int, int] = (4, 3), shift: tuple[int, int] = (2, 1), **options: Any) -> Any:
    timm_swin()  # skips without torchvision
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    attention = swin.ShiftedWindowAttention(12, [*window], [*shift], 3, **options)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    return attention.double()


@pytest.mark.parametrize("size", [(8, 9), (10, 7), (3, 8), (4, 3), (9, 2)])
@pytest.mark.parametrize("shift", [(2, 1), (0, 0)])
def test_torchvisions_attention(size: tuple[int, int], shift: tuple[int, int]) -> None:
    attention, x = torchvision_attention(shift=shift), torch.randn(2, *size, 12, dtype=torch.float64)
    model = nn.Sequential(attention)
    swaps = mf.accelerate(model)
    assert [swap.kind for swap in swaps.swapped] == ["ShiftedWindowAttention of torchvision"], str(swaps)
    assert_equal(results(model[0], x), results(attention, x))


def test_torchvisions_own_code_runs() -> None:
    attention, x = torchvision_attention(attention_dropout=0.5, dropout=0.1), torch.randn(2, 8, 9, 12).double()
    drop_in = TorchvisionShiftedWindowAttention(attention)
    torch.manual_seed(1)
    want = attention(x)
    torch.manual_seed(1)
    assert torch.equal(drop_in(x), want)
    torch.testing.assert_close(drop_in.eval()(x), attention.eval()(x), rtol=1e-10, atol=1e-10)
    drop_in.shift_size[0] = attention.shift_size[0] = 0
    assert torch.equal(drop_in(x), attention(x))
    with pytest.raises(mf.InputError, match="the class Linear may compute something else"):
        TorchvisionShiftedWindowAttention(nn.Linear(3, 3))


def test_a_network_of_torchvision() -> None:
    timm_swin()
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    model = swin.SwinTransformer([4, 4], 24, [2, 2], [3, 6], [7, 7], num_classes=5).double()
    x = torch.randn(2, 3, 60, 52, dtype=torch.float64)
    torch.manual_seed(3)
    theirs = results(model, x)
    assert len(mf.accelerate(model)) == 4
    torch.manual_seed(3)
    assert_equal(results(model, x), theirs, 1e-9)
