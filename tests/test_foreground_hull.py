"""Convex hulls of masks against those of other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import ConvexHull
from skimage.morphology import convex_hull_image

from msformer_fast.foreground.candidates import _most_of
from msformer_fast.foreground.evidence import Mask
from msformer_fast.foreground.hull import hull_area, hull_of

RNG = np.random.default_rng()


def masks() -> list[Mask]:
    """Sparse and dense ones of odd sizes, lines, a pixel, two far apart, a full one."""
    made = [RNG.random((23, 37)) < share for share in (0.005, 0.02, 0.3)]
    for places in (np.s_[4, :], np.s_[:, 7], np.s_[3, 5], np.s_[2::9, 3::11], np.s_[:, :]):
        mask = np.zeros((13, 19), dtype=bool)
        mask[places] = True
        made.append(mask)
    made.append(np.tri(15, 31, dtype=bool))
    return [mask for mask in made if mask.any()]


def test_area_is_that_of_the_squares() -> None:
    for mask in masks():
        rows, columns = np.nonzero(mask)
        corners = [np.stack([rows + dy, columns + dx], axis=1) for dy in (0, 1) for dx in (0, 1)]
        assert hull_area(mask) == pytest.approx(ConvexHull(np.concatenate(corners)).volume, rel=1e-12)


def test_pixels_are_those_of_the_diamonds() -> None:
    for mask in masks():
        np.testing.assert_array_equal(hull_of(mask), convex_hull_image(mask))  # type: ignore[no-untyped-call]
    assert not hull_of(np.zeros((4, 5), dtype=bool)).any()


def test_most_of_is_between_the_percentiles() -> None:
    for count in (1, 2, 50, 51, 1000):
        places = RNG.integers(0, 40, count)
        counts = np.bincount(places, minlength=45)
        np.testing.assert_allclose(_most_of(counts), np.percentile(places, [2, 98]), atol=1e-9)
