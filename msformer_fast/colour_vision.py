"""How far apart colours are to those who see all of them, and to those who lack one kind of cone.

Source of the matrices: Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
Deficiency", IEEE TVCG 15 (2009), severity 1.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from numpy.typing import NDArray

#: What is seen of linear RGB, by the cones that are missing.
LACKING = {
    "none": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of linear sRGB
_WHITE = np.array([0.9505, 1.0, 1.089])  # D65

_COLOURS = 256
_LEVELS = np.linspace(40, 255, 9)  # of each channel: none so dark that it is taken for a frame
_LIGHTEST = 90  # lightness of CIE Lab: none so light that it is taken for the paper
_LEAST_CHROMA = 40  # greys are left to images
_FIRST = (86, 180, 233)  # sky blue


def linear(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """Linear values in [0, 1] of sRGB colours (..., 3) in 0 to 255."""
    parts = np.asarray(rgb, np.float64) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def seen(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """CIE Lab of sRGB colours (N, 3) in 0 to 255, to each kind of sight of :data:`LACKING`: (kinds, N, 3)."""
    kinds = []
    for matrix in LACKING.values():
        xyz = np.clip(linear(rgb) @ np.array(matrix).T, 0, 1) @ _XYZ.T / _WHITE
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        kinds.append(np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1))
    return np.stack(kinds)


def distances(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """Between each two of N colours, in CIE Lab, to who tells them apart worst: (N, N)."""
    views = seen(rgb)
    found: NDArray[np.float64] = np.linalg.norm(views[:, :, None] - views[:, None], axis=-1).min(axis=0)
    return found


@cache
def distinct_colours() -> NDArray[np.uint8]:
    """256 colours (256, 3), each as far as can be from those before it, to every kind of sight."""
    grid = np.array(list(itertools.product(_LEVELS, repeat=3)))
    grid = grid[(np.ptp(grid, axis=1) > _LEAST_CHROMA) & (seen(grid)[0, :, 0] < _LIGHTEST)]
    views = seen(grid)  # (kinds, N, 3)
    chosen = [int(np.abs(grid - _FIRST).sum(axis=1).argmin())]
    apart = np.full(len(grid), np.inf)
    while len(chosen) < _COLOURS:
        apart = np.minimum(apart, np.linalg.norm(views - views[:, chosen[-1], None], axis=-1).min(axis=0))
        chosen.append(int(apart.argmax()))
    return np.asarray(np.rint(grid[chosen]), dtype=np.uint8)
