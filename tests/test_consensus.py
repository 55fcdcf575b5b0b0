"""Matching and voting against hand-worked cases, brute force over all assignments, and a known truth under noise."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from msformer_fast.consensus import consensus_labels, match_labels
from msformer_fast.errors import InputError
from tests.conftest import SEED

EMPTY = np.zeros((3, 4), dtype=bool)


def truth_map(rng, clusters=7, shape=(61, 83)):
    """Cells around random points: label map (H, W) of `clusters` labels, none of them empty."""
    spots = rng.choice(shape[0] * shape[1], clusters, replace=False)
    rows, columns = np.unravel_index(spots, shape)
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.argmin((y[..., None] - rows) ** 2 + (x[..., None] - columns) ** 2, axis=-1)


def renumbered(labels, rng):
    """The same clusters under other numbers, some of them negative."""
    values, index = np.unique(labels, return_inverse=True)
    return rng.choice(np.arange(-500, 500), len(values), replace=False)[index].reshape(labels.shape)


def noisy(labels, part, rng):
    wrong = rng.random(labels.shape) < part
    return np.where(wrong, rng.integers(0, labels.max() + 1, labels.shape), labels)


def draws(count, stream=0):
    return [np.random.default_rng((SEED, stream, draw)) for draw in range(count)]


def test_permuted_labels_come_back_exactly():
    for rng in draws(10):
        truth = renumbered(truth_map(rng, int(rng.integers(1, 30))), rng)
        matched = match_labels(truth, renumbered(truth, rng))
        assert matched.dtype == np.int64 and np.array_equal(matched, truth)


def test_matching_reaches_the_largest_overlap_of_all_assignments():
    for rng in draws(10, stream=1):
        reference, labels = rng.integers(0, 5, (2, 8, 9))
        overlaps = [[np.sum((labels == i) & (reference == j)) for j in range(5)] for i in range(5)]
        best = max(sum(overlaps[i][p[i]] for i in range(5)) for p in permutations(range(5)))
        matched = match_labels(reference, labels)
        assert np.sum(matched == reference) == best
        assert np.array_equal(matched, match_labels(reference, renumbered(labels, rng)))


def test_one_to_one_where_the_greedy_choice_is_not_the_best():
    # Overlaps: cluster 8 shares 3 pixels with 0 and 2 with 1, cluster 9 shares 2 with 0 and none with 1.
    reference = np.array([[0, 0, 0, 1, 1, 0, 0]])
    labels = np.array([[8, 8, 8, 8, 8, 9, 9]])
    assert match_labels(reference, labels).tolist() == [[1, 1, 1, 1, 1, 0, 0]]


def test_clusters_without_a_partner_get_new_numbers_the_largest_first():
    reference = np.array([[4, 4, 4, 4, 4, -2, -2, -2, -2]])
    labels = np.array([[0, 0, 0, 1, 2, 2, 3, 3, 3]])
    assert match_labels(reference, labels).tolist() == [[4, 4, 4, 6, 5, 5, -2, -2, -2]]


def test_fewer_clusters_leave_numbers_unused_and_no_overlap_is_no_partner():
    reference = np.array([[1, 1, 2, 2, 3]])
    assert match_labels(reference, np.array([[7, 7, 7, 0, 0]])).tolist() == [[1, 1, 1, 2, 2]]
    # Cluster 0 lies in 1, where 5 is the better partner; 2 is free, yet shares no pixel with it.
    assert match_labels(np.array([[1, 1, 1, 2, 3, 3]]), np.array([[5, 5, 0, 6, 6, 6]])).tolist() == [[1, 1, 4, 3, 3, 3]]


def test_new_numbers_of_equal_size_follow_the_rows():
    assert match_labels(np.zeros((1, 5), dtype=int), np.array([[9, 9, 5, 3, 4]])).tolist() == [[0, 0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint64])
def test_any_integers_and_wide_ranges(dtype):
    labels = np.array([[0, 1, 1], [0, 0, 1]]).astype(dtype)
    wide = np.where(labels, 2**62, -(2**63))
    assert np.array_equal(match_labels(wide, labels), wide)
    assert np.array_equal(match_labels(labels, wide), labels)


def test_noise_is_voted_away():
    for rng in draws(3, stream=2):
        truth = truth_map(rng, 8, (257, 257))
        maps = [renumbered(noisy(truth, 0.05, rng), rng) for _ in range(5)]
        labels, agreement = consensus_labels(maps)
        assert np.mean(match_labels(truth, labels) == truth) > 0.999
        assert agreement.mean() == pytest.approx(1 - 0.05 * 7 / 8, abs=0.01)
        again = consensus_labels([renumbered(run, rng) for run in maps])
        assert np.array_equal(again[1], agreement)


def test_vote_worked_by_hand():
    maps = [np.array([row]) for row in ([0, 0, 0, 1, 1, 1], [5, 5, 7, 7, 7, 7], [1, 1, 1, 0, 0, 0], [3, 3, 3, 3, 4, 4])]
    labels, agreement = consensus_labels(maps)
    assert labels.dtype == np.int64 and labels.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert agreement.dtype == np.float64 and agreement.tolist() == [[1, 1, 0.75, 0.75, 1, 1]]


def test_single_map_is_itself():
    labels = np.array([[7, -3], [7, 0]], dtype=np.int8)
    result, agreement = consensus_labels([labels])
    assert result.dtype == np.int64 and np.array_equal(result, labels)
    assert np.array_equal(agreement, np.ones((2, 2)))


def test_medoid_is_none_of_the_outliers():
    for rng in draws(3, stream=3):
        truth = truth_map(rng) + 10
        outlier = rng.integers(0, 7, truth.shape)
        labels, agreement = consensus_labels([outlier, renumbered(truth, rng), truth, noisy(truth, 0.1, rng)])
        assert np.array_equal(match_labels(truth, labels), truth)
        assert agreement.min() >= 0.5


def test_a_map_of_one_cluster_is_no_medoid():
    # Each run finds another three pixels, so the map of background alone shares most pixels with all of them.
    row = np.zeros((1, 20), dtype=int)
    first, second = row + 5, row + 7
    first[0, :3] = 6
    second[0, 2:5] = 8
    labels, _ = consensus_labels([row, first, second])
    assert set(np.unique(labels)) <= {5, 6}


def test_a_tie_goes_to_the_medoid_even_if_its_number_is_larger():
    first, second = np.array([[9, 9, 9, 2, 2, 2]]), np.array([[0, 0, 1, 1, 1, 1]])
    labels, agreement = consensus_labels([first, second])
    assert np.array_equal(labels, first) and agreement.tolist() == [[1, 1, 0.5, 1, 1, 1]]


def test_a_tie_without_the_medoid_goes_to_the_smallest():
    maps = np.repeat([[1, 2, 5]], 10, axis=1).repeat(5, axis=0)[:, None, :]
    maps[:, 0, 0] = [5, 2, 2, 1, 1]
    for run in range(1, 5):  # a mistake of its own in all but the first, which is thus the medoid
        maps[run, 0, run] = 5
    labels, agreement = consensus_labels(maps)
    assert labels.tolist() == [[1] * 10 + [2] * 10 + [5] * 10]
    assert agreement.tolist() == [[0.4, *[0.8] * 4, *[1] * 25]]


def test_clusters_that_the_medoid_lacks_can_win():
    maps = np.repeat([[0, 1]], 20, axis=1).repeat(5, axis=0)[:, None, :]
    # Three runs find two more clusters, now the one larger, now the other; mistakes of their own deny them the medoid.
    for run, x, y in [(0, 3, 2), (1, 2, 3), (3, 3, 2)]:
        maps[run, 0, 4 + 4 * run : 8 + 4 * run] = 1
        maps[run, 0, :x], maps[run, 0, 20 : 20 + y] = 7 + run, 17 - run
    labels, agreement = consensus_labels(maps)
    assert labels.tolist() == [[2, 2, *[0] * 18, 3, 3, *[1] * 18]]
    left = [0.6, 0.6, 0.6, 1, *[0.8] * 8, *[1] * 4, *[0.8] * 4]
    assert agreement.tolist() == [[*left, 0.6, 0.6, 0.8, *[1] * 17]]


@pytest.mark.parametrize(
    ("label_maps", "message"),
    [
        ([], r"label_maps: got none"),
        ([EMPTY, EMPTY.T], r"label_maps\[1\]: got shape \(4, 3\) but label_maps\[0\] is \(3, 4\)"),
        ([EMPTY, EMPTY[0]], r"label_maps\[1\]: got bool of shape \(4,\)"),
        ([EMPTY.astype(float)], r"label_maps\[0\]: got float64"),
        ([EMPTY[:0]], r"label_maps\[0\]: got bool of shape \(0, 4\)"),
        ([EMPTY + np.uint64(2**63)], r"label_maps\[0\]: got the label 9223372036854775808"),
    ],
)
def test_bad_label_maps(label_maps, message):
    with pytest.raises(InputError, match=rf"^{message}.*accepted"):
        consensus_labels(label_maps)


def test_bad_arguments_of_matching():
    with pytest.raises(InputError, match=r"^reference: got float64.*accepted"):
        match_labels(EMPTY.astype(float), EMPTY)
    with pytest.raises(InputError, match=r"^labels: got bool of shape \(1, 3, 4\).*accepted"):
        match_labels(EMPTY, EMPTY[None])
    with pytest.raises(InputError, match=r"^labels: got shape \(4, 3\) but reference is \(3, 4\).*accepted"):
        match_labels(EMPTY, EMPTY.T)
