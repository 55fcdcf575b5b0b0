"""Which queries meet which keys in windowed cross-scale attention: the geometry, axis by axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msformer_fast.errors import InputError

#: Ratios keys / queries that are tried in this order; the coarser map of one of them may have been rounded up.
RATIOS = ((1, 1), (1, 2), (2, 1), (1, 4), (4, 1))

#: What becomes of positions outside the map: they are masked out, or take part with given vectors.
OUTSIDE = ("ignore", "pad")

#: Whether maps are padded to whole windows before the cyclic shift (MONAI) or after it (timm).
ORDERS = ("pad_roll", "roll_pad")


def product(sizes: Sequence[int]) -> int:
    """All sizes multiplied, as ``math.prod``, which ``torch.compile`` cannot trace with sizes that it does not know."""
    found = 1
    for size in sizes:
        found = found * size
    return found


class Roll(NamedTuple):
    """How the rows of one map stand on a rolled axis.

    Attributes:
        size: rows of the map; ``cycle``: rows that are rolled, the padding among them or not.
        shift: by how many, less than the cycle.
        seam: the rolled row from which on rows came over from the other edge; ``None`` without a shift.
    """

    size: int
    cycle: int
    shift: int
    seam: int | None


@dataclass(frozen=True)
class Axis:
    """One axis of the windows.

    Attributes:
        queries, keys: rows of the query map and of the key map.
        window, shift: in query rows; ``halo``: in key rows, on each side.
        p, q: keys / queries in lowest terms.
    """

    queries: int
    keys: int
    window: int
    shift: int
    halo: int
    p: int
    q: int

    @property
    def count(self) -> int:
        """Windows."""
        return (self.queries + self.window - 1) // self.window

    @property
    def core(self) -> int:
        """Key rows of a window, halo excluded."""
        return self.window * self.p // self.q

    @property
    def reach(self) -> int:
        """Key rows of a window, halo included."""
        return self.core + 2 * self.halo

    @property
    def key_shift(self) -> int:
        return self.shift * self.p // self.q

    @property
    def offsets(self) -> int:
        """Different values of ``p * query row - q * key row`` within a window, counted from the lowest."""
        return (self.window - 1) * self.p + (self.reach - 1) * self.q + 1

    @property
    def whole(self) -> bool:
        """Whether no key row of a window lies outside the map."""
        return self.queries == self.count * self.window and self.keys == self.count * self.core and self.halo == 0


#: What a map has on an axis that only maps of more axes have.
ONE_ROW = Axis(queries=1, keys=1, window=1, shift=0, halo=0, p=1, q=1)

#: The axes of a map, slowest first: a map of fewer has the last of them.
AXES = ("depth", "height", "width")


@dataclass(frozen=True)
class Windows:
    """All axes, and the two rules that they share; see :func:`msformer_fast.ops.cross_scale_attention`.

    Attributes:
        axes: one to three, slowest first.
        outside, order: the rules.
    """

    axes: tuple[Axis, ...]
    outside: str
    order: str

    @property
    def y(self) -> Axis:
        """Rows of a map or volume."""
        return self.axes[-2]

    @property
    def x(self) -> Axis:
        """Columns."""
        return self.axes[-1]

    @property
    def count(self) -> int:
        """Windows of an image."""
        return product([axis.count for axis in self.axes])

    @property
    def queries(self) -> int:
        """Queries of a window."""
        return product([axis.window for axis in self.axes])

    @property
    def keys(self) -> int:
        """Keys of a window, halo included."""
        return product([axis.reach for axis in self.axes])

    @property
    def core(self) -> int:
        """Keys of a window, halo excluded."""
        return product([axis.core for axis in self.axes])

    @property
    def whole(self) -> bool:
        """Whether no key of a window lies outside the map."""
        return all(axis.whole for axis in self.axes)

    @property
    def pads(self) -> bool:
        """Whether vectors for positions outside the map are read."""
        return self.outside == "pad" and not self.whole

    def roll(self, axis: Axis, of_keys: bool = False) -> Roll:
        """Of the queries or of the keys of one of the axes."""
        size, window, shift = axis.queries, axis.window, axis.shift
        if of_keys:
            size, window, shift = axis.keys, axis.core, axis.key_shift
        padded = axis.count * window
        cycle = padded if self.order == "pad_roll" else size
        # Swin counts from the end of the padded map, whatever stands there; where padding is ignored, from the map's.
        end = size if self.order == "roll_pad" and self.outside == "ignore" else padded
        return Roll(size, cycle, shift % cycle, end - shift % end if shift else None)

    @property
    def table(self) -> int:
        """Entries of a relative position bias table."""
        return product([axis.offsets for axis in self.axes])


def windows_of(
    op: str,
    queries: Sequence[int],
    keys: Sequence[int],
    window: int | Sequence[int],
    halo: int | Sequence[int] = 0,
    shift: int | Sequence[int] = 0,
    outside: str = "ignore",
    order: str = "pad_roll",
) -> Windows:
    """The windows of two maps of ([[depth,] height,] width).

    Raises:
        InputError: a window that covers no whole number of keys (the nearest that do are named), a shift that is not
            less than the window or moves no whole number of keys, a negative halo, an unknown rule.
    """
    if outside not in OUTSIDE:
        raise InputError(f"{op}: outside must be one of {', '.join(OUTSIDE)}; got {outside!r}")
    if order not in ORDERS:
        raise InputError(f"{op}: order must be one of {', '.join(ORDERS)}; got {order!r}")
    names = AXES[-len(queries) :]
    sides = [_sides(op, name, value, names) for name, value in (("window", window), ("halo", halo), ("shift", shift))]
    axes = tuple(_axis(op, *values) for values in zip(names, queries, keys, *sides, strict=True))
    return Windows(axes, outside, order)


def _sides(op: str, name: str, value: int | Sequence[int], axes: Sequence[str]) -> tuple[int, ...]:
    """One number of each axis."""
    found = (value,) * len(axes) if not isinstance(value, Sequence) else tuple(value)
    if len(found) != len(axes) or not all(isinstance(size, int) for size in found):
        several = {1: "one number (width)", 2: "a pair (height, width)", 3: "three (depth, height, width)"}[len(axes)]
        raise InputError(f"{op}: {name} must be an integer or {several} of them, got {value!r}")
    return found


def _axis(op: str, axis: str, queries: int, keys: int, window: int, halo: int, shift: int) -> Axis:
    if window < 1:
        raise InputError(f"{op}: window must be at least 1, got {window} ({axis})")
    if queries < 1 or keys < 1:
        raise InputError(f"{op}: maps must not be empty; got {queries} query rows and {keys} key rows ({axis})")
    p, q = ratio_of(queries, keys)
    if window * p % q:
        below = window // q * q
        nearest = f"{below} and {below + q}" if below else str(q)
        raise InputError(
            f"{op}: window {window} covers {window * p / q:g} of {keys} keys for {queries} queries ({axis}), "
            f"which is not whole; the nearest that fit: {nearest}"
        )
    if not 0 <= shift < window or shift * p % q:
        raise InputError(
            f"{op}: shift must be at least 0, less than the window {window} and move whole keys, {p} for {q} queries "
            f"({axis}); got {shift}"
        )
    if halo < 0:
        raise InputError(f"{op}: halo must be at least 0, got {halo} ({axis})")
    return Axis(queries, keys, window, shift, halo, p, q)


def ratio_of(queries: int, keys: int) -> tuple[int, int]:
    """Keys / queries of one axis in lowest terms, where the coarser of the two may have been rounded up."""
    for p, q in RATIOS:
        if keys == (queries * p + q - 1) // q or queries == (keys * q + p - 1) // p:
            return p, q
    queries, keys = int(queries), int(keys)
    divisor = math.gcd(queries, keys)
    return keys // divisor, queries // divisor
