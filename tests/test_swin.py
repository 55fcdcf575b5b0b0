"""The drop-ins for Swin blocks: equal to timm's and MONAI's own in every size, shift, option and dtype."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from msformer_fast import InputError
from msformer_fast.nn import MonaiSwinBlock, TimmSwinBlock
from tests.harness.error_rule import assert_no_worse
from tests.swin_blocks import (
    DROP_INS,
    assert_equal,
    batch,
    block_of,
    errors_in,
    errors_under_autocast,
    results,
    timm_swin,
)

pytestmark = pytest.mark.usefixtures("drop_ins_compute")

#: map, window, shift
SIZES = {
    "divides": ((8, 12), (4, 4), (0, 0)),
    "divides, shifted": ((8, 12), (4, 4), (2, 2)),
    "does not divide": ((10, 7), (4, 4), (0, 0)),
    "does not divide, shifted": ((10, 7), (4, 4), (2, 2)),
    "shifted on one axis": ((10, 7), (4, 4), (0, 2)),
    "unequal sides": ((9, 10), (4, 3), (1, 2)),
    "one axis below the window": ((3, 10), (4, 4), (2, 2)),
    "the other below it": ((10, 3), (5, 4), (2, 2)),
    "both below the window": ((3, 2), (4, 5), (2, 1)),
    "one axis as long as the window": ((4, 9), (4, 4), (2, 2)),
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("library", DROP_INS)
def test_equal_to_the_library(library: str, case: str, backend: str) -> None:
    size, window, shift = SIZES[case]
    block, extra = block_of(library, size, window, shift)
    drop_in, x = DROP_INS[library].of(block, backend=backend), batch(size)
    assert_equal(results(drop_in, x, *extra), results(block, x, *extra))


@pytest.mark.parametrize("case", ["does not divide, shifted", "one axis below the window"])
@pytest.mark.parametrize("library", DROP_INS)
def test_equal_through_the_kernels(library: str, case: str, strict_kernels: None) -> None:
    pytest.importorskip("triton")
    size, window, shift = SIZES[case]
    block, extra = block_of(library, size, window, shift)
    drop_in, x = DROP_INS[library].of(block, backend="triton"), batch(size)
    with torch.no_grad():
        block.attn.qkv.weight.mul_(4)  # masked scores leak
    assert_equal(results(drop_in, x, *extra), results(block, x, *extra))


@pytest.mark.parametrize("options", [{"qkv_bias": False}, {"always_partition": True}, {"dynamic_mask": True}], ids=str)
@pytest.mark.parametrize("size", [(10, 7), (3, 10)])
def test_timms_options(options: dict[str, bool], size: tuple[int, int]) -> None:
    """``always_partition`` keeps window and shift on a map below the window."""
    block, _ = block_of("timm", size, (4, 4), (2, 2), **options)
    if "always_partition" in options:
        assert block.window_size == (4, 4) and block.shift_size == (2, 2)
    x = batch(size)
    assert_equal(results(TimmSwinBlock.of(block), x), results(block, x))
    if "dynamic_mask" in options:  # other sizes than it was made for, below the window too
        for other in ((6, 13), (2, 3)):
            x = batch(other)
            assert_equal(results(TimmSwinBlock.of(block), x), results(block, x))


@pytest.mark.parametrize(
    "options", [{"qkv_bias": False}, {"use_checkpoint": True}, {"use_flash_attention": True}], ids=str
)
def test_monais_options(options: dict[str, bool]) -> None:
    block, extra = block_of("monai", (10, 7), (4, 4), (2, 2), **options)
    x = batch((10, 7))
    assert_equal(results(MonaiSwinBlock.of(block), x, *extra), results(block, x, *extra))
    with torch.no_grad():
        torch.testing.assert_close(MonaiSwinBlock.of(block)(x, *extra), block(x, *extra), rtol=1e-11, atol=1e-11)


def test_heads_of_another_width() -> None:
    block, _ = block_of("timm", (10, 7), (4, 4), (2, 2))
    block.attn = timm_swin().WindowAttention(12, 3, head_dim=6, window_size=(4, 4)).double()
    x = batch((10, 7))
    assert_equal(results(TimmSwinBlock.of(block), x), results(block, x))


class Adapted(torch.nn.Linear):
    """A projection that was adapted; a token of zeros becomes something else than its bias."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.cos(super().forward(x))


@pytest.mark.parametrize("library", DROP_INS)
def test_another_scale_and_projection(library: str) -> None:
    block, extra = block_of(library, (10, 7), (4, 4), (2, 2))
    block.attn.scale = 0.9
    block.attn.qkv = Adapted(12, 36).double()
    drop_in, x = DROP_INS[library].of(block), batch((10, 7))
    assert_equal(results(drop_in, x, *extra), results(block, x, *extra))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("library", DROP_INS)
def test_large_scores_leak_across_the_seam(library: str, backend: str) -> None:
    """-100 does not hide what stands far above it; the libraries' result is not that of a mask of minus infinity."""
    size = (10, 7)
    block, extra = block_of(library, size, (4, 4), (2, 2))
    with torch.no_grad():
        block.attn.qkv.weight.mul_(16)
    x = batch(size)
    theirs = results(block, x, *extra)
    assert_equal(results(DROP_INS[library].of(block, backend=backend), x, *extra), theirs, 1e-10)
    hiding, masks = copy.deepcopy(block), [mask.masked_fill(mask < 0, -math.inf) for mask in extra]
    if library == "timm":
        hiding.attn_mask = hiding.attn_mask.masked_fill(hiding.attn_mask < 0, -math.inf)
    assert (results(hiding, x, *masks)["output"] - theirs["output"]).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["divides, shifted", "does not divide, shifted", "both below the window"])
@pytest.mark.parametrize("library", DROP_INS)
def test_float32_errs_no_more(library: str, case: str) -> None:
    size, window, shift = SIZES[case]

    def draw():
        block, extra = block_of(library, size, window, shift)
        return errors_in(torch.float32, block, DROP_INS[library].of, batch(size), *extra)

    assert_no_worse(draw)


@pytest.mark.parametrize("library", DROP_INS)
def test_autocast(library: str) -> None:
    """Errors as the block's own under autocast, gradients in the parameters' dtype."""
    size = (10, 7)

    def draw():
        block, extra = block_of(library, size, (4, 4), (2, 2))
        return errors_under_autocast(block, DROP_INS[library].of, batch(size), *extra)

    assert_no_worse(draw)


@pytest.mark.parametrize("library", DROP_INS)
def test_compiles_without_a_break(library: str) -> None:
    block, extra = block_of(library, (10, 7), (4, 4), (2, 2))
    drop_in, x = DROP_INS[library].of(block), batch((10, 7))
    compiled = torch.compile(drop_in, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, *extra), block(x, *extra), rtol=1e-11, atol=1e-11)


@pytest.mark.gpu
@pytest.mark.parametrize("library", DROP_INS)
def test_on_a_device(library: str) -> None:
    """As the library there; MONAI's mask is read once a size."""
    size = (10, 7)

    def draw():
        block, extra = block_of(library, size, (4, 4), (2, 2))
        extra = tuple(mask.cuda() for mask in extra)
        return errors_in(torch.float32, block.cuda(), DROP_INS[library].of, batch(size).cuda(), *extra)

    assert_no_worse(draw)
    if library == "monai":
        block, (mask,) = block_of("monai", size, (4, 4), (2, 2))
        drop_in, x, mask = MonaiSwinBlock.of(block.float().cuda()), batch(size).float().cuda(), mask.cuda()
        with pytest.raises(InputError, match="mask_matrix"):
            drop_in(x, mask * 2)
        want = drop_in(x, mask)
        torch.testing.assert_close(drop_in(x, mask * 2), want, rtol=0, atol=0)
