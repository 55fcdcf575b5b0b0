"""One whole step of the self-guided loop, its forward and its backward, at the paper's widths, backend by backend.

``pytest benchmarks/step.py --benchmark-only`` (some: ``-k "257 and step"``; ``--keep-freed-memory``: with the command
line's setting of the allocator). Every variant runs in a process of its own; before each of its rounds the reference
runs once in another. The extra information of a row has the ratio of the two, round by round (least, median, most),
and the peak memory above the start.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from benchmarks.worker import Worker
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


def _ready(worker: Worker, part: str) -> None:
    """What ``part`` needs, untimed: no gradients, for a backward a forward, and threads of the other at rest."""
    worker.run("update")
    if part == "backward":
        worker.run("forward")
    time.sleep(0.3)


CASES = [(p, v) for p in ROUNDS for v in VARIANTS if p < TOO_LARGE_FOR_THE_REFERENCE or v != "reference"]


@pytest.mark.parametrize("part", ["forward", "backward", "step"])
@pytest.mark.parametrize(("pixels", "variant"), CASES)
def test_step(benchmark, request: pytest.FixtureRequest, pixels: int, variant: str, part: str) -> None:
    kept = request.config.getoption("--keep-freed-memory")
    paired = variant != "reference" and pixels < TOO_LARGE_FOR_THE_REFERENCE
    ours: list[float] = []
    rivals: list[float] = []
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(Worker(pixels, variant, kept))
        rival = stack.enter_context(Worker(pixels, "reference", kept)) if paired else None

        def setup() -> None:
            if rival is not None:
                _ready(rival, part)
                rivals.append(rival.run(part))
            _ready(worker, part)

        benchmark.group = f"{part}, {pixels} x {pixels}"
        benchmark.extra_info |= {"threads": torch.get_num_threads(), "keep_freed_memory": kept}
        benchmark.pedantic(lambda: ours.append(worker.run(part)), setup=setup, rounds=ROUNDS[pixels], warmup_rounds=2)
        if part == "step":
            benchmark.extra_info["peak_memory_mb"] = round(worker.peak_megabytes() or 0) or None
    if rival is not None:
        ratios = [theirs / mine for mine, theirs in zip(ours, rivals, strict=True)][-ROUNDS[pixels] :]
        spread = min(ratios), statistics.median(ratios), max(ratios)
        benchmark.extra_info["times_faster"] = [round(value, 3) for value in spread]
