"""MONAI's Swin blocks on volumes: the drop-in equal to the library's own code, block by block and in Swin UNETR."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msformer_fast import InputError, accelerate
from msformer_fast.nn import MonaiSwinBlock, MonaiSwinLayer
from tests.harness.error_rule import Errors, assert_no_worse, errors_of
from tests.swin_blocks import (
    assert_equal,
    batch,
    block_of,
    errors_in,
    errors_under_autocast,
    monai_swin,
    results,
    with_large_biases,
)

pytestmark = pytest.mark.usefixtures("drop_ins_compute")

#: volume, window, shift
SIZES = {
    "divides": ((4, 6, 4), (2, 3, 4), (0, 0, 0)),
    "divides, shifted": ((4, 6, 8), (2, 3, 4), (1, 1, 2)),
    "does not divide": ((5, 4, 3), (3, 2, 2), (0, 0, 0)),
    "does not divide, shifted": ((5, 4, 7), (3, 3, 4), (1, 1, 2)),
    "shifted on one axis": ((5, 4, 3), (2, 3, 2), (0, 2, 0)),
    "one axis below the window": ((2, 5, 6), (3, 3, 3), (1, 1, 1)),
    "all below the window": ((3, 2, 4), (4, 4, 5), (2, 2, 2)),
}
ODD = "does not divide, shifted"


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", SIZES)
def test_equal_to_monai(case: str, backend: str) -> None:
    size, window, shift = SIZES[case]
    block, extra = block_of("monai", size, window, shift)
    drop_in, x = MonaiSwinBlock.of(block, backend=backend), batch(size)
    assert_equal(results(drop_in, x, *extra), results(block, x, *extra))


@pytest.mark.parametrize("case", [ODD, "one axis below the window"])
def test_equal_through_the_kernels(case: str, strict_kernels: None) -> None:
    pytest.importorskip("triton")
    size, window, shift = SIZES[case]
    block, extra = block_of("monai", size, window, shift)
    drop_in, x = MonaiSwinBlock.of(block, backend="triton"), batch(size)
    with torch.no_grad():
        block.attn.qkv.weight.mul_(4)  # masked scores leak
    assert_equal(results(drop_in, x, *extra), results(block, x, *extra))


@pytest.mark.parametrize(
    "options", [{"qkv_bias": False}, {"use_checkpoint": True}, {"use_flash_attention": True}], ids=str
)
def test_options(options: dict[str, bool]) -> None:
    size, window, shift = SIZES[ODD]
    block, extra = block_of("monai", size, window, shift, **options)
    drop_in, x = MonaiSwinBlock.of(block), batch(size)
    assert_equal(results(drop_in, x, *extra), results(block, x, *extra))
    with torch.no_grad():
        torch.testing.assert_close(drop_in(x, *extra), block(x, *extra), rtol=1e-11, atol=1e-11)


def test_float32_errs_no_more() -> None:
    size, window, shift = SIZES[ODD]

    def draw() -> Any:
        block, extra = block_of("monai", size, window, shift)
        return errors_in(torch.float32, block, MonaiSwinBlock.of, batch(size), *extra)

    assert_no_worse(draw)


def test_attention_dropout_runs_monais_code() -> None:
    size, window, shift = SIZES[ODD]
    block, extra = block_of("monai", size, window, shift, attn_drop=0.1)
    drop_in, x = MonaiSwinBlock.of(block), batch(size)
    torch.manual_seed(7)
    theirs = results(block, x, *extra)
    torch.manual_seed(7)
    ours = results(drop_in, x, *extra)
    assert all(torch.equal(ours[name], want) for name, want in theirs.items())
    assert_equal(results(drop_in.eval(), x, *extra), results(block.eval(), x, *extra))


def test_the_mask_is_checked_once_a_size() -> None:
    """It takes hundreds of megabytes, and none of them is read in later calls."""
    size, window, shift = SIZES[ODD]
    block, (mask,) = block_of("monai", size, window, shift)
    drop_in, x = MonaiSwinBlock.of(block), batch(size)
    for wrong in (mask * 2, mask[1:], mask < 0):
        with pytest.raises(InputError, match=r"mask_matrix must be None or compute_mask's for windows of \(3, 3, 4\)"):
            drop_in(x, wrong)
    want = drop_in(x, mask)
    assert torch.equal(drop_in(x, mask.clone()), want)
    assert_equal(results(drop_in, x, None), results(block, x, None))
    with pytest.raises(InputError, match=r"x must be \(B, D, H, W, C\), as the windows, got \(2, 4, 4, 12\)"):
        drop_in(batch((4, 4)), None)


def test_compiles_and_exports() -> None:
    size, window, shift = SIZES[ODD]
    block, extra = block_of("monai", size, window, shift)
    drop_in, x = MonaiSwinBlock.of(block), batch(size)
    want = block(x, *extra)
    compiled = torch.compile(drop_in, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, *extra), want, rtol=1e-11, atol=1e-11)
    program = torch.export.export(drop_in.eval(), (x, *extra))
    torch.testing.assert_close(program.module()(x, *extra), want, rtol=1e-11, atol=1e-11)


def test_autocast() -> None:
    """bfloat16 between the projections, gradients in the parameters' dtype, as in MONAI."""
    size, window, shift = SIZES[ODD]

    def draw() -> dict[str, Errors]:
        block, extra = block_of("monai", size, window, shift, std=0.2)
        return errors_under_autocast(block, MonaiSwinBlock.of, batch(size), *extra, eps=5e-4)

    # The bias's gradient cancels: beyond twice the block's own error in one draw of 15.
    assert_no_worse(draw, luck=2.0)


def swin_unetr(**options: Any) -> nn.Module:
    """A small one of two input channels, with biases as large as trained ones."""
    return with_large_biases(monai_swin().SwinUNETR(2, 2, feature_size=12, spatial_dims=3, **options))


#: In the blocks a volume has halves, quarters, ... of these sides, in windows of 7, which do not divide them. The large
#: ones take minutes.
SMALL, LARGE = (64, 32, 32), [pytest.param((side,) * 3, marks=pytest.mark.slow) for side in (64, 96)]


@pytest.mark.parametrize("size", [SMALL, *LARGE], ids=str)
def test_swin_unetr_in_float64(size: tuple[int, ...]) -> None:
    assert_network_equal(swin_unetr(), torch.randn(1, 2, *size))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"use_v2": True}, {"use_checkpoint": True}], ids=str)
def test_swin_unetrs_options(options: dict[str, bool]) -> None:
    assert_network_equal(swin_unetr(**options), torch.randn(1, 2, *SMALL))


def assert_network_equal(model: nn.Module, x: Tensor) -> None:
    """Output, gradient of the input and of every parameter, in float64, with the swaps and without."""
    model, x = model.double(), x.double()
    want = results(model, x)
    with accelerate(model) as swaps:
        assert len(swaps) == 12  # two blocks in each of four layers, and the layers
        found = results(model, x)
    largest = max(float(value.abs().max()) for name, value in want.items() if name != "output")
    for name, value in want.items():
        scale = max(float(value.abs().max()), 1e-6 * largest)  # gradients before a norm are zero but for rounding
        assert float((found[name] - value).abs().max()) <= 1e-9 * scale, name


@pytest.mark.parametrize("size", [SMALL, *LARGE], ids=str)
def test_swin_unetr_in_float32(size: tuple[int, ...]) -> None:
    """Output and gradients err no more than MONAI's; those of the parameters as one vector, for some are zero."""

    def of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        found = results(model, x)
        first = {name: found.pop(name) for name in ("output", "x")}
        return first | {"parameters": torch.cat([value.flatten() for value in found.values()])}

    def draw() -> dict[str, Errors]:
        model, x = swin_unetr(), torch.randn(1, 2, *size)
        truth, theirs = of(copy.deepcopy(model).double(), x.double()), of(model, x)
        accelerate(model)
        ours = of(model, x)
        return {name: errors_of(name, ours[name], theirs[name], truth[name]) for name in truth}

    assert_no_worse(draw)


def layer_of(**options: Any) -> nn.Module:
    """A layer of two blocks, in a container."""
    layer = monai_swin().BasicLayer(12, 2, 3, (3, 3, 4), [0.0, 0.0], qkv_bias=True, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return nn.Sequential(layer).double()


def test_the_mask_is_made_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a layer into whose blocks somebody hooks, or that has one of MONAI's own blocks again."""
    model, x = layer_of(downsample=monai_swin().PatchMerging), torch.randn(2, 12, 5, 4, 7, dtype=torch.float64)
    made, original = [], monai_swin().compute_mask
    monkeypatch.setattr(monai_swin(), "compute_mask", lambda *args: made.append(args) or original(*args))
    want = results(model, x)
    assert len(made) == 1
    swaps = accelerate(model)
    assert len(swaps) == 3 and type(model[0]) is MonaiSwinLayer
    made.clear()
    assert_equal(results(model, x), want)
    assert not made

    handle = model[0].blocks[1].register_forward_pre_hook(lambda module, inputs: None)
    assert_equal(results(model, x), want)
    assert len(made) == 1
    handle.remove()

    drop_in = model[0].blocks[0]
    block = monai_swin().SwinTransformerBlock(12, 3, drop_in.window_size, drop_in.shift_size).double()
    block.load_state_dict(drop_in.state_dict())
    model[0].blocks[0] = block
    torch.testing.assert_close(model(x), want["output"], rtol=1e-11, atol=1e-11)
    assert len(made) == 2
    model[0].blocks[0] = drop_in

    swaps.undo()
    assert_equal(results(model, x), want)
    assert len(made) == 3


@pytest.mark.parametrize("options", [{}, {"attn_drop": 0.1}, {"use_checkpoint": True}], ids=str)
def test_blocks_that_take_the_standard_mask(options: dict[str, Any]) -> None:
    """As one that was made, also where MONAI's code runs and it must be made after all."""
    size, window, shift = SIZES[ODD]
    block, extra = block_of("monai", size, window, shift, **options)
    drop_in, x = MonaiSwinBlock.of(block), batch(size)
    torch.manual_seed(7)
    theirs = results(block, x, *extra)
    torch.manual_seed(7)
    assert_equal(results(drop_in, x, "standard"), theirs)


def test_other_layers_are_refused() -> None:
    layer = monai_swin().BasicLayer(12, 2, 3, (4, 4), [0.0, 0.0])
    for other in (layer, nn.Linear(3, 3), monai_swin().BasicLayer(12, 2, 3, (2, 2, 2), [0.0, 0.0]).blocks[0]):
        with pytest.raises(
            InputError, match="layer must be a BasicLayer of MONAI whose blocks are Swin blocks on volumes"
        ):
            MonaiSwinLayer(other)


@pytest.mark.parametrize("size", [(32, 32, 64), *LARGE], ids=str)
def test_inference_of_two_and_in_sliding_windows(size: tuple[int, ...]) -> None:
    """Of a model that was made for MONAI's flash attention; its weights load through the drop-ins, both ways."""
    inferers = pytest.importorskip("monai.inferers")
    model, other = swin_unetr(use_flash_attention=True).eval(), swin_unetr().eval()
    volumes, long = torch.randn(2, 2, *size), torch.randn(1, 2, *size[:2], size[2] + 32)
    with torch.no_grad():
        want = model(volumes)
        slid = inferers.sliding_window_inference(long, size, 1, model, overlap=0.25)
        accelerate(model)
        torch.testing.assert_close(model(volumes), want, rtol=1e-4, atol=1e-5)
        ours = inferers.sliding_window_inference(long, size, 1, model, overlap=0.25)
        torch.testing.assert_close(ours, slid, rtol=1e-4, atol=1e-5)

        fresh = copy.deepcopy(other.state_dict())
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other(volumes), want, rtol=1e-4, atol=1e-5)
        model.load_state_dict(fresh)
        other.load_state_dict(fresh)
        torch.testing.assert_close(model(volumes), other(volumes), rtol=1e-4, atol=1e-5)
