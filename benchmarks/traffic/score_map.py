"""Bytes of the score map's kernels."""

from __future__ import annotations

import torch

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.traffic import Kernels
from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.ops.precision import input_precision


def forward(
    images: int,
    height: int,
    width: int,
    channels: int,
    clusters: int,
    dtype: torch.dtype,
    *,
    norms: bool,
    gather: bool,
    programs: int,
) -> Kernels:
    """Of the logits; ``programs``: that share the tiles."""
    size, wide = dtype.itemsize, sum_dtype(dtype).itemsize
    fine, coarse = images * height * width, images * ((height + 1) // 2) * ((width + 1) // 2)
    weights = 5 * clusters * channels * size + (8 * channels * wide if norms else 0)
    reads = (fine + coarse) * channels * size + weights
    writes = fine * clusters * size
    if not gather:
        return {"scores_kernel": (1, reads, writes)}
    partials = programs * (1 + 4 * clusters) * wide
    writes += fine * (label_dtype(clusters).itemsize + 1 + 2 * wide) + partials
    flags = images * clusters
    gathered = (1, partials + flags, (3 * clusters + 1) * wide + 4 * images)
    return {"scores_kernel": (1, reads, writes), "gathered_kernel": gathered}


def backward(
    images: int,
    height: int,
    width: int,
    channels: int,
    clusters: int,
    dtype: torch.dtype,
    *,
    norms: bool,
    programs: int,
) -> Kernels:
    """Of everything from the logits' gradient; ``programs``: that share the tiles of one position."""
    size, wide = dtype.itemsize, sum_dtype(dtype).itemsize
    fine, coarse = images * height * width, images * ((height + 1) // 2) * ((width + 1) // 2)
    maps, grad = (fine + coarse) * channels * size, fine * clusters * size
    matrix, vectors = clusters * channels, channels * wide
    partials = programs * 4 * (2 * matrix + clusters) * wide
    # Without a batch norm the sums need no weight and leave no vectors.
    return {
        "weight_sums_kernel": (1, grad + maps + 8 * vectors * norms, partials),
        "weight_finish_kernel": (
            1,
            partials + (5 * matrix * size + 8 * vectors) * norms,
            4 * matrix * wide + matrix * size + 4 * matrix * wide * norms,
        ),
        "unfold_kernel": (
            1,
            4 * matrix * wide + (matrix + 4 * channels**2) * size + 4 * matrix * wide * norms,
            (4 * channels**2 + matrix) * size + 4 * vectors * norms,
        ),
        "map_gradients_kernel": (
            1,
            grad + 5 * matrix * size + (maps + 12 * vectors) * norms,
            maps,
        ),
    }


def programs_of(
    images: int,
    height: int,
    width: int,
    channels: int,
    clusters: int,
    dtype: torch.dtype,
    multiprocessors: int,
    target: str | None,
    *,
    gather: bool,
) -> dict[str, int]:
    """Of "forward" and "backward", as the two take them; ``target`` None: in the interpreter."""
    from msformer_fast.kernels.score_map import launch_settings

    options = clusters, channels, dtype, input_precision(dtype), target
    cells, found = ((height + 1) // 2) * ((width + 1) // 2), {}
    for part, kernel in (("forward", "gather" if gather else "scores"), ("backward", "weight_sums")):
        settings = launch_settings(kernel, *options)
        tiles, blocks = images * -(-cells // settings["BLOCK_N"]), -(-clusters // settings["BLOCK_K"])
        if part == "forward":
            found[part] = min(4 * tiles, -(-2 * multiprocessors // blocks))
        else:
            found[part] = min(tiles, -(-multiprocessors // (4 * blocks)))
    return found


def of_call(sizes: Sizes, dtype: torch.dtype, multiprocessors: int, target: str | None) -> dict[str, Kernels]:
    """Of the call that ``benchmarks/score_map.py`` times: no batch norm, nothing gathered."""
    call = 1, sizes["side"], sizes["side"], sizes["channels"], sizes["channels"], dtype
    programs = programs_of(*call, multiprocessors, target, gather=False)
    return {
        "forward": forward(*call, norms=False, gather=False, programs=programs["forward"]),
        "backward": backward(*call, norms=False, programs=programs["backward"]),
    }
