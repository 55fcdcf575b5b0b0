"""The least that the patch embedding of the stability loss must move and compute."""

from __future__ import annotations

import torch


def bytes_moved(
    images: int, clusters: int, height: int, width: int, channels: int, patch: int, dtype: torch.dtype
) -> dict[str, int]:
    """Bytes of each part, the batch norm's statistics given to the forward.

    statistics: logits read. forward: logits and weight read, queries and keys written. backward: the sums over pixels
    must be known before the first gradient of the logits, so logits, weight and the gradients of queries and keys are
    read twice; the gradients of weight and logits are written.
    """
    logits, weight = images * clusters * height * width, channels * patch * patch * clusters
    embedded = 2 * images * ((height - 1) // patch) * ((width - 1) // patch) * channels
    counts = {
        "statistics": logits,
        "forward": logits + weight + embedded,
        "backward": 3 * (logits + weight) + 2 * embedded,
    }
    return {part: count * dtype.itemsize for part, count in counts.items()}


def flops(images: int, clusters: int, height: int, width: int, channels: int, patch: int) -> dict[str, int]:
    """Operations of the products: one in the forward; those for the gradients of weight and patches in the backward."""
    rows = 2 * images * ((height - 1) // patch) * ((width - 1) // patch)
    product = 2 * rows * channels * patch * patch * clusters
    return {"forward": product, "backward": 2 * product}
