"""Speed of the overlapping embeddings: ``pytest benchmarks/overlap_embedding.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.benchmarks.training_step import IN_CHANNELS
from msformer_fast.floors import overlap_embedding as floors
from msformer_fast.ops.overlap_embedding import overlap_embedding_of_two

STRIDES = 1, 2


def draw(s: Sizes, rand: Random) -> Inputs:
    """An image, and weight and bias of either stride."""
    inputs = {"image": rand(1, IN_CHANNELS, s["side"], s["side"])}
    for name in ("fine", "coarse"):
        inputs[f"{name}_weight"] = rand(s["channels"], IN_CHANNELS, 3, 3, scale=(9 * IN_CHANNELS) ** -0.5)
        inputs[f"{name}_bias"] = rand(s["channels"])
    return inputs


def call(inputs: Inputs, s: Sizes, *, backend: str) -> tuple[Tensor, ...]:
    """Both maps. No gradient of the image: no step asks for it."""
    weights, biases = ([inputs[f"{name}_{kind}"] for name in ("fine", "coarse")] for kind in ("weight", "bias"))
    fine, coarse = overlap_embedding_of_two(inputs["image"].detach(), weights, biases, STRIDES, backend=backend)
    return fine.y, coarse.y


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    sizes = 1, s["side"], s["side"], IN_CHANNELS, s["channels"]
    return floors.bytes_moved(*sizes, dtype), floors.flops(*sizes)


BENCH = OpBench(
    "overlap_embedding",
    "both 3 x 3 embeddings of an image of three channels, at full and half resolution, and the statistics that their "
    "batch norms apply",
    draw,
    call,
    floor,
    backends=("native", "triton"),
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
