"""Speed of the patch embedding: ``pytest benchmarks/patch_embedding.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from msformer_fast import ops
from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.floors import patch_embedding as floors


def draw(s: Sizes, rand: Random) -> Inputs:
    """Scores as the head writes them: a view of clusters first on clusters last."""
    width = s["channels"]
    length = s["patch"] ** 2 * width
    inputs = {"logits": rand(1, s["side"], s["side"], width).permute(0, 3, 1, 2)}
    inputs |= {"weight": rand(width, length, scale=length**-0.5), "bias": rand(width)}
    return inputs | {"norm_weight": 1 + 0.3 * rand(width), "norm_bias": rand(width)}


def call(inputs: Inputs, s: Sizes, *, backend: str) -> tuple[Tensor, ...]:
    options: dict[str, Any] = dict(inputs, patch=s["patch"], backend=backend)
    return ops.patch_embedding(**options)


def convolutions(inputs: Inputs, s: Sizes) -> tuple[Tensor, ...]:
    """Two convolutions whose stride is their size, as vision transformers cut patches."""
    logits, weight, bias, norm_weight, norm_bias = inputs.values()
    patch = s["patch"]
    size = (logits.shape[2] - 1) // patch * patch
    kernel = rearrange(weight, "c (p1 p2 k) -> c k p1 p2", p1=patch, p2=patch)
    normed = F.batch_norm(logits, None, None, norm_weight, norm_bias, True)
    embedded = (
        F.conv2d(normed[:, :, at : at + size, at : at + size], kernel, bias, stride=patch).flatten(2).mT
        for at in (1, 0)
    )
    return tuple(embedded)


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    sizes = 1, s["channels"], s["side"], s["side"], s["channels"], s["patch"]
    moved, flops = floors.bytes_moved(*sizes, dtype), floors.flops(*sizes)
    return {"forward": moved["statistics"] + moved["forward"], "backward": moved["backward"]}, flops


BENCH = OpBench(
    "patch_embedding",
    "patches of the batch-normed score map, cut twice one diagonal step apart, projected",
    draw,
    call,
    floor,
    rivals={"convolutions": convolutions},
    sizes={"patch": 32},
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
