"""Bytes of the patch embedding's kernels, its batch norm's statistics given."""

from __future__ import annotations

import torch

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.traffic import Kernels
from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.ops.precision import input_precision


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
    partials = programs * s.embedded * s.wide
    return {
        "embed_kernel": (1, s.weight + s.windows + s.norm, partials),
        "add_partial_sums_kernel": (1, partials + channels * s.size, s.embedded * s.size),
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
    logits, partials = pixels * clusters * s.size, programs * 2 * clusters * s.wide
    loss = pixels * (2 * s.wide + label_dtype(clusters).itemsize) + s.wide if clustering else 0
    channel_sums, cluster_sums = channels * s.wide, 2 * clusters * s.wide
    return {
        "add_partial_sums_kernel": (2, grad + partials, channel_sums + cluster_sums),
        "weight_gradient_kernel": (1, s.weight + s.windows + grad + s.norm + channel_sums, s.weight + partials),
        "logits_gradient_kernel": (1, s.weight + grad + logits + s.norm + cluster_sums + loss, logits),
    }


def statistics(
    images: int, clusters: int, height: int, width: int, dtype: torch.dtype, *, multiprocessors: int
) -> Kernels:
    """Of the batch norm, of logits whose rows follow one another in memory."""
    from msformer_fast.kernels.batch_statistics import BLOCK_K, BLOCK_N
    from msformer_fast.kernels.launch import padded

    wide, blocks = sum_dtype(dtype).itemsize, -(-clusters // min(BLOCK_K, padded(clusters)))
    programs = max(1, min(2 * multiprocessors // blocks, images * -(-height * width // BLOCK_N)))
    logits, partials = images * clusters * height * width * dtype.itemsize, programs * 4 * clusters * wide
    return {"moments_kernel": (1, logits, partials), "merge_moments_kernel": (1, partials, 2 * clusters * wide)}


def programs_of(
    images: int,
    clusters: int,
    height: int,
    width: int,
    channels: int,
    patch: int,
    dtype: torch.dtype,
    multiprocessors: int,
    target: str | None,
) -> dict[str, int]:
    """Of "forward" and "backward", clusters of a pixel side by side in memory; ``target`` None: in the interpreter."""
    from msformer_fast.kernels.patch_embedding import launch_settings

    options = clusters, channels, patch, dtype, input_precision(dtype), True, target
    settings, rows = launch_settings("embed", *options), 2 * images * ((height - 1) // patch) * ((width - 1) // patch)
    tiles = -(-rows // settings["BLOCK_R"]) * -(-channels // settings["BLOCK_D"])
    blocks = -(-(patch**2) // settings["BLOCK_P"]) * -(-clusters // settings["BLOCK_K"])
    embed = max(1, min(multiprocessors // tiles, blocks))
    settings = launch_settings("weight_grads", *options)
    shared = 2 * multiprocessors // -(-clusters // settings["BLOCK_K"])
    return {"forward": embed, "backward": max(1, min(shared, -(-(patch**2) // settings["BLOCK_P"])))}


def of_call(sizes: Sizes, dtype: torch.dtype, multiprocessors: int, target: str | None) -> dict[str, Kernels]:
    """Of the call that ``benchmarks/patch_embedding.py`` times: statistics first, as many clusters as channels."""
    side, width = sizes["side"], sizes["channels"]
    call = 1, width, side, side, width, sizes["patch"], dtype
    programs = programs_of(*call, multiprocessors, target)
    return {
        "forward": statistics(*call[:4], dtype, multiprocessors=multiprocessors)
        | forward(*call, programs=programs["forward"]),
        "backward": backward(*call, programs=programs["backward"], clustering=False),
    }
