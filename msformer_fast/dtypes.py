"""Which dtype holds labels, and which holds sums."""

from __future__ import annotations

import torch


def label_dtype(clusters: int) -> torch.dtype:
    """Smallest integer dtype of PyTorch that holds the labels ``0 .. clusters - 1``."""
    if clusters <= 2**8:
        return torch.uint8
    return torch.int16 if clusters <= 2**15 else torch.int32


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What losses, sums and statistics of a floating-point dtype are taken in: float32 or better."""
    return torch.float64 if dtype == torch.float64 else torch.float32
