"""Bytes of the patch embedding's kernels, its batch norm's statistics given."""

from __future__ import annotations

import torch

from msformer_fast.benchmarks.traffic.score_map import Kernels
from msformer_fast.dtypes import label_dtype, sum_dtype


class _Sizes:
    def __init__(
        self, images: int, clusters: int, height: int, width: int, channels: int, patch: int, dtype: torch.dtype
    ) -> None:
        rows, columns = (height - 1) // patch, (width - 1) // patch
        seen = 2 * rows * columns * patch**2 - (rows * patch - 1) * (columns * patch - 1)  # by either window
        self.size, self.wide = dtype.itemsize, sum_dtype(dtype).itemsize
        self.windows = images * seen * clusters * self.size
        self.weight = channels * patch**2 * clusters * self.size
        self.embedded = 2 * images * rows * columns * channels
        self.norm = 4 * clusters * self.wide


def forward(
    images: int, clusters: int, height: int, width: int, channels: int, patch: int, dtype: torch.dtype, *, programs: int
) -> Kernels:
    """``programs``: that share the columns of the weight."""
    s = _Sizes(images, clusters, height, width, channels, patch, dtype)
    slots = programs * s.embedded * s.wide
    return {
        "embed_kernel": (1, s.weight + s.windows + s.norm, slots),
        "sum_slots_kernel": (1, slots + channels * s.size, s.embedded * s.size),
    }


def backward(
    images: int,
    clusters: int,
    height: int,
    width: int,
    channels: int,
    patch: int,
    dtype: torch.dtype,
    *,
    programs: int,
    clustering: bool,
) -> Kernels:
    """``programs``: that share the positions of a patch; ``clustering``: that loss's gradient is added."""
    s = _Sizes(images, clusters, height, width, channels, patch, dtype)
    pixels, grad = images * height * width, s.embedded * s.size
    logits, slots = pixels * clusters * s.size, programs * 2 * clusters * s.wide
    loss = pixels * (2 * s.wide + label_dtype(clusters).itemsize) + s.wide if clustering else 0
    channel_sums, cluster_sums = channels * s.wide, 2 * clusters * s.wide
    return {
        "sum_slots_kernel": (2, grad + slots, channel_sums + cluster_sums),
        "weight_gradient_kernel": (1, s.weight + s.windows + grad + s.norm + channel_sums, s.weight + slots),
        "logits_gradient_kernel": (1, s.weight + grad + logits + s.norm + cluster_sums + loss, logits),
    }
