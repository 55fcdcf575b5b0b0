"""The least that windowed cross-scale attention must move and compute."""

from __future__ import annotations

import math

import torch

from msformer_fast.windows import Windows


def bytes_moved(
    images: int, heads: int, channels: int, windows: Windows, dtype: torch.dtype, *, bias: int = 0
) -> dict[str, int]:
    """Bytes that forward and backward read and write, everything once; a backward knows no more than the forward did.

    Args:
        channels: of a head; bias: bytes of a bias, whose gradient takes as many.
    """
    token = images * heads * channels * dtype.itemsize
    queries = token * math.prod(axis.queries for axis in windows.axes)
    keys = token * math.prod(axis.keys for axis in windows.axes)
    return {"forward": 2 * (queries + keys) + bias, "backward": 3 * queries + 4 * keys + 2 * bias}


def flops(images: int, heads: int, channels: int, windows: Windows) -> dict[str, int]:
    """Operations of the products of every query with all keys of its window: two, and five in the backward."""
    pairs = images * math.prod(axis.queries for axis in windows.axes) * windows.keys
    product = 2 * pairs * heads * channels
    return {"forward": 2 * product, "backward": 5 * product}
