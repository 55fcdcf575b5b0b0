"""Modules that look like the published ones and compute something else stay, each with its reason."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import msformer_fast as mf
from tests import published_networks as published
from tests.published_networks import EfficientAttention, MixFFN


class ScaledKeys(EfficientAttention):
    def scored(self, keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        return super().scored(keys * 1.0001, queries)


class OtherAxis(EfficientAttention):
    def scored(self, keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        return keys.softmax(dim=2), queries.softmax(dim=3)


class Detached(EfficientAttention):
    """Right forward, other gradient."""

    def scored(self, keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        return super().scored(keys.detach(), queries)


class Noisy(EfficientAttention):
    """Right in evaluation alone."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x + 0.01 * torch.randn_like(x) if self.training else x)


class InFloat32(EfficientAttention):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.float())


class OfThree(EfficientAttention):
    def forward(self, x: Tensor, depth: int) -> Any:
        return super().forward(x) * depth


class TempScaled(EfficientAttention):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.temperature = nn.Parameter(torch.ones(1))


class Stateful(EfficientAttention):
    """Another result at every call."""

    calls = 0

    def forward(self, x: Tensor) -> Any:
        Stateful.calls += 1
        return super().forward(x) * Stateful.calls


class Storing(EfficientAttention):
    """Keeps its result for others to read."""

    def forward(self, x: Tensor) -> Any:
        self.last = super().forward(x)
        return self.last


class OtherOnLargerMaps(EfficientAttention):
    """Reduces maps that are larger than its grid."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x if x.shape[2] <= 16 else x * 0.5)


def strided() -> nn.Module:
    module = EfficientAttention(8)
    module.keys = nn.Conv2d(8, 8, 1, groups=2)
    return module


def tanh_gelu() -> nn.Module:
    module = MixFFN(6, 12)
    module.act = nn.GELU(approximate="tanh")
    return module


def relu() -> nn.Module:
    module = MixFFN(6, 12)
    module.act = nn.ReLU()
    return module


class Relu(MixFFN):
    """An activation that is no module."""

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return self.fc2(F.relu(self.dwconv(self.fc1(x), H, W)))


def reflected() -> nn.Module:
    module = MixFFN(6, 12)
    module.dwconv.dwconv = nn.Conv2d(12, 12, 3, 1, 1, groups=12, padding_mode="reflect")
    return module


def wide_kernel() -> nn.Module:
    module = MixFFN(6, 12)
    module.dwconv.dwconv = nn.Conv2d(12, 12, 5, 1, 2, groups=12)
    return module


def two_convolutions() -> nn.Module:
    module = MixFFN(6, 12)
    module.dwconv.extra = nn.Conv2d(12, 12, 1)
    return module


def patched() -> nn.Module:
    module = EfficientAttention(8)
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


def compiled_by_itself() -> nn.Module:
    module = EfficientAttention(8)
    module.compile(backend="eager")
    return module


def cannot_be_copied() -> nn.Module:
    module = EfficientAttention(8)
    module.lock = threading.Lock()
    return module


LOOK_ALIKES = {
    "keys scaled by 1.0001": (lambda: ScaledKeys(8), "differs by"),
    "softmax over the other axis": (lambda: OtherAxis(8), "differs by"),
    "another gradient": (lambda: Detached(8), "its gradient"),
    "noise in training": (lambda: Noisy(8), "its result differs by"),
    "float32 inside": (lambda: InFloat32(8), "cannot be called with float64"),
    "another argument": (lambda: OfThree(8), r"its forward takes \(x, depth\), not a map"),
    "a parameter more": (lambda: TempScaled(8), "it has temperature besides"),
    "a changing result": (lambda: Stateful(8), "its result differs by"),
    "queries of another map": (lambda: published.CrossAttention(8), r"its forward takes \(target, source\)"),
    "a result that is stored": (lambda: Storing(8), "its forward stores last"),
    "another one on larger maps": (lambda: OtherOnLargerMaps(8), "its result differs by"),
    "grouped keys": (strided, "its keys is no plain 1x1 Conv2d"),
    "heads that do not divide": (lambda: EfficientAttention(8, head_count=3), "its 3 heads do not divide"),
    "GELU of tanh": (tanh_gelu, "its GELU is the tanh approximation"),
    "ReLU": (relu, r"it has a ReLU besides \(act\)"),
    "ReLU that is no module": (lambda: Relu(6, 12), "its result differs by"),
    "reflecting convolution": (reflected, "its dwconv does not keep the size"),
    "5x5 convolution": (wide_kernel, "its dwconv is no depthwise 3x3"),
    "two convolutions": (two_convolutions, "its dwconv does more than one convolution"),
    "forward replaced": (patched, "its forward was replaced on the instance"),
    "compiled by itself": (compiled_by_itself, "it was compiled by itself"),
    "a lock": (cannot_be_copied, "it cannot be copied for a trial"),
    "another class of this name": (lambda: type("EfficientAttention", (nn.Module,), {})(), "it has no keys, queries"),
}


@pytest.mark.parametrize("case", LOOK_ALIKES)
def test_look_alikes_are_left(case: str) -> None:
    make, reason = LOOK_ALIKES[case]
    module = make()
    model = nn.Sequential(module)
    state = torch.random.get_rng_state()
    swaps = mf.accelerate(model)
    assert model[0] is module and len(swaps) == 0
    (left,) = swaps.left
    assert left.name == "0"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(left.reason)
    assert reason.split()[0].lstrip("\\(") in str(swaps) or left.reason in str(swaps)
    assert torch.equal(torch.random.get_rng_state(), state)
