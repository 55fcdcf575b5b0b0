"""The published block: every variant is found out and computed as it is; what only looks like it is left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import msformer_fast as mf
from tests import published_networks as published
from tests.harness.differences import assert_same
from tests.published_networks import EfficientAttention, EfficientTransformerBlock, MixFFN, MixFFN_skip
from tests.swin_blocks import results

pytestmark = pytest.mark.usefixtures("drop_ins_compute")


def random_parameters(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.double()


def outcome(module: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Results and gradients, of every output where there are several."""
    several = module(*inputs)
    if isinstance(several, Tensor):
        return results(module, *inputs)
    joined = Joined(module)
    return results(joined, *inputs)


class Joined(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Tensor:
        return torch.cat([value.flatten() for value in self.module(*inputs)])


def swapped(module: nn.Module, **options: Any) -> tuple[nn.Module, mf.Swaps]:
    """The drop-in of a module, still sharing its parameters."""
    swaps = mf.accelerate(nn.Sequential(module), **options)
    assert len(swaps) == 1, str(swaps)
    return swaps.swapped[0].replacement, swaps


def check(module: nn.Module, *inputs: Any, **options: Any) -> nn.Module:
    random_parameters(module)
    drop_in, _ = swapped(module, **options)
    assert_same(outcome(drop_in, inputs), outcome(module, inputs), 1e-10)
    ours, theirs = drop_in(*inputs), module(*inputs)
    for mine, yours in zip(*((out,) if isinstance(out, Tensor) else out for out in (ours, theirs)), strict=True):
        assert mine.shape == yours.shape and mine.is_contiguous() and mine.dtype == yours.dtype
    return drop_in


def image(channels: int) -> Tensor:
    return torch.randn(2, channels, 7, 6, dtype=torch.float64)


def tokens(channels: int) -> tuple[Tensor, int, int]:
    return torch.randn(2, 35, channels, dtype=torch.float64), 7, 5


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("context", ["none", "last", "first", "all"])
def test_attentions(context: str, residual: bool) -> None:
    for heads, keys, values in ((1, 10, 10), (3, 6, 9)):
        drop_in = check(EfficientAttention(10, keys, values, heads, residual, context), image(10))
        form = drop_in.form
        assert (form.num_heads, form.residual) == (heads, residual)
        assert form.context == context or (heads == 1 and {form.context, context} == {"first", "last"})


def test_attention_without_bias_on_other_layouts() -> None:
    check(EfficientAttention(10, bias=False), image(10).transpose(2, 3))
    check(EfficientAttention(10), image(10).contiguous(memory_format=torch.channels_last))

    class Tokens(EfficientAttention):
        def forward(self, x: Tensor, H: int, W: int) -> Tensor:
            return super().forward(x.mT.unflatten(2, (H, W))).flatten(2).mT.contiguous()

    check(Tokens(6, head_count=2), *tokens(6))


@pytest.mark.parametrize("name", ["head_count", "heads", "num_heads"])
def test_names_of_the_number_of_heads(name: str) -> None:
    class Renamed(EfficientAttention):
        def __getattr__(self, wanted: str) -> Any:
            return self.__dict__[name] if wanted == "head_count" else super().__getattr__(wanted)

    module = Renamed(12, head_count=3)
    module.__dict__[name] = module.__dict__.pop("head_count")
    assert check(module, image(12)).form.num_heads == 3


@pytest.mark.parametrize("used", ["norm1", "norm2", "norm3"])
def test_the_norm_that_is_used(used: str) -> None:
    class Copy(MixFFN_skip):
        pass

    Copy.used = used
    form = check(Copy(6, 20), *tokens(6)).form
    assert form.norm == used and form.skip


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_feed_forwards(skip: bool, norm: bool, residual: bool) -> None:
    """Also ones on maps, with the depthwise convolution as a part of its own."""

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 10), nn.Linear(10, 6, bias=False)
            self.dwconv = nn.Conv2d(10, 10, 3, padding="same", groups=10, bias=False)
            if norm:
                self.norm = nn.LayerNorm(10, eps=1e-3)

        def forward(self, x: Tensor) -> Tensor:
            wide = self.fc1(x.permute(0, 2, 3, 1))
            y = self.dwconv(wide.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            y = y + wide if skip else y
            y = self.fc2(F.gelu(self.norm(y) if norm else y)).permute(0, 3, 1, 2)
            return (y + x if residual else y).contiguous()

    form = check(FeedForward(), image(6)).form
    assert (form.skip, form.norm, form.residual) == (skip, "norm" if norm else None, residual)


@pytest.mark.parametrize("mlp", ["mix", "mix_skip"])
@pytest.mark.parametrize(("heads", "context"), [(1, True), (2, True), (2, False)])
def test_blocks(heads: int, context: bool, mlp: str) -> None:
    form = check(EfficientTransformerBlock(8, heads, mlp, context), *tokens(8)).form
    assert form.attention.num_heads == heads and form.context == ("last" if context else "none")
    assert form.feed_forward.norm == ("norm1" if mlp == "mix_skip" else None)


def test_a_block_whose_norms_differ() -> None:
    """In their epsilon, which the op has one of; without affine parameters; on a map."""

    class OnMaps(EfficientTransformerBlock):
        def forward(self, x: Tensor) -> Tensor:
            y, _ = super().forward(x.flatten(2).mT, *x.shape[2:])
            return y.mT.unflatten(2, x.shape[2:]).contiguous()

    block = OnMaps(8)
    block.norm1 = nn.LayerNorm(8, eps=0.1, elementwise_affine=False)
    block.norm2 = nn.LayerNorm(8, eps=0.02, bias=False)
    check(block, image(8))


def test_through_the_kernels(strict_kernels: None) -> None:
    pytest.importorskip("triton")
    block = random_parameters(EfficientTransformerBlock(8, 2))
    drop_in, _ = swapped(block, backend="triton")
    inputs = tokens(8)
    with torch.no_grad():
        for ours, theirs in zip(drop_in(*inputs), block(*inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("call", ["by name", "mixed", "by place"])
def test_arguments_by_name(call: str) -> None:
    block = random_parameters(EfficientTransformerBlock(8, context=False))
    x, H, W = tokens(8)
    want, (drop_in, _) = block(x, H, W), swapped(block)
    got = {
        "by name": lambda: drop_in(x=x, W=W, H=H),
        "mixed": lambda: drop_in(x, W=W, H=H),
        "by place": lambda: drop_in(x, H, W),
    }[call]()
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_sizes_that_do_not_fit() -> None:
    drop_in, _ = swapped(EfficientTransformerBlock(8))
    with pytest.raises(mf.InputError, match=r"x must be .* with H = 5 and W = 5, got \(1, 24, 8\)"):
        drop_in(torch.randn(1, 24, 8), 5, 5)
    drop_in, swaps = swapped(EfficientAttention(8))
    for module in (drop_in, swaps.swapped[0].original):  # the module's own error
        with pytest.raises(ValueError, match="not enough values to unpack"):
            module(torch.randn(24, 8))


@pytest.mark.parametrize("mlp", ["mix", "mix_skip", "mlp"])
def test_the_authors_block(mlp: str) -> None:
    """A map and its size in, a map out; whatever stands behind the second norm."""
    block = random_parameters(published.AuthorsBlock(8, 6, 10, token_mlp=mlp))
    drop_in, _ = swapped(block)
    inputs = torch.randn(2, 8, 7, 6, dtype=torch.float64), 7, 6
    assert_same(outcome(drop_in, inputs), outcome(block, inputs), 1e-10)
    assert (drop_in.form.feed_forward is None) == (mlp == "mlp")
    ours, theirs = drop_in(*inputs), block(*inputs)
    assert [value.stride() for value in ours] == [value.stride() for value in theirs]


class Optional(EfficientAttention):
    """Arguments that most callers leave alone."""

    def forward(self, x: Tensor, mask: Tensor | None = None, gain: float = 1.0, return_context: bool = False) -> Any:
        y = super().forward(x if mask is None else x * mask) * gain
        return (y, y.mean()) if return_context else y


def test_optional_arguments() -> None:
    """At their defaults the drop-in computes, however they are given; else the module's own code runs."""
    module = random_parameters(Optional(6))
    drop_in, _ = swapped(module)
    x, computed = image(6), []
    drop_in.on_map = lambda x, compute=drop_in.on_map: computed.append(x) or compute(x)
    usual: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x,), {}),
        ((x, None), {}),
        ((), {"x": x, "mask": None, "return_context": False}),
        ((x, None, 1.0), {"return_context": False}),
    ]
    for inputs, named in usual:
        torch.testing.assert_close(drop_in(*inputs, **named), module(*inputs, **named), rtol=1e-10, atol=1e-12)
    assert len(computed) == len(usual)
    others: list[dict[str, Any]] = [{"mask": torch.rand_like(x)}, {"gain": 2.0}, {"return_context": True}]
    for named in others:
        for ours, theirs in zip(drop_in(x, **named), module(x, **named), strict=True):
            assert torch.equal(ours, theirs)
    with pytest.raises(TypeError, match="unexpected keyword argument 'maks'"):
        drop_in(x, maks=None)
    assert len(computed) == len(usual)


@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block.attn, "head_count", 1),
        lambda block: setattr(block.mlp.act, "approximate", "tanh"),
        lambda block: setattr(block.mlp, "used", "norm2"),
        lambda block: setattr(block.mlp.dwconv.dwconv, "padding_mode", "circular"),
        lambda block: setattr(block.attn, "keys", nn.Conv2d(8, 8, 1, bias=False).double()),
        lambda block: block.gains.__setitem__(0, 3.0),
        lambda block: setattr(block.norm2, "eps", 0.1),
        lambda block: block.mlp.register_module("act", nn.SiLU()),
    ],
)
def test_changes_after_the_swap(change: Any) -> None:
    """What the proof relied on is watched: the module's own code runs where it is no longer so."""

    class Block(EfficientTransformerBlock):
        def __init__(self) -> None:
            super().__init__(8, 2, context=False)
            self.gains = [1.0, 2.0]

        def forward(self, x: Tensor, H: int, W: int) -> Any:
            return super().forward(x, H, W) * self.gains[0]

    block = random_parameters(Block())
    drop_in, _ = swapped(block)
    inputs = tokens(8)
    assert drop_in.as_built() and copy.deepcopy(drop_in).as_built()
    before = drop_in(*inputs)
    change(drop_in)
    after = drop_in(*inputs)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, block(*inputs), rtol=0, atol=0)


def test_names_of_other_libraries() -> None:
    """The two linear maps as HuggingFace names them, as 1x1 convolutions, and a GELU of one's own."""

    class Gelu(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    class Segformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense1, self.dwconv = nn.Linear(6, 12), published.DepthwiseConv(12)
            self.intermediate_act_fn, self.dense2, self.dropout = Gelu(), nn.Linear(12, 6), nn.Dropout(0.0)

        def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
            wide = self.intermediate_act_fn(self.dwconv(self.dense1(hidden_states), height, width))
            return self.dropout(self.dense2(self.dropout(wide)))

    check(Segformer(), *tokens(6))

    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 6, 1)
            self.dwconv, self.act = nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.act(self.dwconv(self.fc1(x))))

    check(Convolutions(), image(6))

    class OneSize(MixFFN):
        def forward(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:
            return super().forward(x, *feat_size)

    x, rows, columns = tokens(6)
    check(OneSize(6, 12), x, (rows, columns))


def test_dropout_runs_the_modules_own_code() -> None:
    """In training; in evaluation the op."""
    module = random_parameters(MixFFN(6, 12, drop=0.5))
    drop_in, _ = swapped(module)
    inputs = tokens(6)
    torch.manual_seed(5)
    want = module(*inputs)
    torch.manual_seed(5)
    assert torch.equal(drop_in(*inputs), want)
    assert not torch.equal(drop_in(*inputs), want)
    assert_same(results(drop_in.eval(), *inputs), results(module.eval(), *inputs), 1e-10)


def test_a_part_that_is_looked_at_or_replaced() -> None:
    """The module's own code runs then, so that nothing goes unnoticed."""
    block = random_parameters(EfficientTransformerBlock(8, context=False))
    drop_in, _ = swapped(block)
    inputs, seen = tokens(8), []
    handle = block.mlp.dwconv.dwconv.register_forward_hook(lambda module, _, out: seen.append(out.shape))
    torch.testing.assert_close(drop_in(*inputs), block(*inputs), rtol=0, atol=0)
    assert seen == [(2, 32, 7, 5)] * 2
    handle.remove()
    drop_in(*inputs)
    assert len(seen) == 2

    class Adapted(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 3

    drop_in.attn.keys = Adapted(8, 8, 1).double()
    torch.testing.assert_close(drop_in(*inputs), block(*inputs), rtol=0, atol=0)
    assert block.attn.keys is drop_in.attn.keys
    torch.nn.utils.parametrizations.weight_norm(block.mlp.fc1)
    torch.testing.assert_close(drop_in(*inputs), block(*inputs), rtol=0, atol=0)


def test_a_result_that_a_module_keeps() -> None:
    """With its graph, which a deep copy refuses."""
    module = EfficientAttention(8)
    module.last = module(torch.randn(1, 8, 3, 3))
    swapped(module)


def test_a_block_around_a_look_alike() -> None:
    """The block stays with its reason, and its other part is swapped."""
    block = EfficientTransformerBlock(8, context=False)
    block.attn.keys = nn.Conv2d(8, 8, 1, groups=2)
    swaps = mf.accelerate(nn.Sequential(block))
    assert [swap.names for swap in swaps.swapped] == [("0.mlp",)]
    why = "its keys is no plain 1x1 Conv2d"
    assert [left.reason for left in swaps.left] == [f"its attn, a EfficientAttention, has no drop-in: {why}", why]

    class Doubled(EfficientTransformerBlock):
        def forward(self, x: Tensor, H: int, W: int) -> Any:
            return super().forward(x * 2, H, W)

    swaps = mf.accelerate(nn.Sequential(Doubled(8)))
    assert [swap.names for swap in swaps.swapped] == [("0.attn",), ("0.mlp",)]
    assert [left.kind for left in swaps.left] == ["EfficientTransformerBlock"]
