"""Stored values to grey levels in [0, 1]: windows and lookup tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Centre and width in Hounsfield units of the window that shows lungs: from air to bone, -1000 to 400.
LUNG_WINDOW = (-300.0, 1400.0)
#: What a file's notes say where it was taken without being asked for.
LUNG_NOTE = "CT in Hounsfield units, shown from -1000 to 400 as for lungs; --window takes another"

# Scanners pad with down to -3024, and metal reaches what 16 bits hold; the least share of air and of tissue in a body.
_LEAST, _MOST, _AIR, _TISSUE = -4096, 65535, 0.1, 0.05


def between(values: Array, low: float, high: float) -> NDArray[np.float32]:
    """New float32 of the same shape: 0 up to ``low``, 1 from ``high`` on, linear between; NaN is 0.

    Where ``high`` is not above ``low`` all is 0: there is no contrast.
    """
    if not high > low:
        return np.zeros(values.shape, np.float32)
    with np.errstate(all="ignore"):  # a file may hold any float
        # float32 holds all of 16 bit, at half the memory.
        exact = values.dtype.kind in "biu" and values.dtype.itemsize <= 2
        scaled = values.astype(np.float32 if exact else np.float64)
        # Halves, so that the distance of the two largest floats does not overflow.
        result = (np.clip(scaled, low, high) / 2 - low / 2) / (high / 2 - low / 2)
    return unit(result)


def unit(values: Array) -> NDArray[np.float32]:
    """float32, clipped to [0, 1], NaN as 0."""
    with np.errstate(all="ignore"):
        return np.clip(np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0).astype(np.float32)


def extent(values: Array) -> tuple[float, float]:
    """Least and largest finite value; (0, 0) where there is none."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def look_up(values: Array, table: Array, first: int) -> Array:
    """Map values by a table whose entry 0 stands for ``first``; values beyond its ends take the end's entry."""
    with np.errstate(all="ignore"):
        if values.dtype.kind == "f":
            values = np.rint(np.nan_to_num(values, nan=float(first)))
        position = np.clip(values, first, first + len(table) - 1) - first
    return np.asarray(table[position.astype(np.intp)])


def looks_like_hounsfield(values: NDArray[np.float64]) -> bool:
    """Whether finite values are spread as the Hounsfield units of a slice of a body: air, and tissue about water."""
    if not values.size or not (_LEAST <= values.min() <= -900 and 200 <= values.max() <= _MOST):
        return False
    air = float(((values > -1100) & (values < -600)).mean())
    tissue = float(((values > -200) & (values < 200)).mean())
    return air > _AIR and tissue > _TISSUE
