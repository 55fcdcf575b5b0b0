"""One whole step of the self-guided loop, its forward and its backward, at the paper's widths, backend by backend.

``pytest benchmarks/step.py --benchmark-only`` (some: ``-k "257 and step"``; ``--keep-freed-memory``: with the command
line's setting of the allocator). Before each timed round the reference runs once, timed on its own: the extra
information of a row has the ratio of the two, round by round, and the peak memory above the start of a step.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from benchmarks.memory import peak_of_step
from msformer_fast import MSFormer, self_guiding_losses

#: Backend and memory of each variant.
VARIANTS = {"reference": ("reference", "fast"), "torch": ("torch", "fast"), "torch-lean": ("torch", "lean")}
ROUNDS = {129: 9, 257: 7, 513: 3, 1025: 1}

#: The reference would need about 40 GB there.
TOO_LARGE_FOR_THE_REFERENCE = 1025


class Step(NamedTuple):
    """The parts of a step; each leaves what the next needs."""

    forward: Callable[[], None]
    backward: Callable[[], None]
    update: Callable[[], None]

    def step(self) -> None:
        for part in self:
            part()


def prepare(pixels: int, variant: str, channels: int = 100) -> Step:
    """A step of a fresh network (clusters = channels, depth 2, patch 32) on a random square image."""
    backend, memory = VARIANTS[variant]
    model = MSFormer(3, channels, channels, seed=0, memory=memory, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    image = torch.rand(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    total: list[torch.Tensor] = []

    def forward() -> None:
        total[:] = [self_guiding_losses(model(image), backend=backend).total]
        total[0].item()

    def backward() -> None:
        total[0].backward()
        total.clear()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Step(forward, backward, update)


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _before(step: Step, part: str) -> None:
    """What ``part`` needs, untimed."""
    step.update()  # frees the gradients of the round before
    if part == "backward":
        step.forward()


CASES = [(p, v) for p in ROUNDS for v in VARIANTS if p < TOO_LARGE_FOR_THE_REFERENCE or v != "reference"]


@pytest.mark.parametrize("part", ["forward", "backward", "step"])
@pytest.mark.parametrize(("pixels", "variant"), CASES)
def test_step(benchmark, request: pytest.FixtureRequest, pixels: int, variant: str, part: str) -> None:
    ours = prepare(pixels, variant)
    paired = variant != "reference" and pixels < TOO_LARGE_FOR_THE_REFERENCE
    rival = prepare(pixels, "reference") if paired else None
    rivals: list[float] = []

    def setup() -> None:
        if rival is not None:
            _before(rival, part)
            rivals.append(_seconds(getattr(rival, part)))
        _before(ours, part)

    benchmark.group = f"{part}, {pixels} x {pixels}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    kept = request.config.getoption("--keep-freed-memory")
    benchmark.extra_info["keep_freed_memory"] = kept
    if sys.platform == "linux" and part == "step":
        benchmark.extra_info["peak_memory_mb"] = round(peak_of_step(pixels, variant, kept))
    benchmark.pedantic(getattr(ours, part), setup=setup, rounds=ROUNDS[pixels], warmup_rounds=1)
    if rival is not None:
        # The first of the rival's belongs to the round that warms up.
        ratios = sorted(r / m for r, m in zip(rivals[1:], benchmark.stats.stats.data, strict=True))
        benchmark.extra_info["times_faster"] = [round(f(ratios), 3) for f in (min, statistics.median, max)]
