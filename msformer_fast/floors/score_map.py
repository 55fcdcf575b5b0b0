"""The least that the two-scale head must move and compute."""

from __future__ import annotations

import torch


def bytes_moved(
    images: int, height: int, width: int, channels: int, clusters: int, dtype: torch.dtype, *, batch_norms: bool = False
) -> dict[str, int]:
    """Bytes that forward and backward read and write, everything once.

    Where the maps are read through batch norms, the backward must know sums over the pixels before the first gradient
    of a map, so the maps and the gradient of the logits are read twice.
    """
    fine, coarse = height * width, ((height + 1) // 2) * ((width + 1) // 2)
    maps, logits = images * (fine + coarse) * channels, images * fine * clusters
    weights = 4 * channels**2 + 2 * clusters * channels
    norms = 8 * channels if batch_norms else 0
    reads = (2 if batch_norms else 1) * (maps + logits)
    counts = {
        "forward": maps + weights + norms + logits,
        "backward": reads + weights + norms + maps + weights + norms // 2,
    }
    return {part: count * dtype.itemsize for part, count in counts.items()}


def flops(images: int, height: int, width: int, channels: int, clusters: int) -> dict[str, int]:
    """Operations of the products with every pixel: one for each branch; each twice over in the backward."""
    product = 2 * images * height * width * channels * clusters
    return {"forward": 2 * product, "backward": 4 * product}
