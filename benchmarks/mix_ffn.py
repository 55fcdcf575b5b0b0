"""Speed of the Mix-FFN: ``pytest benchmarks/mix_ffn.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast import ops
from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.floors import mix_ffn as floors


def draw(s: Sizes, rand: Random) -> Inputs:
    c, d = s["channels"], 4 * s["channels"]
    inputs = {"t": rand(1, s["side"], s["side"], c), "fc1_weight": rand(d, c, scale=c**-0.5), "fc1_bias": rand(d)}
    inputs |= {"depthwise_weight": rand(d, 1, 3, 3, scale=0.4), "depthwise_bias": rand(d)}
    inputs |= {"fc2_weight": rand(c, d, scale=d**-0.5), "fc2_bias": rand(c)}
    inputs |= {"norm_weight": 1 + 0.3 * rand(c), "norm_bias": 0.3 * rand(c)}
    return inputs | {"inner_norm_weight": 1 + 0.3 * rand(d), "inner_norm_bias": 0.3 * rand(d)}


def call(inputs: Inputs, s: Sizes, *, backend: str, memory: str) -> tuple[Tensor, ...]:
    options: dict[str, Any] = dict(inputs, memory=memory, backend=backend)
    return (ops.mix_ffn(**options),)


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    sizes = 1, s["side"], s["side"], s["channels"], 4 * s["channels"]
    return floors.bytes_moved(*sizes, dtype), floors.flops(*sizes)


BENCH = OpBench(
    "mix_ffn",
    "t + FFN(LN(t)) with a 3 x 3 depthwise convolution, a skip and a norm on the hidden activations",
    draw,
    call,
    floor,
    memories=("fast", "lean"),
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
