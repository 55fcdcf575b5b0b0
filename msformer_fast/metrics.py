"""Scores of a segmentation mask against a ground truth, and the two protocols that turn clusters into a mask.

The two protocols must not be confused. :func:`score_blind` scores a mask that was made without any ground
truth. :func:`score_oracle` scores a mask that was made *with* the ground truth, as the authors of MS-Former
do; its scores are to be read as an upper bound.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError

Mask: TypeAlias = NDArray[np.bool_]
Spacing: TypeAlias = float | tuple[float, float]

_CROP_SIDE = 7
_CROP_DILATIONS = 2


@dataclass(frozen=True)
class MaskScores:
    """The six scores of one mask.

    ``dice``, ``iou``, ``hm`` and ``xor`` have no unit; ``hd95`` and ``asd`` have the unit of ``spacing``,
    which is pixels where no spacing is given.
    """

    dice: float
    iou: float
    hm: float
    xor: float
    hd95: float
    asd: float

    def as_dict(self) -> dict[str, float]:
        """Return the scores by name, in the order of the fields."""
        return asdict(self)


def dice(pred: Any, truth: Any) -> float:
    """Dice coefficient ``2 |A ∩ G| / (|A| + |G|)``, in [0, 1], higher is better.

    Source: Dice, Ecology 26 (1945). Both masks empty: 1. Exactly one empty: 0.

    Args:
        pred: predicted mask A, (H, W) bool or 0/1 integers.
        truth: ground truth G, same shape.

    Raises:
        InputError: a mask is not (H, W) bool or 0/1 integers, or the shapes differ.
    """
    both, either, _ = _counts(*_pair(pred, truth))
    return 2 * both / (both + either) if either else 1.0


def iou(pred: Any, truth: Any) -> float:
    """Intersection over union (Jaccard index) ``|A ∩ G| / |A ∪ G|``, in [0, 1], higher is better.

    Both masks empty: 1. Exactly one empty: 0. Arguments and errors as in :func:`dice`.
    """
    both, either, _ = _counts(*_pair(pred, truth))
    return both / either if either else 1.0


def hm(pred: Any, truth: Any) -> float:
    """Hammoude distance ``(|A ∪ G| - |A ∩ G|) / |A ∪ G| = 1 - IoU``, in [0, 1], lower is better.

    Both masks empty: 0. Exactly one empty: 1. Arguments and errors as in :func:`dice`.
    """
    both, either, _ = _counts(*_pair(pred, truth))
    return (either - both) / either if either else 0.0


def xor(pred: Any, truth: Any) -> float:
    """XOR error ``(|A ∪ G| - |A ∩ G|) / |G|``, at least 0 and not bounded by 1, lower is better.

    The ratio of wrong pixels to ground-truth pixels, as in the evaluation of MS-Former. Both masks empty: 0.
    Only the prediction empty: 1. Only the truth empty: inf. Arguments and errors as in :func:`dice`.
    """
    both, either, truth_size = _counts(*_pair(pred, truth))
    if truth_size == 0:
        return float("inf") if either else 0.0
    return (either - both) / truth_size


def hausdorff95(pred: Any, truth: Any, spacing: Spacing = 1.0) -> float:
    """95th-percentile Hausdorff distance between the two mask surfaces, lower is better.

    ``max(P95{d(a, ∂G) : a in ∂A}, P95{d(g, ∂A) : g in ∂G})``: the larger of the two directed percentiles, as in
    MONAI and in Metrics Reloaded (MedPy instead takes one percentile of both distance sets pooled). The
    surface ∂ of a mask is its pixels that have a 4-neighbour outside the mask; outside the image counts as
    outside the mask. Percentiles interpolate linearly. Both masks empty: 0. Exactly one empty: inf.

    Args:
        pred: predicted mask A, (H, W) bool or 0/1 integers.
        truth: ground truth G, same shape.
        spacing: distance between pixel centres, one number or (row, column), e.g. in mm.

    Returns:
        The distance in the unit of ``spacing``.

    Raises:
        InputError: as in :func:`dice`, or ``spacing`` is not one or two positive finite numbers.
    """
    return _hausdorff95(*_surface_distances(*_pair(pred, truth), spacing))


def average_surface_distance(pred: Any, truth: Any, spacing: Spacing = 1.0) -> float:
    """Average symmetric surface distance, lower is better.

    ``(Σ_{a in ∂A} d(a, ∂G) + Σ_{g in ∂G} d(g, ∂A)) / (|∂A| + |∂G|)``: the mean of both directed distance sets
    pooled, as in Heimann et al., IEEE TMI 28 (2009) and Metrics Reloaded (MedPy instead averages the two
    directed means). Surfaces, empty masks, arguments, unit and errors as in :func:`hausdorff95`.
    """
    return _average(*_surface_distances(*_pair(pred, truth), spacing))


def score(pred: Any, truth: Any, spacing: Spacing = 1.0) -> MaskScores:
    """Return all six scores of ``pred`` against ``truth``.

    Empty masks as in the functions of the single scores.

    Args:
        pred: predicted mask, (H, W) bool or 0/1 integers.
        truth: ground truth, same shape.
        spacing: as in :func:`hausdorff95`.

    Raises:
        InputError: as in :func:`hausdorff95`.
    """
    a, g = _pair(pred, truth)
    distances = _surface_distances(a, g, spacing)
    return MaskScores(dice(a, g), iou(a, g), hm(a, g), xor(a, g), _hausdorff95(*distances), _average(*distances))


def score_blind(mask: Any, truth: Any, spacing: Spacing = 1.0) -> MaskScores:
    """Score a mask that was made without any ground truth: no choice of cluster, no crop.

    This is the honest protocol: ``truth`` is used for scoring and for nothing else. The result is that of
    :func:`score`; the name says that the caller vouches for how ``mask`` was made.

    Args:
        mask: predicted mask, (H, W) bool or 0/1 integers.
        truth: ground truth, same shape.
        spacing: as in :func:`hausdorff95`.

    Raises:
        InputError: as in :func:`score`.
    """
    return score(*_pair(mask, truth, "mask"), spacing)


def oracle_mask(labels: Any, truth: Any) -> Mask:
    """Turn clusters into a mask by looking at the ground truth, as the authors of MS-Former evaluate.

    This sees the ground truth twice: it *chooses* the cluster that has the most pixels inside the truth (the
    smallest label wins a tie), and it *crops* that cluster to the truth dilated twice by a 7x7 square, so no
    false positive further than 6 pixels away can count. Read the scores as an upper bound (an optimistic
    figure, not a proven maximum: another cluster, or several, may score higher), never as the accuracy of a
    segmentation that can be had without the ground truth.

    Args:
        labels: cluster labels, (H, W) integers.
        truth: ground truth, (H, W) bool or 0/1 integers, not empty.

    Returns:
        The mask, (H, W) bool.

    Raises:
        InputError: ``labels`` is not (H, W) integers, ``truth`` is not a mask of that shape, or it is empty.
    """
    from scipy import ndimage

    label_map = np.asarray(labels)
    if label_map.ndim != 2 or not np.issubdtype(label_map.dtype, np.integer):
        raise InputError(f"labels: got {label_map.dtype} of shape {label_map.shape}; accepted is (H, W) integers")
    g = _as_mask(truth, "truth")
    _check_same_shape("labels", label_map.shape, g.shape)
    if not g.any():
        raise InputError("truth: the mask is empty, so it chooses no cluster; accepted is a non-empty mask")
    values, counts = np.unique(label_map[g], return_counts=True)
    chosen = values[counts.argmax()]  # unique() sorts and argmax() takes the first: the smallest label wins
    square = np.ones((_CROP_SIDE, _CROP_SIDE), dtype=bool)
    mask: Mask = (label_map == chosen) & ndimage.binary_dilation(g, square, iterations=_CROP_DILATIONS)
    return mask


def score_oracle(labels: Any, truth: Any, spacing: Spacing = 1.0) -> MaskScores:
    """Score clusters by the authors' protocol: :func:`oracle_mask`, then :func:`score`.

    The ground truth is seen twice before scoring (choice of the cluster, crop around the truth): an upper
    bound, to be reported as such and never next to :func:`score_blind` without saying so.

    Args:
        labels: cluster labels, (H, W) integers.
        truth: ground truth, (H, W) bool or 0/1 integers, not empty.
        spacing: as in :func:`hausdorff95`.

    Raises:
        InputError: as in :func:`oracle_mask` and :func:`score`.
    """
    return score(oracle_mask(labels, truth), truth, spacing)


def _as_mask(value: Any, name: str) -> Mask:
    array = np.asarray(value)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name}: got shape {array.shape}; accepted is a mask (H, W) of at least one pixel")
    if array.dtype == np.bool_:
        return array
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 1:
        raise InputError(f"{name}: got {array.dtype} values; accepted is bool or the integers 0 and 1")
    return array.astype(np.bool_)


def _pair(pred: Any, truth: Any, name: str = "pred") -> tuple[Mask, Mask]:
    a, g = _as_mask(pred, name), _as_mask(truth, "truth")
    _check_same_shape(name, a.shape, g.shape)
    return a, g


def _check_same_shape(name: str, shape: tuple[int, ...], truth_shape: tuple[int, ...]) -> None:
    if shape != truth_shape:
        raise InputError(f"{name}: got shape {shape} but truth is {truth_shape}; accepted is the same shape")


def _counts(a: Mask, g: Mask) -> tuple[int, int, int]:
    """|A ∩ G|, |A ∪ G| and |G| as Python integers, so no ratio of them can overflow or warn."""
    return int(np.count_nonzero(a & g)), int(np.count_nonzero(a | g)), int(np.count_nonzero(g))


def _sampling(spacing: Spacing) -> tuple[float, float]:
    try:
        rows, columns = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 2).tolist()
    except (TypeError, ValueError):
        rows = columns = float("nan")
    if not (0 < rows < float("inf") and 0 < columns < float("inf")):
        raise InputError(f"spacing: got {spacing!r}; accepted is a positive number or a pair (row, column)")
    return rows, columns


def _surface_distances(a: Mask, g: Mask, spacing: Spacing) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances from every surface pixel of A to the surface of G, and the other way round."""
    from scipy import ndimage

    sampling = _sampling(spacing)
    if not (a.any() and g.any()):
        # One empty mask has no surface, so nothing is at a finite distance from it; two empty ones agree.
        nowhere = np.array([float("inf") if a.any() or g.any() else 0.0])
        return nowhere, nowhere
    surface_a, surface_g = a & ~ndimage.binary_erosion(a), g & ~ndimage.binary_erosion(g)
    to_a = ndimage.distance_transform_edt(~surface_a, sampling=sampling)
    to_g = ndimage.distance_transform_edt(~surface_g, sampling=sampling)
    return to_g[surface_a], to_a[surface_g]


def _hausdorff95(to_truth: NDArray[np.float64], to_pred: NDArray[np.float64]) -> float:
    if np.isinf(to_truth).any():  # a percentile would interpolate between infinities and give nan
        return float("inf")
    return float(max(np.percentile(to_truth, 95), np.percentile(to_pred, 95)))


def _average(to_truth: NDArray[np.float64], to_pred: NDArray[np.float64]) -> float:
    return float(np.concatenate([to_truth, to_pred]).mean())
