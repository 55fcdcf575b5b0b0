"""The least that the clustering loss fused with its projection must move and compute."""

from __future__ import annotations

import torch

from msformer_fast.dtypes import label_dtype, sum_dtype


def bytes_moved(pixels: int, clusters: int, channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that forward and backward read and write with a scalar loss and a bias, everything once.

    Counted with the two numbers and the label of a pixel that the forward keeps for the backward.
    """
    wide = sum_dtype(dtype).itemsize
    features, weight = pixels * channels * dtype.itemsize, clusters * (channels + 1) * dtype.itemsize
    kept = pixels * (label_dtype(clusters).itemsize + 2 * wide)
    return {"forward": features + weight + kept + wide, "backward": 2 * (features + weight) + kept + wide}


def flops(pixels: int, clusters: int, channels: int) -> dict[str, int]:
    """Operations of the products: one in the forward; three in the backward, which makes the scores again."""
    product = 2 * pixels * clusters * channels
    return {"forward": product, "backward": 3 * product}
