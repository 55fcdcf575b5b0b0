"""Speed of the two-scale head: ``pytest benchmarks/score_map.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from msformer_fast import ops
from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.floors import score_map as floors


def draw(s: Sizes, rand: Random) -> Inputs:
    side, c = s["side"], s["channels"]
    half = (side + 1) // 2
    inputs = {"coarse": rand(1, half, half, c), "fine": rand(1, side, side, c)}
    return inputs | {"up_weight": rand(4 * c, c, scale=c**-0.5), "head_weight": rand(c, 2 * c, scale=c**-0.5)}


def call(inputs: Inputs, s: Sizes, *, backend: str) -> tuple[Tensor, ...]:
    return (ops.score_map(*inputs.values(), backend=backend),)


def convolutions(inputs: Inputs, s: Sizes) -> tuple[Tensor, ...]:
    """A transposed convolution, a concatenation and a 1 x 1 convolution, as decoders are usually written."""
    coarse, fine, up_weight, head_weight = inputs.values()
    kernel = rearrange(up_weight, "(p1 p2 o) i -> i o p1 p2", p1=2, p2=2)
    up = F.conv_transpose2d(coarse.permute(0, 3, 1, 2), kernel, stride=2)[:, :, : fine.shape[1], : fine.shape[2]]
    both = torch.cat([up, fine.permute(0, 3, 1, 2)], 1)
    return (F.conv2d(both, head_weight[:, :, None, None]).permute(0, 2, 3, 1),)


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    sizes = 1, s["side"], s["side"], s["channels"], s["channels"]
    return floors.bytes_moved(*sizes, dtype), floors.flops(*sizes)


BENCH = OpBench(
    "score_map",
    "cluster scores from the upsampled coarse map and the fine map",
    draw,
    call,
    floor,
    rivals={"convolutions": convolutions},
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
