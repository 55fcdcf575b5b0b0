"""Where a swap is expected to gain nothing the module's own code runs, and the report says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import msformer_fast as mf
from msformer_fast.nn.published import PublishedMixFFN
from msformer_fast.nn.swin_attention import WHERE_VOLUMES_GAIN
from msformer_fast.ops.backend import why_not_native
from tests import published_networks as published
from tests.swin_blocks import monai_swin, timm_swin
from tests.test_swin_copies import microsoft, torchvision_attention


def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the maps that a drop-in of Mix-FFN computes."""
    shapes: list[tuple[int, ...]] = []
    on_map = PublishedMixFFN.on_map

    def counted(self: Any, x: torch.Tensor) -> Any:
        shapes.append(tuple(x.shape))
        return on_map(self, x)

    monkeypatch.setattr(PublishedMixFFN, "on_map", counted)
    return shapes


@pytest.fixture
def two_threads(threads: None) -> None:
    torch.set_num_threads(2)


@pytest.mark.usefixtures("two_threads")
def test_small_maps_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pixels of one image and the width, whatever the batch; with gradients from larger maps on; a backend is
    obeyed."""
    model = nn.Sequential(published.MixFFN(100, 1500))
    swaps = mf.accelerate(model)
    shapes, original = computed(monkeypatch), swaps.swapped[0].original
    for height, width, batch, training, own in (
        (19, 26, 1, False, True),  # 494 pixels, fewer than 1500 / 3
        (20, 25, 1, False, False),
        (19, 26, 8, False, True),
        (33, 34, 1, True, True),  # 1,122
        (25, 45, 1, True, False),
    ):
        x = torch.randn(batch, height * width, 100)
        with torch.set_grad_enabled(training):
            ours, theirs = model[0](x, height, width), original(x, height, width)
        assert bool(shapes) != own
        torch.testing.assert_close(ours, theirs, rtol=0 if own else 1e-4, atol=0 if own else 1e-5)
        shapes.clear()
    model[0].backend = "torch"
    model[0](torch.randn(1, 6, 100), 2, 3)
    assert shapes == [(1, 2, 3, 100)]
    assert "gains on the CPU from 500 pixels on, in training from 1,125 pixels on" in str(swaps)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("module", [published.MixFFN(64, 256), published.EfficientAttention(64)], ids=str)
def test_maps_that_leave_threads_idle(module: nn.Module) -> None:
    """Half of 16 threads have work from 24 rows on, three a thread, or from 512 tokens on, 64 a thread."""
    (swap,) = mf.accelerate(nn.Sequential(module)).swapped
    for images, side, count, gains in (
        (1, 22, 2, True),
        (1, 22, 16, False),
        (1, 24, 16, True),
        (2, 22, 16, True),
        (1, 24, 64, False),
    ):
        torch.set_num_threads(count)
        with torch.no_grad():
            assert swap.replacement.gains_on_cpu(torch.empty(images, side**2, 64, device="meta")) == gains


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("module", "inference", "training"),
    [
        (published.EfficientAttention(512), 768, 1024),
        (published.EfficientAttention(64, head_count=8), None, None),
        (published.EfficientAttention(192, head_count=8), None, 1536),
        (published.MixFFN(8, 32), 10, 24),
        (published.MixFFN_skip(512, 2048), 682, 1536),
        (published.EfficientTransformerBlock(320, context=False), 200, 448),
        (published.EfficientTransformerBlock(320, heads=8, context=False), 200, 448),
    ],
    ids=str,
)
def test_least_pixels(module: nn.Module, inference: int | None, training: int | None) -> None:
    """A map and tokens alike; an attribute of the module's own by a usual name is nothing to us."""
    module.channels = 3
    (swap,) = mf.accelerate(nn.Sequential(module)).swapped
    drop_in = swap.replacement
    assert drop_in.least_pixels() == (inference, training)
    channels = drop_in.map_channels()
    for least, with_gradients in ((inference, False), (training, True)):
        with torch.set_grad_enabled(with_gradients):
            for pixels in (least - 1, least) if least else (100_000,):
                gains = least is not None and pixels == least
                for shape in ((2, channels, 1, pixels), (2, pixels, channels)):
                    assert drop_in.gains_on_cpu(torch.empty(shape, device="meta")) == gains
    assert ("never" in drop_in.where_it_gains()) == (inference is None)


@pytest.mark.parametrize("make", [microsoft, torchvision_attention])
def test_windows_on_the_cpu(make: Callable[[], Any]) -> None:
    module = make()
    model = nn.Sequential(module)
    swaps = mf.accelerate(model)
    x = torch.randn(2, 96, 12) if make is microsoft else torch.randn(2, 8, 9, 12)
    assert torch.equal(model[0](x.double()), module(x.double()))
    assert "; gains not on the CPU" in str(swaps)


def test_the_libraries_blocks_on_the_cpu() -> None:
    block = timm_swin().SwinTransformerBlock(12, (8, 8), 3, None, 4, 2)
    other = monai_swin().SwinTransformerBlock(12, 3, (4, 4), (2, 2))
    mask, x = monai_swin().compute_mask([8, 8], (4, 4), (2, 2), "cpu"), torch.randn(2, 8, 8, 12)
    model = nn.Sequential(block, other)
    assert len(mf.accelerate(model)) == 2
    assert torch.equal(model[0](x), block(x)) and torch.equal(model[1](x, mask), other(x, mask))


def test_volumes_on_the_cpu() -> None:
    """Where the CPU kernels take them, unless few windows were clamped; else in inference, where flash is off."""
    block = monai_swin().SwinTransformerBlock(12, 3, (3, 3, 3), (0, 0, 0))
    model = nn.Sequential(block)
    swaps = mf.accelerate(model)
    drop_in: Any = model[0]
    assert f"gains {WHERE_VOLUMES_GAIN}" in str(swaps)
    x = torch.randn(100, 6, 5, 3, 12)
    has_kernels = why_not_native("cross_scale_attention", x) is None
    many = torch.randn(10, 9, 18, 2, 12)

    for flash in (False, True):
        block.attn.use_flash_attention = flash
        with torch.no_grad():
            assert drop_in.gains_on_cpu(x.double()) == (not flash)
            assert drop_in.gains_on_cpu(x) == (not flash)  # of 27 tokens, without a shift
        assert not drop_in.gains_on_cpu(x.double())
        cases = (x, True), (x[:, :2], True), (x[:, :, :2], False), (x[:, :, :, :2], False), (many, True), (x[:2], False)
        for volume, gains in cases:
            assert drop_in.gains_on_cpu(volume) == (gains and has_kernels), volume.shape


def test_a_drop_in_that_would_not_compute_is_no_proof() -> None:
    """The trial would compare the module with itself."""

    class Never(PublishedMixFFN):
        def forward(self, *inputs: Any, **named: Any) -> Any:
            return self.own_code(*inputs, **named)

    mf.register_swap(
        "never",
        recognise=lambda module: isinstance(module, published.MixFFN),
        ways=lambda module: [lambda module, backend: Never(module, None, backend=backend)],
        calls=lambda module: [(torch.randn(1, 6, 6), 2, 3)],
    )
    try:
        swaps = mf.accelerate(nn.Sequential(published.MixFFN(6, 12)))
    finally:
        mf.unregister_swap("never")
    assert len(swaps) == 0 and "would run the module's own code" in swaps.left[0].reason
