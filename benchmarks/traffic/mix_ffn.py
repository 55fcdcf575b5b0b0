"""Bytes of the Mix-FFN's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.traffic import Kernels
from msformer_fast.dtypes import sum_dtype
from msformer_fast.ops.precision import input_precision


class _Sizes:
    """Bytes of what kernels read and write, every norm, bias, affine parameter and the residual there."""

    def __init__(
        self,
        images: int,
        height: int,
        width: int,
        channels: int,
        hidden: int,
        dtype: torch.dtype,
        strip: int | None,
        resident: bool,
    ) -> None:
        self.height, self.strip, size, wide = height, strip or height, dtype.itemsize, sum_dtype(dtype).itemsize
        self.row = images * width * channels * size
        self.hidden_row = 0 if resident else images * width * hidden * size
        self.inner_row = 2 * images * width * wide
        self.c, self.d, self.weight = channels * size, hidden * size, channels * hidden * size
        self.parameters = 2 * self.weight + 13 * self.d + 3 * self.c
        # a program's partial sums, in their dtype
        self.moments, self.sums_c, self.sums_d = 4 * channels * wide, 3 * channels * wide, 2 * hidden * wide
        self.products = (2 * channels + 11) * hidden * wide

    def strips(self, ahead: int) -> Iterator[tuple[int, int]]:
        """Rows that a launch computes, and those with their neighbours above and below, which it reads."""
        for begin in range(0, self.height, self.strip):
            first, end = min(begin + ahead, self.height) if begin else 0, min(begin + self.strip + ahead, self.height)
            if end > first:
                yield end - first, min(end + 1, self.height) - max(first - 1, 0)

    def expand(self, ahead: int) -> tuple[int, int, int]:
        rows = [r for r, _ in self.strips(ahead)]
        loaded = sum(rows) * self.row + len(rows) * (2 * self.c + self.weight + self.d)
        return len(rows), loaded, sum(rows) * self.hidden_row


def forward(
    images: int,
    height: int,
    width: int,
    channels: int,
    hidden: int,
    dtype: torch.dtype,
    *,
    programs: Mapping[str, int],
    statistics: bool = False,
    strip: int | None = None,
    resident: bool = False,
) -> Kernels:
    """Of the result.

    Args:
        programs: by part of the launch table, how many share the tiles (``programs_of``).
        statistics: of the result are gathered too.
        strip: rows of a strip; None for all.
        resident: without the bytes of the hidden activations, as where a strip of them stays in the cache.
    """
    s = _Sizes(images, height, width, channels, hidden, dtype, strip, resident)
    found = {"expand_kernel": s.expand(1)}
    strips, partials = list(s.strips(0)), programs["contract"] * s.moments if statistics else 0
    loaded = sum(rows * s.row + around * s.hidden_row for rows, around in strips)
    loaded += len(strips) * (12 * s.d + s.weight + s.c) + (len(strips) - 1) * partials
    found["contract_kernel"] = (len(strips), loaded, height * (s.row + s.inner_row) + len(strips) * partials)
    if statistics:
        found["merge_moments_kernel"] = (1, partials, s.moments // 2)
    return found


def backward(
    images: int,
    height: int,
    width: int,
    channels: int,
    hidden: int,
    dtype: torch.dtype,
    *,
    programs: Mapping[str, int],
    kept: bool = True,
    strip: int | None = None,
    resident: bool = False,
) -> Kernels:
    """Of the gradients of the tokens and of every parameter; ``kept``: the hidden activations
    are, so that there is one strip."""
    s = _Sizes(images, height, width, channels, hidden, dtype, None if kept else strip, resident)
    found = {} if kept else {"expand_kernel": s.expand(2)}
    # Rows ahead; parameters; maps of tokens and of hidden channels (with neighbours) read; a row written; partial sums.
    parts = {
        "hidden": (1, 12 * s.d + s.weight, 1, 1, s.hidden_row, s.sums_d),
        "token": (0, 9 * s.d + s.c + s.weight, 2, 1, s.row, s.sums_c),
        "product": (0, 12 * s.d + 2 * s.c, 2, 2, 0, s.products),
    }
    partials = 0
    for name, (ahead, parameters, tokens, hidden_maps, written, sums) in parts.items():
        strips = list(s.strips(ahead))
        inner = 0 if name == "token" else s.inner_row
        loaded = sum(rows * (tokens * s.row + inner) + around * hidden_maps * s.hidden_row for rows, around in strips)
        loaded += len(strips) * parameters + (len(strips) - 1) * programs[name] * sums
        found[f"{name}_gradient_kernel"] = (len(strips), loaded, height * written + len(strips) * programs[name] * sums)
        partials += programs[name] * sums
    found["finish_gradients_kernel"] = (1, partials, s.parameters)
    return found


def programs_of(
    images: int,
    height: int,
    width: int,
    channels: int,
    hidden: int,
    dtype: torch.dtype,
    multiprocessors: int,
    target: str | None,
) -> dict[str, int]:
    """How many share the tiles of whole maps, by part of the launch table; ``target`` None: in the interpreter."""
    from msformer_fast.kernels import mix_ffn as kernels

    programs = {}
    for part in ("contract", "hidden", "token", "product"):
        settings = kernels.launch_settings(part, channels, hidden, dtype, input_precision(dtype), target)
        tiles = images * -(-height // settings["TILE_H"]) * -(-width // settings["TILE_W"])
        programs[part] = kernels.programs_of(part, tiles, -(-hidden // settings["BLOCK_D"]), multiprocessors)
    return programs


def of_call(sizes: Sizes, dtype: torch.dtype, multiprocessors: int, target: str | None) -> dict[str, Kernels]:
    """Of the call that ``benchmarks/mix_ffn.py`` times with ``memory="fast"``."""
    call = 1, sizes["side"], sizes["side"], sizes["channels"], 4 * sizes["channels"], dtype
    programs = programs_of(*call, multiprocessors, target)
    return {"forward": forward(*call, programs=programs), "backward": backward(*call, programs=programs)}
