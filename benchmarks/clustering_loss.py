"""Speed of the clustering loss: ``pytest benchmarks/clustering_loss.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast import ops
from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.floors import clustering_loss as floors


def draw(s: Sizes, rand: Random) -> Inputs:
    """Scores as the head writes them, clusters neighbours in memory; as many clusters as channels."""
    return {"logits": rand(1, s["side"], s["side"], s["channels"], scale=3.0)}


def call(inputs: Inputs, s: Sizes, *, backend: str) -> tuple[Tensor, ...]:
    return (ops.clustering_loss(inputs["logits"], cluster_dim=-1, backend=backend)[0],)


def cross_entropy(inputs: Inputs, s: Sizes) -> tuple[Tensor, ...]:
    """What a training script has: without the labels' count."""
    logits = inputs["logits"].flatten(0, 2).float()
    return (F.cross_entropy(logits, logits.detach().argmax(1)),)


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    pixels, clusters = s["side"] ** 2, s["channels"]
    return floors.bytes_moved(pixels, clusters, dtype), floors.flops(pixels, clusters)


BENCH = OpBench(
    "clustering_loss",
    "loss, label map and label count of a pixel's cluster scores",
    draw,
    call,
    floor,
    rivals={"cross-entropy": cross_entropy},
    compiled_rivals=("cross-entropy",),
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
