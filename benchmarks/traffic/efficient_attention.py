"""Bytes of efficient attention's kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.traffic import Kernels
from msformer_fast.dtypes import sum_dtype
from msformer_fast.ops.precision import input_precision


class _Sizes:
    """Bytes of what kernels read and write; every parameter is there."""

    def __init__(
        self,
        images: int,
        height: int,
        width: int,
        channels: int,
        dtype: torch.dtype,
        key_channels: int | None,
        value_channels: int | None,
        heads: int,
    ) -> None:
        self.images, self.size, self.wide = images, dtype.itemsize, sum_dtype(dtype).itemsize
        keys, values = key_channels or channels, value_channels or channels
        self.map = images * height * width * channels * self.size
        self.channel, self.key, self.value = channels * self.size, keys * self.size, values * self.size
        self.key_weight, self.value_weight = channels * self.key, channels * self.value
        # in the dtype of sums
        self.row = channels * self.wide
        self.rows = keys * self.row  # G, M and their gradients, of one image; also dWk and dWq
        self.numbers = keys * self.wide
        self.context = images * keys * values // heads
        self.stats = 3 * images * heads * height * width * self.wide


def forward(
    images: int,
    height: int,
    width: int,
    channels: int,
    dtype: torch.dtype,
    *,
    programs: Mapping[str, int],
    key_channels: int | None = None,
    value_channels: int | None = None,
    heads: int = 1,
    batch_norm: bool = False,
) -> Kernels:
    """``programs``: by part of the launch table, how many share an image's tokens (``programs_of``)."""
    s = _Sizes(images, height, width, channels, dtype, key_channels, value_channels, heads)
    partials = images * programs["context"] * (s.rows + 2 * s.numbers)
    normed = 2 * s.channel + 2 * s.row if batch_norm else 0
    return {
        "context_kernel": (1, s.map + s.key_weight + 2 * s.channel + normed, partials + (s.map if batch_norm else 0)),
        "merge_kernel": (
            1,
            partials + 2 * s.value_weight + s.value,
            2 * images * (s.rows + s.numbers) + s.context * s.size,
        ),
        "attend_kernel": (1, s.map + s.key_weight + s.key + 3 * s.channel + images * s.rows, s.map),
    }


def backward(
    images: int,
    height: int,
    width: int,
    channels: int,
    dtype: torch.dtype,
    *,
    programs: Mapping[str, int],
    key_channels: int | None = None,
    value_channels: int | None = None,
    heads: int = 1,
    batch_norm: bool = False,
    context: bool = True,
) -> Kernels:
    """``programs``: as above. ``context``: a gradient of the context arrives."""
    s = _Sizes(images, height, width, channels, dtype, key_channels, value_channels, heads)
    query_programs, token_programs, key_programs = (images * programs[part] for part in ("queries", "tokens", "keys"))
    matrices, context_gradient = query_programs * s.rows, s.context * s.wide
    biases, norms = query_programs * (s.numbers + s.row), token_programs * (4 if batch_norm else 2) * s.row
    normed = s.map + 2 * s.row if batch_norm else 0
    common, image_numbers = s.key_weight + 2 * s.channel, images * s.numbers
    gradients = 2 * (s.key_weight + s.value_weight) + 2 * s.key + s.value + 3 * s.channel
    kernels = {
        "query_gradients_kernel": (
            1,
            2 * s.map + common + s.key + images * s.rows,
            s.stats + 2 * matrices + biases,
        ),
        "merge_gradients_kernel": (
            1,
            matrices + images * s.rows + image_numbers + 2 * s.value_weight + (s.context * s.size if context else 0),
            2 * images * s.rows + context_gradient + image_numbers,
        ),
        "token_gradients_kernel": (
            1,
            2 * s.map + common + s.key_weight + s.key + 2 * images * s.rows + 2 * image_numbers + s.stats + normed,
            s.map + norms,
        ),
        "key_gradients_kernel": (1, s.map + common + images * s.rows + 2 * image_numbers, key_programs * s.rows),
        "finish_kernel": (
            1,
            2 * images * s.rows + context_gradient + s.value_weight + s.value + matrices + key_programs * s.rows
            + biases + norms,
            gradients + (2 * s.channel + 2 * s.row if batch_norm else 0),
        ),
    }  # fmt: skip
    if batch_norm:
        kernels["batch_norm_gradient_kernel"] = (1, 2 * s.map + 4 * s.row + s.channel, s.map)
    return kernels


def programs_of(
    images: int, tokens: int, channels: int, dtype: torch.dtype, multiprocessors: int, target: str | None
) -> dict[str, int]:
    """How many share an image's tokens, by part of the launch table; one head, keys and values of x's width.

    ``target`` None: in the interpreter.
    """
    from msformer_fast.kernels import efficient_attention_table as table
    from msformer_fast.kernels.launch import product_kind

    shape, kind = (
        table.Shape(images, tokens, channels, channels, channels, 1),
        product_kind(dtype, input_precision(dtype)),
    )
    programs = {}
    for part in ("context", "queries", "tokens", "keys"):
        settings = table.launch_settings(part, shape, kind, target)
        programs[part] = table.programs_of(shape, settings, table.chunks_of(part, shape, settings), multiprocessors)
    return programs


def of_call(sizes: Sizes, dtype: torch.dtype, multiprocessors: int, target: str | None) -> dict[str, Kernels]:
    """Of the call that ``benchmarks/efficient_attention.py`` times: nobody asks for the context."""
    side, channels = sizes["side"], sizes["channels"]
    programs = programs_of(1, side * side, channels, dtype, multiprocessors, target)
    call = 1, side, side, channels, dtype
    return {
        "forward": forward(*call, programs=programs),
        "backward": backward(*call, programs=programs, context=False),
    }
