"""Bytes of the kernels of the clustering loss fused with its projection, with a bias and a scalar loss."""

from __future__ import annotations

from typing import NamedTuple

import torch

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.traffic import Kernels
from msformer_fast.benchmarks.traffic.clustering_loss import finish, written_of_a_pixel
from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.ops.precision import input_precision


class Programs(NamedTuple):
    """Forward: tiles of the pixels. Weight: programs that share them in the weight's gradient, each with its sums."""

    forward: int
    weight: int


def forward(
    pixels: int, clusters: int, channels: int, dtype: torch.dtype, *, programs: int, images: int = 1
) -> Kernels:
    """``pixels``: of all images; ``programs``: see :class:`Programs`. Two numbers of a pixel are kept."""
    size, wide = dtype.itemsize, sum_dtype(dtype).itemsize
    loaded = (pixels * channels + clusters * (channels + 1)) * size
    stored = pixels * (written_of_a_pixel(clusters) + 2 * wide) + programs * wide
    found: Kernels = {"linear_loss_kernel": (1, loaded, stored)}
    return found | finish(clusters, dtype, programs=programs, images=images)


def backward(pixels: int, clusters: int, channels: int, dtype: torch.dtype, *, programs: int) -> Kernels:
    """``programs``: of the weight; the sum of their partial sums is an operator of PyTorch's, and not in here."""
    size, wide = dtype.itemsize, sum_dtype(dtype).itemsize
    features, kept = pixels * channels * size, pixels * (label_dtype(clusters).itemsize + 2 * wide)
    loaded = features + clusters * (channels + 1) * size + kept + wide
    return {
        "features_gradient_kernel": (1, loaded, features),
        "weight_gradient_kernel": (1, loaded, programs * clusters * (channels + 1) * wide),
    }


def programs_of(
    pixels: int, clusters: int, channels: int, dtype: torch.dtype, multiprocessors: int, target: str | None
) -> Programs:
    """Of one image, channels of a pixel side by side in memory; ``target`` None: in the interpreter."""
    from msformer_fast.kernels.linear_clustering_loss import launch_settings

    options = clusters, dtype, target, channels, input_precision(dtype)
    tiles = -(-pixels // launch_settings("loss", *options)["BLOCK_P"])
    settings = launch_settings("weight", *options)
    blocks = -(-clusters // settings["BLOCK_K"]) * -(-channels // settings["BLOCK_O"])
    return Programs(tiles, max(1, min(-(-2 * multiprocessors // blocks), -(-pixels // settings["BLOCK_P"]))))


def of_call(sizes: Sizes, dtype: torch.dtype, multiprocessors: int, target: str | None) -> dict[str, Kernels]:
    """Of the call that ``benchmarks/linear_clustering_loss.py`` times: as many clusters as channels."""
    call = sizes["side"] ** 2, sizes["channels"], sizes["channels"], dtype
    programs = programs_of(*call, multiprocessors, target)
    return {
        "forward": forward(*call, programs=programs.forward),
        "backward": backward(*call, programs=programs.weight),
    }
