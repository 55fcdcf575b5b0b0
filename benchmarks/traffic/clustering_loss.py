"""Bytes of the clustering loss's kernels, with a scalar loss."""

from __future__ import annotations

import torch

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.traffic import Kernels
from msformer_fast.dtypes import label_dtype, sum_dtype


def forward(pixels: int, clusters: int, dtype: torch.dtype, *, programs: int, images: int = 1) -> Kernels:
    """``pixels``: of all images; ``programs``: one a tile of pixels (``programs_of``), each with a sum of the loss."""
    logits, results = pixels * clusters * dtype.itemsize, pixels * written_of_a_pixel(clusters)
    partials = programs * sum_dtype(dtype).itemsize
    return {"loss_kernel": (1, logits, results + partials)} | finish(clusters, dtype, programs=programs, images=images)


def backward(pixels: int, clusters: int, dtype: torch.dtype) -> Kernels:
    """Of the logits' gradient, from one number."""
    logits = pixels * clusters * dtype.itemsize
    return {"gradient_kernel": (1, logits + sum_dtype(dtype).itemsize, logits)}


def written_of_a_pixel(clusters: int) -> int:
    """The label, and the flag that its cluster occurs: every pixel writes one."""
    return label_dtype(clusters).itemsize + 1


def finish(clusters: int, dtype: torch.dtype, *, programs: int, images: int) -> Kernels:
    """The sum of the partial sums, and the count of each image's flags in 32 bits."""
    wide = sum_dtype(dtype).itemsize
    return {"finish_kernel": (1, programs * wide + images * clusters, wide + 4 * images)}


def programs_of(pixels: int, clusters: int, dtype: torch.dtype, target: str | None) -> int:
    """Tiles of one image's pixels, scores of a pixel side by side in memory; ``target`` None: in the interpreter."""
    from msformer_fast.kernels.clustering_loss import launch_settings

    return -(-pixels // launch_settings("loss", clusters, dtype, target)["BLOCK_P"])


def of_call(sizes: Sizes, dtype: torch.dtype, multiprocessors: int, target: str | None) -> dict[str, Kernels]:
    """Of the call that ``benchmarks/clustering_loss.py`` times."""
    pixels, clusters = sizes["side"] ** 2, sizes["channels"]
    programs = programs_of(pixels, clusters, dtype, target)
    return {
        "forward": forward(pixels, clusters, dtype, programs=programs),
        "backward": backward(pixels, clusters, dtype),
    }
