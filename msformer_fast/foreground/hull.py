"""Convex hulls of masks, from the first and the last pixel of every row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msformer_fast.foreground.evidence import Mask


def hull_of(mask: Mask) -> Mask:
    """The pixels (h, w) in the convex hull of a mask's, each of which is a diamond a pixel wide; none of none."""
    rows, first, last = _ends(mask)
    hull = np.zeros_like(mask)
    if not rows.size:
        return hull
    # The corners of the diamonds, at every half row: y = 0 is half a row above the first.
    left, right = np.full(2 * mask.shape[0] + 1, np.inf), np.full(2 * mask.shape[0] + 1, -np.inf)
    for half, further in ((0, 0.0), (1, 0.5), (2, 0.0)):
        left[2 * rows + half] = np.minimum(left[2 * rows + half], first - further)
        right[2 * rows + half] = np.maximum(right[2 * rows + half], last + further)
    inner = np.arange(rows[0], rows[-1] + 1)
    starts, ends = np.interp(2 * inner + 1, *_minorant(left)), -np.interp(2 * inner + 1, *_minorant(-right))
    columns = np.arange(mask.shape[1])
    hull[inner] = (columns >= starts[:, None] - _ROUNDING) & (columns <= ends[:, None] + _ROUNDING)
    return hull


def hull_area(mask: Mask) -> float:
    """Area in pixels of the convex hull of a mask's pixels as squares, so that a straight line has one as well."""
    rows, first, last = _ends(mask)
    left, right = np.full(mask.shape[0] + 1, np.inf), np.full(mask.shape[0] + 1, -np.inf)
    for edge in (rows, rows + 1):
        left[edge] = np.minimum(left[edge], first)
        right[edge] = np.maximum(right[edge], last + 1)
    return -sum(float(np.trapezoid(x, y)) for y, x in (_minorant(left), _minorant(-right)))


# Far more than that of a division, far less than a pixel.
_ROUNDING = 1e-9


def _ends(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The rows of a mask that are not empty, and their first and last column."""
    rows = np.flatnonzero(mask.any(axis=1))
    return rows, mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)


def _minorant(values: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """The corners (y, x) of the largest convex function of y below ``values``, which may be infinite in places.

    Monotone chain (Andrew, Information Processing Letters 9, 1979).
    """
    ys: list[int] = []
    xs: list[float] = []
    for y in np.flatnonzero(np.isfinite(values)).tolist():
        x = float(values[y])
        while len(ys) > 1 and (xs[-1] - xs[-2]) * (y - ys[-2]) >= (x - xs[-2]) * (ys[-1] - ys[-2]):
            ys.pop()
            xs.pop()
        ys.append(y)
        xs.append(x)
    return ys, xs
