"""The scores against hand-worked cases and an independent brute force, the oracle against its definition."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from msformer_fast.errors import InputError
from msformer_fast.metrics import (
    MaskScores,
    average_surface_distance,
    dice,
    hausdorff95,
    hm,
    iou,
    oracle_mask,
    score,
    score_blind,
    score_oracle,
    xor,
)

INF = math.inf
EMPTY = np.zeros((4, 5), dtype=bool)
FULL = np.ones((4, 5), dtype=bool)


def random_pair(seed):
    """Two smooth-ish random masks, H != W, both with pixels; pytest shows the seed when a test fails."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(3, 14)), int(rng.integers(14, 20)))
    a, g = (rng.random(shape) < rng.uniform(0.1, 0.9) for _ in range(2))
    a[0, 0] = g[-1, -1] = True
    return a, g


def surface(mask):
    height, width = mask.shape

    def outside(row, column):
        return not (0 <= row < height and 0 <= column < width) or not mask[row, column]

    steps = ((0, 1), (0, -1), (1, 0), (-1, 0))
    return [(r, c) for r, c in np.argwhere(mask) if any(outside(r + i, c + j) for i, j in steps)]


def directed(a, g, spacing):
    rows, columns = spacing
    points = surface(g)
    return [min(math.hypot((r - s) * rows, (c - t) * columns) for s, t in points) for r, c in surface(a)]


def test_overlap_worked_by_hand():
    pred = np.array([[1, 1, 1, 0], [0, 0, 0, 0]])
    truth = np.array([[0, 1, 1, 1], [0, 0, 0, 1]])
    # |A| = 3, |G| = 4, |A ∩ G| = 2, |A ∪ G| = 5
    assert dice(pred, truth) == pytest.approx(4 / 7)
    assert iou(pred, truth) == pytest.approx(2 / 5)
    assert hm(pred, truth) == pytest.approx(3 / 5)
    assert xor(pred, truth) == pytest.approx(3 / 4)


def test_xor_is_not_bounded_by_one():
    truth = np.zeros((4, 5), dtype=bool)
    truth[0, 0] = True
    assert xor(FULL, truth) == 19


def test_distances_worked_by_hand():
    pred, truth = np.zeros((2, 6, 9), dtype=bool)
    pred[1, 1], truth[4, 5] = True, True
    assert hausdorff95(pred, truth) == average_surface_distance(pred, truth) == 5
    assert hausdorff95(pred, truth, 2.0) == 10
    assert hausdorff95(pred, truth, (4, 1.25)) == pytest.approx(math.hypot(12, 5)) == pytest.approx(13)
    assert average_surface_distance(pred, truth, [4, 1.25]) == pytest.approx(13)


def test_percentile_is_directed_then_maximal_and_mean_is_pooled():
    pred, truth = np.zeros((2, 1, 40), dtype=bool)
    truth[0, :1] = True
    pred[0, :21] = True
    # From the prediction: distances 0..20, P95 = 19, sum 210; from the truth: one distance of 0.
    # One percentile of the pooled 22 distances would be 18.95, the mean of the directed means 5.
    assert hausdorff95(pred, truth) == pytest.approx(19)
    assert average_surface_distance(pred, truth) == pytest.approx(210 / 22)


def test_surface_includes_the_image_border():
    truth = FULL.copy()
    truth[:, 0] = False
    assert hausdorff95(FULL, FULL) == 0
    assert average_surface_distance(FULL, truth) > 0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spacing", [1.0, 0.5, (0.7, 1.9)])
def test_against_brute_force(seed, spacing):
    a, g = random_pair(seed)
    in_a, in_g = (set(map(tuple, np.argwhere(mask).tolist())) for mask in (a, g))
    pair = spacing if isinstance(spacing, tuple) else (spacing, spacing)
    forth, back = directed(a, g, pair), directed(g, a, pair)
    expected = {
        "dice": 2 * len(in_a & in_g) / (len(in_a) + len(in_g)),
        "iou": len(in_a & in_g) / len(in_a | in_g),
        "hm": len(in_a ^ in_g) / len(in_a | in_g),
        "xor": len(in_a ^ in_g) / len(in_g),
        "hd95": max(np.percentile(forth, 95), np.percentile(back, 95)),
        "asd": np.mean(forth + back),
    }
    result = score(a, g, spacing).as_dict()
    assert list(result) == list(expected)
    assert result == pytest.approx(expected)
    singles = dice(a, g), iou(a, g), hm(a, g), xor(a, g), hausdorff95(a, g, spacing)
    assert MaskScores(*singles, average_surface_distance(a, g, spacing)) == score(a, g, spacing)
    assert all(type(value) is float for value in result.values())


@pytest.mark.parametrize("seed", range(4))
def test_symmetry_and_identity(seed):
    a, g = random_pair(seed)
    forth, back = score(a, g).as_dict(), score(g, a).as_dict()
    forth.pop("xor"), back.pop("xor")
    assert forth == pytest.approx(back)
    assert score(a, a) == MaskScores(1, 1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("pred", "truth", "expected"),
    [
        (EMPTY, EMPTY, MaskScores(1, 1, 0, 0, 0, 0)),
        (EMPTY, FULL, MaskScores(0, 0, 1, 1, INF, INF)),
        (FULL, EMPTY, MaskScores(0, 0, 1, INF, INF, INF)),
    ],
)
def test_empty_masks(pred, truth, expected):
    assert score(pred, truth) == expected
    assert score_blind(pred, truth) == expected


def test_integer_masks_score_like_bool_ones():
    a, g = random_pair(0)
    assert score(a.astype(np.uint8), g.astype(np.int64)) == score(a, g)


@pytest.mark.parametrize(
    ("pred", "truth", "name"),
    [
        (EMPTY.T, EMPTY, "pred"),
        (EMPTY[None], EMPTY, "pred"),
        (EMPTY * 255 + 2, EMPTY, "pred"),
        (FULL, EMPTY.astype(float), "truth"),
        (FULL, -FULL.astype(int), "truth"),
        (np.zeros((0, 5), dtype=bool), np.zeros((0, 5), dtype=bool), "pred"),
    ],
)
@pytest.mark.parametrize("function", [dice, iou, hm, xor, hausdorff95, average_surface_distance, score])
def test_bad_masks(function, pred, truth, name):
    with pytest.raises(InputError, match=rf"^{name}: .*accepted"):
        function(pred, truth)
    with pytest.raises(InputError, match=rf"^{name.replace('pred', 'mask')}: .*accepted"):
        score_blind(pred, truth)


@pytest.mark.parametrize("spacing", [0, -1.0, (1, 0), (1, 2, 3), "mm", math.nan, INF, None])
@pytest.mark.parametrize("mask", [EMPTY, FULL])
def test_bad_spacing(spacing, mask):
    with pytest.raises(InputError, match="^spacing: "):
        score(mask, mask, spacing)


def oracle_by_definition(labels, truth):
    inside = {int(k): int(np.sum(truth & (labels == k))) for k in np.unique(labels)}
    chosen = min(k for k, count in inside.items() if count == max(inside.values()))
    result = np.zeros_like(truth)
    for r, c in product(*map(range, truth.shape)):
        # Two dilations by a 7x7 square reach every pixel of a 13x13 window.
        near = truth[max(r - 6, 0) : r + 7, max(c - 6, 0) : c + 7].any()
        result[r, c] = labels[r, c] == chosen and near
    return result


@pytest.mark.parametrize("seed", range(10))
def test_oracle_against_its_definition(seed):
    print("seed", seed)
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(20, 30)), int(rng.integers(31, 40)))
    labels = rng.integers(-1, 4, shape) * 7
    truth = np.zeros(shape, dtype=bool)
    row, column = rng.integers(0, 20), rng.integers(0, 31)
    truth[row : row + 5, column : column + 4] = True
    expected = oracle_by_definition(labels, truth)
    assert np.array_equal(oracle_mask(labels, truth), expected)
    assert score_oracle(labels, truth, 0.5) == score(expected, truth, 0.5)


def test_oracle_crops_far_pixels_and_the_smallest_label_wins_a_tie():
    labels = np.full((30, 40), 5)
    labels[:, 20:] = 3
    truth = np.zeros((30, 40), dtype=bool)
    truth[15, 19:21] = True
    mask = oracle_mask(labels, truth)
    assert mask.sum() == 13 * 7 and mask[9:22, 20:27].all()
    assert score_oracle(labels, truth).dice > score_blind(labels == 3, truth).dice


def test_oracle_rejects_bad_input():
    truth = FULL
    with pytest.raises(InputError, match="^labels: "):
        oracle_mask(np.zeros((4, 5)), truth)
    with pytest.raises(InputError, match="^labels: "):
        oracle_mask(np.zeros((5, 4), dtype=int), truth)
    with pytest.raises(InputError, match="^truth: .*empty"):
        oracle_mask(np.zeros((4, 5), dtype=int), EMPTY)
