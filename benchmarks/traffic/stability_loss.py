"""Bytes of the stability loss's kernels."""

from __future__ import annotations

import torch

from msformer_fast.benchmarks.traffic.score_map import Kernels
from msformer_fast.dtypes import sum_dtype


def forward(images: int, patches: int, channels: int, dtype: torch.dtype, *, slots: int) -> Kernels:
    """``slots``: programs."""
    wide, pair = sum_dtype(dtype).itemsize, 2 * images * patches * channels * dtype.itemsize
    rows = 2 * images * patches * wide
    return {
        "stability_kernel": (1, pair, rows + slots * wide),
        "mean_loss_kernel": (1, slots * wide, wide),
    }


def backward(images: int, patches: int, channels: int, dtype: torch.dtype) -> Kernels:
    """Two launches: one for the queries' gradient, one for the keys'."""
    wide, pair = sum_dtype(dtype).itemsize, 2 * images * patches * channels * dtype.itemsize
    rows = 2 * images * patches * wide
    return {"gradient_kernel": (2, 2 * (pair + rows + wide), pair)}
