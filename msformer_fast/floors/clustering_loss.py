"""The least that the clustering loss must move and compute."""

from __future__ import annotations

import torch

from msformer_fast.dtypes import label_dtype, sum_dtype


def bytes_moved(pixels: int, clusters: int, dtype: torch.dtype, *, images: int = 1) -> dict[str, int]:
    """Bytes that forward and backward read and write with a scalar loss, everything once.

    Args:
        pixels: of all images together.
        clusters: K.
        dtype: of the logits.
        images: B, for the label counts.
    """
    logits, loss = pixels * clusters * dtype.itemsize, sum_dtype(dtype).itemsize
    labels = pixels * label_dtype(clusters).itemsize
    return {"forward": logits + labels + loss + 4 * images, "backward": 2 * logits + loss}


def flops(pixels: int, clusters: int) -> dict[str, int]:
    """Operations on the logits: compare, subtract, exponential (as one) and add; in the backward a product too."""
    return {"forward": 4 * pixels * clusters, "backward": 5 * pixels * clusters}
