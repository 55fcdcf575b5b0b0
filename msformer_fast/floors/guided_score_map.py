"""The least that the score map and what its losses read of it must move and compute."""

from __future__ import annotations

import torch

from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.floors import patch_embedding, score_map


def bytes_moved(
    images: int,
    height: int,
    width: int,
    channels: int,
    clusters: int,
    embedded: int,
    patch: int,
    dtype: torch.dtype,
    *,
    batch_norms: bool = True,
) -> dict[str, int]:
    """Bytes of forward and backward: those of the score map, those of the patch embedding, which has the logits'
    statistics from the first pass, and the two numbers and the label of a pixel that the backward reads again.
    """
    head = score_map.bytes_moved(images, height, width, channels, clusters, dtype, batch_norms=batch_norms)
    patches = patch_embedding.bytes_moved(images, clusters, height, width, embedded, patch, dtype)
    pixels = images * height * width
    kept = pixels * (label_dtype(clusters).itemsize + 2 * sum_dtype(dtype).itemsize)
    return {part: head[part] + patches[part] + kept for part in ("forward", "backward")}


def flops(
    images: int, height: int, width: int, channels: int, clusters: int, embedded: int, patch: int
) -> dict[str, int]:
    """Operations of the products."""
    head = score_map.flops(images, height, width, channels, clusters)
    patches = patch_embedding.flops(images, clusters, height, width, embedded, patch)
    return {part: head[part] + patches[part] for part in ("forward", "backward")}
