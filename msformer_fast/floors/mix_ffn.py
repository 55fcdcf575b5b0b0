"""The least that the Mix-FFN must move and compute."""

from __future__ import annotations

import torch


def bytes_moved(images: int, height: int, width: int, channels: int, hidden: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that forward and backward read and write, everything once and the hidden activations never.

    forward: tokens and parameters read, the result written. backward: tokens, the result's gradient and parameters
    read, the gradients of tokens and parameters written.
    """
    tokens = images * height * width * channels
    parameters = 2 * channels * hidden + 13 * hidden + 3 * channels
    counts = {"forward": 2 * tokens + parameters, "backward": 3 * tokens + 2 * parameters}
    return {part: count * dtype.itemsize for part, count in counts.items()}


def flops(images: int, height: int, width: int, channels: int, hidden: int, *, kept: bool = True) -> dict[str, int]:
    """Operations of the two products and of the convolution; each twice over in the backward, the first one also made
    again where the hidden activations are not ``kept``."""
    product, taps = 2 * images * height * width * channels * hidden, 18 * images * height * width * hidden
    return {"forward": 2 * product + taps, "backward": (4 if kept else 5) * product + 3 * taps}
