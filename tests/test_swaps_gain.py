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


def test_small_maps_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the numbers of one image, whatever the batch; without gradients from smaller maps on; a backend is obeyed."""
    model = nn.Sequential(published.MixFFN(50, 60))
    swaps = mf.accelerate(model)
    shapes, original = computed(monkeypatch), swaps.swapped[0].original
    for side, batch, training, own in (
        (44, 1, False, True),
        (45, 1, False, False),
        (44, 8, False, True),
        (63, 1, True, True),
        (64, 1, True, False),
    ):
        x = torch.randn(batch, side * side, 50)
        with torch.set_grad_enabled(training):
            ours, theirs = model[0](x, side, side), original(x, side, side)
        assert bool(shapes) != own
        torch.testing.assert_close(ours, theirs, rtol=0 if own else 1e-4, atol=0 if own else 1e-5)
        shapes.clear()
    model[0].backend = "torch"
    model[0](torch.randn(1, 6, 50), 2, 3)
    assert shapes == [(1, 2, 3, 50)]
    assert "gains on the CPU from maps of 100,000 numbers on, 200,000 in training" in str(swaps)


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
