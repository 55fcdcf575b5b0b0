"""Masks and label maps at the image's own size."""

from __future__ import annotations

import numpy as np
import pytest

from msformer_fast.foreground.evidence import enlarge, rescale
from msformer_fast.images import resize_nearest
from msformer_fast.metrics import score
from msformer_fast.outlines import carry_up, carry_up_labels, enlarged


def disc(size: int) -> np.ndarray:
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    turn = np.arctan2(y - 0.5, x - 0.5)
    return np.hypot(y - 0.52, x - 0.47) < 0.25 + 0.04 * np.sin(3 * turn)


def picture(truth: np.ndarray, blur: float) -> np.ndarray:
    from scipy import ndimage

    grey = ndimage.gaussian_filter(np.where(truth, 0.2, 0.8), blur) if blur else np.where(truth, 0.2, 0.8)
    noisy = grey + np.random.default_rng(0).normal(0, 0.02, truth.shape)
    return np.repeat(np.clip(noisy, 0, 1)[..., None], 3, axis=2).astype(np.float32)


def test_a_sharp_edge_is_followed_at_full_size() -> None:
    truth = disc(516)
    coarse = rescale(truth.astype(np.float64), (129, 129)) >= 0.5
    image = picture(truth, 0)
    before, after = score(enlarge(coarse, truth.shape), truth), score(carry_up(coarse, image), truth)
    assert after.dice > max(before.dice, 0.995) and after.hd95 <= before.hd95 and after.hd95 < 2.5
    # An outline that is a pixel of the grid off is put right.
    from scipy import ndimage

    off = ndimage.binary_dilation(coarse)
    assert score(carry_up(off, image), truth).dice > score(enlarge(off, truth.shape), truth).dice + 0.01


def test_a_soft_edge_is_taken_at_its_foot() -> None:
    """The outline goes out where the slope is wide, by no more than a pixel of the grid."""
    truth = disc(258)
    coarse = rescale(truth.astype(np.float64), (129, 129)) >= 0.5
    area = carry_up(coarse, picture(truth, 6.0)).sum() / truth.sum()
    assert 1.02 < area < 1.08
    assert abs(carry_up(coarse, picture(truth, 0)).sum() / truth.sum() - 1) < 0.02


@pytest.mark.parametrize("shape", [(129, 129), (60, 75), (300, 200)])
def test_any_size_and_no_empty_mask(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).random((*shape, 1)).astype(np.float32)
    small = np.zeros((129 * shape[0] // max(shape), 129 * shape[1] // max(shape)), dtype=bool)
    small[5, 7] = True
    assert carry_up(small, image).shape == shape and carry_up(small, image).any()
    assert carry_up(np.ones_like(small), image).all()
    nearly = ~small
    assert carry_up(nearly, image).mean() > 0.95


def test_labels_are_not_in_steps() -> None:
    truth = disc(516).astype(np.uint8) * 7 + 3
    small = resize_nearest(truth, (129, 129))
    up = carry_up_labels(small, (516, 516))
    assert up.dtype == np.uint8 and set(np.unique(up)) == {3, 10}
    assert (up != truth).mean() < 0.9 * (resize_nearest(small, (516, 516)) != truth).mean()
    assert (carry_up_labels(small, (129, 129)) == small).all()
    assert (carry_up_labels(small, (64, 64)) == resize_nearest(small, (64, 64))).all()


def test_labels_by_scores() -> None:
    """The border runs where the scores are equal, and a cluster without kept scores keeps its pixels."""
    scores = np.stack([np.tile(np.linspace(1, -1, 8), (8, 1)), np.zeros((8, 8))]).astype(np.float16)
    labels = np.where(scores[0] > 0, 5, 9).astype(np.uint8)
    labels[0, 0] = 2
    up = carry_up_labels(labels, (32, 32), scores, np.array([5, 9]))
    assert set(np.unique(up)) == {2, 5, 9} and (up[:4, :4] == 2).all()
    assert (up[8:, :14] == 5).all() and (up[8:, 18:] == 9).all()


def test_enlarged_keeps_the_range() -> None:
    values = np.array([[-3.0, 5.0], [1.0, 2.0]])
    up = enlarged(values, (64, 64))
    assert up.min() == pytest.approx(-3, abs=1e-3) and up.max() == pytest.approx(5, abs=1e-3)
