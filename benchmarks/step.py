"""One whole step of the self-guided loop: forward, losses, backward, update, at the paper's widths.

``pytest benchmarks/step.py --benchmark-only`` (sizes: ``-k 129``, ``-k 257``). Peak memory stands in the extra
information of each row, as the difference from just before the step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from benchmarks.memory import peak_of_step
from msformer_fast import MSFormer, self_guiding_losses

BACKENDS = ("reference",)


def prepare(pixels: int, backend: str, channels: int = 100) -> Callable[[], None]:
    """A step of a fresh network (clusters = channels, depth 2, patch 32) on a random square image."""
    model = MSFormer(3, channels, channels, seed=0, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    image = torch.rand(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        losses = self_guiding_losses(model(image), backend=backend)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        optimizer.step()
        losses.total.item()

    return step


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pixels", [129, 257])
def test_step(benchmark, pixels: int, backend: str) -> None:
    step = prepare(pixels, backend)
    benchmark.group = f"whole step, {pixels} x {pixels}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    if sys.platform == "linux":
        benchmark.extra_info["peak_memory_mb"] = round(peak_of_step(pixels, backend))
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
