"""Speed of the stability loss: ``pytest benchmarks/stability_loss.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast import ops
from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.floors import stability_loss as floors


def tokens(s: Sizes) -> int:
    """Patches of the call that is timed."""
    return ((s["side"] - 1) // s["patch"]) ** 2


def draw(s: Sizes, rand: Random) -> Inputs:
    shape = (1, tokens(s), s["channels"])
    queries = rand(*shape)
    return {"queries": queries, "keys": 0.5 * queries + 0.7 * rand(*shape)}


def call(inputs: Inputs, s: Sizes, *, backend: str) -> tuple[Tensor, ...]:
    return (ops.stability_loss(inputs["queries"], inputs["keys"], backend=backend),)


def matrix(inputs: Inputs, s: Sizes) -> tuple[Tensor, ...]:
    """The attention matrix, of which the loss needs the diagonal alone: a row sums to 1."""
    scores = (inputs["queries"] @ inputs["keys"].mT).float() / 8
    attention = torch.softmax(scores, -1)
    return ((1 - attention.diagonal(dim1=-2, dim2=-1)).mean() * 2 / attention.shape[-1],)


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    sizes = 1, tokens(s), s["channels"]
    return floors.bytes_moved(*sizes, dtype), floors.flops(*sizes)


BENCH = OpBench(
    "stability_loss",
    "difference between the patches' attention and the identity; patch 4 makes many patches",
    draw,
    call,
    floor,
    rivals={"matrix": matrix},
    compiled_rivals=("matrix",),
    sizes={"patch": 4},
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
