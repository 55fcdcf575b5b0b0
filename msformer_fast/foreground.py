"""Cluster labels to a foreground mask without any ground truth.

The network ends with a map of cluster labels, and which clusters are the lesion or the lungs is not part of
its output. The rules here decide from the image alone: how dark the clusters are, where their parts lie and
what touches the image border. Each rule says in a sentence what it did, also where it had to fall back, and no
rule returns an empty mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError

Mask: TypeAlias = NDArray[np.bool_]
Labels: TypeAlias = NDArray[np.integer[Any]]
Image: TypeAlias = NDArray[np.float64]

# Mean channel range (max - min) above which an image is called coloured: 0 in a grey scan, little in a tinted
# one, more than 0.1 in dermoscopic images.
_COLOURED = 0.05
# Standard deviation of the centre weight, in units of the image's height and width.
_CENTRE_WIDTH = 0.2
# Radius of the opening that removes hairs and of the erosions that cut lungs from the frame, in units of the
# shorter image side: 4 pixels at 257.
_RADIUS = 1 / 64
_EROSIONS = (0, 1, 2, 3)
_MAX_LEVELS = 8
_FRAME_LEVELS = 3
_MIN_LUNG_AREA = 0.01
_MIN_LUNG_RATIO = 0.25
_EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class Foreground:
    """A foreground mask and how it came about.

    Attributes:
        mask: (H, W) bool, never empty.
        rule: name of the rule that was used; never "auto", which hands over to another rule.
        labels: the chosen cluster labels, ascending. Holes that were filled may hold further labels.
        reason: one sentence that says why, and which fallback was taken if one was.
    """

    mask: Mask
    rule: str
    labels: tuple[int, ...]
    reason: str


def foreground(labels: Any, image: Any, rule: str = "auto") -> Foreground:
    """Choose the foreground of a cluster map from the image alone.

    Args:
        labels: cluster labels, (H, W) integers, any values.
        image: the image that was clustered, (H, W, C) floats in [0, 1], C >= 1.
        rule: a name in :data:`RULES`: "lesion" (dermoscopy), "lungs" (chest X-ray), or "auto", which takes
            "lesion" for a coloured image and "lungs" for a grey one.

    Returns:
        The mask with the rule that was used, the chosen labels and the reason.

    Raises:
        InputError: the rule is unknown, ``labels`` is not (H, W) integers, or ``image`` is not (H, W, C)
            floats in [0, 1] of the same H and W.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise InputError(f"rule: got {rule!r}; accepted is one of {', '.join(RULES)}")
    label_map, pixels = np.asarray(labels), np.asarray(image)
    if label_map.ndim != 2 or label_map.size == 0 or not np.issubdtype(label_map.dtype, np.integer):
        raise InputError(f"labels: got {label_map.dtype} of shape {label_map.shape}; accepted is (H, W) integers")
    if pixels.ndim != 3 or pixels.shape[:2] != label_map.shape or pixels.shape[2] == 0:
        raise InputError(f"image: got shape {pixels.shape}; accepted is (H, W, C) with (H, W) = {label_map.shape}")
    if not np.issubdtype(pixels.dtype, np.floating) or not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(f"image: got {pixels.dtype} values beyond [0, 1]; accepted are floats in [0, 1]")
    return RULES[rule](label_map, pixels.astype(np.float64))


def _auto(labels: Labels, image: Image) -> Foreground:
    colour = float(np.ptp(image, axis=2).mean())
    rule, kind = ("lesion", "coloured") if colour > _COLOURED else ("lungs", "grey")
    chosen = RULES[rule](labels, image)
    why = f"rule '{rule}' because the image is {kind} (mean channel range {colour:.2f})"
    return replace(chosen, reason=f"{chosen.reason[:-1]}; {why}.")


def _lesion(labels: Labels, image: Image) -> Foreground:
    """The most central part of the clusters that are darker than the image, without hairs, holes filled.

    The centre weight, not the area, decides between the parts: a vignette or black corners can be larger than
    the lesion but lie far from the centre. A lesion may touch the border, so border contact is no criterion.
    Fallbacks: no opening where nothing would be left; the most central cluster where no cluster is darker.
    """
    from scipy import ndimage

    painted, mean = _paint(labels, image.mean(axis=2))
    dark = painted < mean - _EPSILON
    if not dark.any():
        return _most_central_cluster(labels, "lesion", "No cluster is darker than the image mean")
    opened = ndimage.binary_opening(dark, _disc(_radius(labels.shape)))
    hairless = bool(opened.any())
    parts, _ = ndimage.label(opened if hairless else dark)
    weights = np.bincount(parts.ravel(), _centre_weight(labels.shape).ravel())
    kept = parts == weights[1:].argmax() + 1
    hairs = "hairs removed" if hairless else "hairs not removed because every part is as thin as one"
    reason = f"The most central part of the clusters darker than the image mean, {hairs}, holes filled."
    return _result(labels, kept, "lesion", reason)


def _lungs(labels: Labels, image: Image) -> Foreground:
    """The two largest dark parts inside the body, holes filled.

    Dark is darker than the image mean. The black frame around the body touches the image border and is often as
    dark as the lungs, so that a cluster can hold both, or touch both through the soft tissue of the flanks.
    Therefore several splits are tried (which level is dark, which level is frame, how strongly the dark region
    is eroded to cut bridges), and the split with the largest two parts off the border wins. Fallbacks: one part
    where there are not two; the two largest parts that touch the border; the most central cluster where no
    cluster is darker.
    """
    from scipy import ndimage

    painted, mean = _paint(labels, image.mean(axis=2))
    best_score, best = 0.0, None
    for dark, core, areas in _splits(painted):
        # One lung with a scrap of the other would otherwise beat a cleaner pair by a few pixels.
        balanced = areas.size == 2 and areas.min() >= _MIN_LUNG_RATIO * areas.max()
        score = float(areas.sum()) * (1.0 if balanced else 0.5)
        if score > best_score:
            best_score, best = score, (dark, core, areas.size)
    if best is not None:
        dark, core, count = best
        parts_kept = "two largest dark parts" if count == 2 else "only large dark part"
        reason = f"The {parts_kept} off the image border, holes filled."
        return _result(labels, _grow(core, dark), "lungs", reason)
    parts, _ = ndimage.label(painted < mean - _EPSILON)
    areas = np.bincount(parts.ravel())[1:]
    if not areas.size:
        return _most_central_cluster(labels, "lungs", "No cluster is darker than the image mean")
    kept = np.isin(parts, 1 + np.argsort(-areas, kind="stable")[:2])
    reason = "No large dark part is off the image border; the largest that touch it were kept, holes filled."
    return _result(labels, kept, "lungs", reason)


RULES: dict[str, Callable[[Labels, Image], Foreground]] = {"auto": _auto, "lesion": _lesion, "lungs": _lungs}


def _splits(painted: Image) -> Iterator[tuple[Mask, Mask, NDArray[np.intp]]]:
    """Yield (dark region, its one or two largest cores off the border, areas of these) for every split."""
    from scipy import ndimage

    levels = _levels(painted)
    for frame_level in (-1.0, *levels[:_FRAME_LEVELS]):
        frame_parts, _ = ndimage.label(painted <= frame_level)
        frame = np.isin(frame_parts, _border_values(frame_parts)) & (frame_parts > 0)
        for level in levels:
            dark = (painted <= level) & ~frame
            if level <= frame_level or not dark.any():
                continue
            depth = ndimage.distance_transform_edt(dark)
            for erosion in _EROSIONS:
                parts, _ = ndimage.label(depth > erosion * _radius(painted.shape))
                areas = np.bincount(parts.ravel())
                areas[0] = 0
                areas[_border_values(parts)] = 0
                pair = np.argsort(-areas, kind="stable")[:2]
                pair = pair[areas[pair] >= _MIN_LUNG_AREA * parts.size]
                if pair.size:
                    yield dark, np.isin(parts, pair), areas[pair]


def _levels(painted: Image) -> list[float]:
    """Darkness levels to split at: the cluster means below the image mean, thinned out if they are many."""
    levels = np.unique(painted[painted < painted.mean() - _EPSILON])
    if levels.size > _MAX_LEVELS:
        levels = np.unique(
            np.quantile(painted[painted <= levels[-1]], np.linspace(0.1, 1, _MAX_LEVELS), method="lower")
        )
    return [float(level) for level in levels]


def _grow(core: Mask, dark: Mask) -> Mask:
    """Undo the erosion that made ``core`` out of ``dark``: the pixels of ``dark`` within its depth."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(dark)
    missing = depth[core].min()
    grown: Mask = dark & (ndimage.distance_transform_edt(~core) <= missing)
    return grown


def _paint(labels: Labels, grey: Image) -> tuple[Image, float]:
    """Every pixel with the mean grey value of its cluster, (H, W), and the mean of the whole image."""
    _, index = np.unique(labels, return_inverse=True)
    index = index.ravel()
    means = np.bincount(index, grey.ravel()) / np.bincount(index)
    return means[index].reshape(labels.shape), float(grey.mean())


def _result(labels: Labels, kept: Mask, rule: str, reason: str) -> Foreground:
    from scipy import ndimage

    chosen = tuple(int(label) for label in np.unique(labels[kept]))
    return Foreground(ndimage.binary_fill_holes(kept), rule, chosen, reason)


def _most_central_cluster(labels: Labels, rule: str, why: str) -> Foreground:
    values, index = np.unique(labels, return_inverse=True)
    weights = np.bincount(index.ravel(), _centre_weight(labels.shape).ravel())
    chosen = values[weights.argmax()]
    return Foreground(labels == chosen, rule, (int(chosen),), f"{why}, so the most central cluster was kept.")


def _centre_weight(shape: tuple[int, ...]) -> Image:
    rows, columns = (((np.arange(n) + 0.5) / n - 0.5) / _CENTRE_WIDTH for n in shape)
    return np.asarray(np.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / 2))


def _radius(shape: tuple[int, ...]) -> int:
    return max(1, round(_RADIUS * min(shape)))


def _disc(radius: int) -> Mask:
    row, column = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(row**2 + column**2 <= radius**2)


def _border_values(parts: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
