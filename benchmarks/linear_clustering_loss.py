"""Speed of the clustering loss fused with its projection: ``pytest benchmarks/linear_clustering_loss.py
--benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast import ops
from msformer_fast.benchmarks import clustering_loss
from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.floors import linear_clustering_loss as floors


def draw(s: Sizes, rand: Random) -> Inputs:
    """With a winner in nearly every pixel, so that rounding changes few labels and with them gradients."""
    side, width = s["side"], s["channels"]
    weight = rand(width, width, scale=width**-0.5)
    chosen = rand(1, side, side, width).argmax(-1)
    features = rand(1, side, side, width) + 6 * torch.nn.functional.normalize(weight, dim=1)[chosen]
    return {"features": features, "weight": weight, "bias": 0.1 * rand(width)}


def call(inputs: Inputs, s: Sizes, *, backend: str) -> tuple[Tensor, ...]:
    return (ops.linear_clustering_loss(*inputs.values(), backend=backend)[0],)


def cross_entropy(inputs: Inputs, s: Sizes) -> tuple[Tensor, ...]:
    return clustering_loss.cross_entropy({"logits": F.linear(*inputs.values())}, s)


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    sizes = s["side"] ** 2, s["channels"], s["channels"]
    return floors.bytes_moved(*sizes, dtype), floors.flops(*sizes)


BENCH = OpBench(
    "linear_clustering_loss",
    "the clustering loss of scores that a linear layer makes, never stored by the kernels",
    draw,
    call,
    floor,
    rivals={"cross-entropy": cross_entropy},
    compiled_rivals=("cross-entropy",),
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
