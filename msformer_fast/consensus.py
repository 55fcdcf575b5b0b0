"""One answer from several runs: label maps renumbered alike and put to the vote.

Another seed gives the self-guided clustering another answer of similar quality, with other label numbers. What most
runs say is steadier than any one of them, and where they disagree is a measure of doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import fsum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError

Integers: TypeAlias = NDArray[np.int64]

_LARGEST = 2**62  # leaves room in int64 for the numbers of clusters without a partner


def match_labels(reference: Any, labels: Any) -> Integers:
    """Renumber the clusters of a label map after the clusters of another that they overlap most, one to one.

    The assignment is the one of the largest total overlap in pixels, by the Hungarian method: Kuhn, Naval Research
    Logistics Quarterly 2 (1955). A cluster of ``labels`` that is left over, because there are more of them or because
    it shares no pixel with any cluster still free, gets a new number after the largest of ``reference``: the largest
    cluster the first, of equal ones the one that comes first in the rows. The result depends on which pixels of
    ``labels`` are equal, never on their numbers.

    Args:
        reference: label map whose numbers are kept, (H, W) integers of any sign, or bool.
        labels: label map to be renumbered, same shape.

    Returns:
        The clusters of ``labels`` under their new numbers, (H, W) int64.

    Raises:
        InputError: a map is not (H, W) integers or bool, has no pixel or a label above 2**62, or the shapes differ.
    """
    target, source = _as_labels(reference, "reference"), _as_labels(labels, "labels")
    _check_shape("labels", source, "reference", target)
    numbers, to = _clusters(target)
    _, index = _clusters(source)
    partner = _partners(_overlap(index, to))
    left_over = partner < 0
    matched = np.where(left_over, 0, numbers[partner])
    matched[left_over] = _new_numbers(np.bincount(index)[left_over], int(numbers.max()))
    return matched[index].reshape(source.shape)


def consensus_labels(label_maps: Sequence[Any]) -> tuple[Integers, NDArray[np.float64]]:
    """Put the label maps of several runs to the vote, pixel by pixel, and say how far the runs agree.

    A cluster ensemble (Strehl and Ghosh, JMLR 3 (2002)) by relabelling and voting: every map is matched, as
    :func:`match_labels` does, to the medoid, and every pixel gets the label that most runs give it; in a tie the
    medoid's if it is among the tied, else the smallest. The medoid is the map of the highest mean agreement with the
    others (the first of equal ones), agreement being the share of equal pixels after matching, adjusted for chance as
    Cohen's kappa, Educational and Psychological Measurement 20 (1960): a map of one cluster agrees with nobody, however
    large the background. Clusters without a partner in the medoid are matched with one another over the runs, in the
    order of the runs, so that those of two runs vote together where they overlap and only there.

    Args:
        label_maps: at least one label map, each (H, W) integers of any sign, or bool; all of one shape.

    Returns:
        The consensus, (H, W) int64, with the numbers of the medoid, and the share of runs that voted for it,
        (H, W) float64 in [1/n, 1]. Of a single map: itself, and 1 everywhere.

    Raises:
        InputError: there is no map, or one is not as in :func:`match_labels`, or the shapes differ.
    """
    maps = [_as_labels(labels, f"label_maps[{run}]") for run, labels in enumerate(label_maps)]
    _check_shapes("label_maps", maps)
    clusters = [_clusters(labels) for labels in maps]
    indices = [index for _, index in clusters]
    medoid = _medoid(len(maps), {(a, b): _kappa(indices[a], indices[b]) for a, b in combinations(range(len(maps)), 2)})
    votes = _votes(clusters[medoid], indices, medoid)
    count = np.ones(votes.shape, dtype=np.int64)
    for a, b in combinations(range(len(maps)), 2):
        equal = votes[a] == votes[b]
        count[a] += equal
        count[b] += equal
    most = count.max(axis=0)
    smallest = np.where(count == most, votes, np.iinfo(np.int64).max).min(axis=0)
    winner = np.where(count[medoid] == most, votes[medoid], smallest)
    return winner.reshape(maps[0].shape), (most / len(maps)).reshape(maps[0].shape)


def _as_labels(value: Any, name: str) -> Integers:
    array = np.asarray(value)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biu":
        raise InputError(
            f"{name}: got {array.dtype} of shape {array.shape}; accepted is (H, W) integers or bool, at least one pixel"
        )
    if array.dtype.kind != "b" and int(array.max()) > _LARGEST:
        raise InputError(f"{name}: got the label {array.max()}; accepted is up to 2**62")
    return array.astype(np.int64)


def _check_shape(name: str, array: NDArray[Any], first_name: str, first: NDArray[Any]) -> None:
    if array.shape != first.shape:
        raise InputError(f"{name}: got shape {array.shape} but {first_name} is {first.shape}; accepted is one shape")


def _check_shapes(name: str, arrays: Sequence[NDArray[Any]]) -> None:
    if not arrays:
        raise InputError(f"{name}: got none; accepted is at least one (H, W) array")
    for run, array in enumerate(arrays):
        _check_shape(f"{name}[{run}]", array, f"{name}[0]", arrays[0])


def _clusters(labels: Integers) -> tuple[Integers, Integers]:
    """The numbers of the clusters (K,) in the order of their first pixels, and every pixel's place in it (H W,).

    That order knows nothing of the numbers, so ties are broken alike whatever they are.
    """
    flat = labels.ravel()
    lowest = int(flat.min())
    # In 16 bits the stable sort is a radix sort, several times as fast.
    narrow = int(flat.max()) - lowest < 2**16
    keys: NDArray[Any] = (flat - lowest).astype(np.uint16) if narrow else flat
    _, first, index = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return flat[first[order]], place[index]


def _overlap(a: Integers, b: Integers) -> Integers:
    """Pixels that cluster i of a and cluster j of b share, (K_a, K_b), from places (P,) as of :func:`_clusters`."""
    rows, columns = int(a.max()) + 1, int(b.max()) + 1
    return np.bincount(a * columns + b, minlength=rows * columns).reshape(rows, columns)


def _partners(overlap: Integers) -> Integers:
    """For every row of a table of overlaps the column that it is assigned to, -1 for none: (rows,)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(overlap, maximize=True)
    partner = np.full(len(overlap), -1, dtype=np.int64)
    # The method pairs off what is left even where nothing overlaps, and such a pair means nothing.
    shared = overlap[rows, columns] > 0
    partner[rows[shared]] = columns[shared]
    return partner


def _new_numbers(sizes: Integers, last: int) -> Integers:
    """Numbers after `last` for clusters of these sizes (K,), the largest first."""
    numbers = np.empty(len(sizes), dtype=np.int64)
    numbers[np.argsort(-sizes, kind="stable")] = last + 1 + np.arange(len(sizes))
    return numbers


def _kappa(a: Integers, b: Integers) -> float:
    """Cohen's kappa of two partitions (P,) after matching: their share of equal pixels, adjusted for chance."""
    overlap = _overlap(a, b)
    partner = _partners(overlap)
    rows = np.flatnonzero(partner >= 0)
    columns = partner[rows]
    pixels = len(a)
    equal = int(overlap[rows, columns].sum())
    by_chance = int(overlap.sum(axis=1)[rows] @ overlap.sum(axis=0)[columns])
    # Whole numbers up to one division, so that equal agreements are equal to the last bit.
    return (pixels * equal - by_chance) / (pixels**2 - by_chance) if by_chance < pixels**2 else 1.0


def _medoid(runs: int, agreement: dict[tuple[int, int], float]) -> int:
    """The run of the highest mean agreement with the others, the first of equal ones."""
    return max(range(runs), key=lambda run: fsum(value for pair, value in agreement.items() if run in pair))


def _votes(medoid_clusters: tuple[Integers, Integers], indices: Sequence[Integers], medoid: int) -> Integers:
    """The number that every run gives every pixel, (runs, P): those of the medoid, and new ones for what is left over.

    New numbers dealt out in every run on its own would let clusters vote together that never touch.
    """
    numbers, to = medoid_clusters
    top = last = int(numbers.max())
    votes = np.empty((len(indices), len(to)), dtype=np.int64)
    votes[medoid] = numbers[to]
    for run, index in enumerate(indices):
        if run == medoid:
            continue
        partner = _partners(_overlap(index, to))
        number = numbers[partner]
        left_over = partner < 0
        if left_over.any():
            known = last - top
            shared = np.zeros((len(partner), known), dtype=np.int64)
            for earlier in votes[:run]:
                both = left_over[index] & (earlier > top)
                cells = index[both] * known + (earlier[both] - top - 1)
                shared += np.bincount(cells, minlength=shared.size).reshape(shared.shape)
            again = _partners(shared[left_over])
            new = top + 1 + again
            new[again < 0] = _new_numbers(np.bincount(index)[left_over][again < 0], last)
            number[left_over] = new
            last = max(last, int(new.max()))
        votes[run] = number[index]
    return votes
