"""Strips of a map that stay in the cache, and rows of a map with one more row above and below."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

#: Size aimed at for the widest tensor of a strip: a few of them fit in the last-level cache of a laptop. Measured flat
#: from 2.5 to 9 MB on the machine of the README, slower below, and more memory above.
STRIP_BYTES = 4 * 2**20


def strips(length: int, bytes_each: int) -> Iterator[tuple[int, int]]:
    """``(first, last)`` of strips of ``length`` rows of ``bytes_each``, as even as can be."""
    count = -(-length // rows_of_a_strip(length, bytes_each)) if length else 0
    for index in range(count):
        yield index * length // count, (index + 1) * length // count


def rows_of_a_strip(length: int, bytes_each: int) -> int:
    """The most rows that one of :func:`strips` has."""
    return min(max(STRIP_BYTES // max(bytes_each, 1), 1), max(length, 1))


class HaloRows:
    """Rows of a map that is made row by row, seen in strips with one more row above and below; zeros beyond it.

    Args:
        height: rows of the map.
        strip: most rows of a strip.
        row: a tensor with the shape, dtype and device of one row.
        fill: ``fill(first, last, out)`` writes the rows ``first`` to ``last`` into ``out``; called for ranges that
            follow one another, once for each row.
        full: (height + 2, ...), takes every row and the two of zeros, where the map is to be kept; else a window rolls.
    """

    def __init__(
        self,
        height: int,
        strip: int,
        row: Tensor,
        fill: Callable[[int, int, Tensor], None],
        full: Tensor | None = None,
    ) -> None:
        self._height, self._fill, self._full = height, fill, full
        self._window = row.new_empty((strip + 2, *row.shape)) if full is None else full
        self._start = 0  # the row of the map in self._window[1]
        self._done = 0
        self._window[0].zero_()
        if full is not None:
            full[-1].zero_()

    def advance(self, first: int, last: int) -> Tensor:
        """Rows ``first - 1`` to ``last`` (included), for strips that follow one another from the top."""
        if self._full is None and first > self._start:
            # The last two rows of the strip before; cloned, as they overlap for strips of one row.
            held = first - self._start
            self._window[:2] = self._window[held : held + 2].clone()
            self._start = first
        stop = min(last + 1, self._height)
        if stop > self._done:
            self._fill(self._done, stop, self._window[self._done - self._start + 1 : stop - self._start + 1])
            self._done = stop
        window = self._window[first - self._start : last - self._start + 2]
        if last == self._height:
            window[-1].zero_()
        return window


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over the last axis with its mean and reciprocal standard deviation."""
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)


def layer_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the input, the weight and the bias of a LayerNorm over the last axis."""
    mask = [True, weight is not None, bias is not None]
    return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, weight, bias, mask)
