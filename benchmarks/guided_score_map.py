"""Speed of the head with what its losses read: ``pytest benchmarks/guided_score_map.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast import ops
from msformer_fast.benchmarks import score_map
from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.floors import guided_score_map as floors


def draw(s: Sizes, rand: Random) -> Inputs:
    """With a clear winner in every pixel, so that no rounding changes a label and with it a gradient."""
    c = s["channels"]
    length = s["patch"] ** 2 * c
    inputs = score_map.draw(s, rand)
    winners = torch.nn.functional.normalize(inputs["head_weight"][:, c:], dim=1)
    chosen = rand(*inputs["fine"].shape[:3], c).argmax(-1)
    inputs["fine"] += 8 * winners[chosen]
    inputs |= {"patch_weight": rand(c, length, scale=length**-0.5), "patch_bias": rand(c)}
    return inputs | {"norm_weight": 1 + 0.3 * rand(c), "norm_bias": rand(c)}


def call(inputs: Inputs, s: Sizes, *, backend: str) -> tuple[Tensor, ...]:
    made = ops.guided_score_map(*inputs.values(), patch=s["patch"], backend=backend)
    return tuple(made[1:4])


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    sizes = 1, s["side"], s["side"], s["channels"], s["channels"], s["channels"], s["patch"]
    return floors.bytes_moved(*sizes, dtype, batch_norms=False), floors.flops(*sizes)


BENCH = OpBench(
    "guided_score_map",
    "scores, clustering loss and patch embedding of one pass",
    draw,
    call,
    floor,
    sizes={"patch": 32},
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
