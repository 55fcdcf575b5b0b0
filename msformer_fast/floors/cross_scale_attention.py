"""The least that windowed cross-scale attention must move and compute."""

from __future__ import annotations

import torch

from msformer_fast.windows import Windows


def bytes_moved(
    images: int, heads: int, channels: int, windows: Windows, dtype: torch.dtype, *, bias: int = 0
) -> dict[str, int]:
    """Bytes that forward and backward read and write, everything once; a backward knows no more than the forward did.

    Args:
        channels: of a head; bias: bytes of a bias, whose gradient takes as many.
    """
    queries = images * windows.y.queries * windows.x.queries * heads * channels * dtype.itemsize
    keys = images * windows.y.keys * windows.x.keys * heads * channels * dtype.itemsize
    return {"forward": 2 * (queries + keys) + bias, "backward": 3 * queries + 4 * keys + 2 * bias}


def flops(images: int, heads: int, channels: int, windows: Windows) -> dict[str, int]:
    """Operations of the products of every query with all keys of its window: two, and five in the backward."""
    pairs = images * windows.y.queries * windows.x.queries * windows.keys
    product = 2 * pairs * heads * channels
    return {"forward": 2 * product, "backward": 5 * product}
