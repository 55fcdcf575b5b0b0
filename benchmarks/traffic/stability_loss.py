"""Bytes of the stability loss's kernels."""

from __future__ import annotations

import torch

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.traffic import Kernels
from msformer_fast.dtypes import sum_dtype
from msformer_fast.ops.precision import input_precision

#: Pixels of a patch's side, as the authors cut them.
PATCH = 32


def forward(images: int, patches: int, channels: int, dtype: torch.dtype, *, partials: int) -> Kernels:
    """``partials``: programs."""
    wide, pair = sum_dtype(dtype).itemsize, 2 * images * patches * channels * dtype.itemsize
    rows = 2 * images * patches * wide
    return {
        "stability_kernel": (1, pair, rows + partials * wide),
        "mean_loss_kernel": (1, partials * wide, wide),
    }


def backward(images: int, patches: int, channels: int, dtype: torch.dtype) -> Kernels:
    """Two launches: one for the queries' gradient, one for the keys'."""
    wide, pair = sum_dtype(dtype).itemsize, 2 * images * patches * channels * dtype.itemsize
    rows = 2 * images * patches * wide
    return {"gradient_kernel": (2, 2 * (pair + rows + wide), pair)}


def programs_of(images: int, patches: int, channels: int, dtype: torch.dtype, target: str | None) -> int:
    """Of the forward, each with a partial sum of the loss; ``target`` None: in the interpreter."""
    from msformer_fast.kernels.stability_loss import launch_settings

    settings = launch_settings("forward", channels, dtype, input_precision(dtype), target)
    return images * -(-patches // settings["BLOCK_M"])


def tokens(sizes: Sizes) -> int:
    """Patches of the call that is timed."""
    return ((sizes["side"] - 1) // sizes.get("patch", PATCH)) ** 2


def of_call(sizes: Sizes, dtype: torch.dtype, multiprocessors: int, target: str | None) -> dict[str, Kernels]:
    """Of the call that ``benchmarks/stability_loss.py`` times."""
    call = 1, tokens(sizes), sizes["channels"], dtype
    return {"forward": forward(*call, partials=programs_of(*call, target)), "backward": backward(*call)}
