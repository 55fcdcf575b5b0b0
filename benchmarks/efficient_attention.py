"""Speed of efficient attention: ``pytest benchmarks/efficient_attention.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast import ops
from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.floors import efficient_attention as floors

PARTS = ("key", "query", "value", "reprojection")


def draw(s: Sizes, rand: Random) -> Inputs:
    """With every bias but the keys', whose gradient is zero."""
    c = s["channels"]
    inputs = {"x": rand(1, s["side"], s["side"], c)}
    for part in PARTS:
        inputs[f"{part}_weight"] = rand(c, c, scale=(2.0 if part in ("key", "query") else 1.0) * c**-0.5)
        if part != "key":
            inputs[f"{part}_bias"] = 0.1 * rand(c)
    return inputs | {"norm_weight": 1 + 0.3 * rand(c), "norm_bias": 0.3 * rand(c)}


def call(inputs: Inputs, s: Sizes, *, backend: str, memory: str) -> tuple[Tensor, ...]:
    options: dict[str, Any] = dict(inputs, key_bias=None, memory=memory, backend=backend)
    return (ops.efficient_attention(**options)[0],)


def einsum(inputs: Inputs, s: Sizes) -> tuple[Tensor, ...]:
    """Linear attention as it is usually written."""
    x = inputs["x"].flatten(1, 2)
    n = F.layer_norm(x, x.shape[-1:], inputs["norm_weight"], inputs["norm_bias"])
    keys = F.linear(n, inputs["key_weight"]).softmax(1)
    queries = F.linear(n, inputs["query_weight"], inputs["query_bias"]).softmax(2)
    values = F.linear(n, inputs["value_weight"], inputs["value_bias"])
    context = torch.einsum("bnk,bnv->bkv", keys, values)
    attended = torch.einsum("bnk,bkv->bnv", queries, context)
    y = x + F.linear(attended, inputs["reprojection_weight"], inputs["reprojection_bias"])
    return (y.view_as(inputs["x"]),)


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    sizes = 1, s["side"], s["side"], s["channels"]
    return floors.bytes_moved(*sizes, dtype), floors.flops(*sizes)


BENCH = OpBench(
    "efficient_attention",
    "x + attention(LN(x)) with keys normalised over positions and queries over channels",
    draw,
    call,
    floor,
    rivals={"einsum": einsum},
    memories=("fast", "lean"),
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
