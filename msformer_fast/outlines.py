"""Masks and label maps at the image's own size, with outlines as fine as the image's, not as the network's.

A mask is chosen where the longest side has 129 pixels. Enlarged as it is, its outline has steps or cut corners. Here
its signed distance is enlarged, which is smooth, and the outline is put where the image has its edge: by grey level
where the edge is sharper than that grid, at the outer foot of the slope where it is not (lungs in X-rays, pigment in
skin), for that is where people draw it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.foreground.evidence import Image, Mask, enlarge, judged_size, rescale
from msformer_fast.images import resize_nearest

# All lengths are in pixels of the grid on which masks are chosen.
# Standard deviation of the smoothing of the signed distance, which takes the steps away.
_SMOOTHING = 0.7
# An edge is wide from here on, and its foot this much further out for each pixel of width, but no more than that.
_SHARP, _FOOT_PER_WIDTH, _FOOT_MOST = 1.4, 2.0, 1.0
# The image moves a sharp outline by no more than the band; inside and outside are means over windows of this deviation.
_BAND, _WINDOW, _REACH = 2.0, 2.5, 5.5
# What the distance weighs beside the grey level, and the smoothing of both together.
_REGULARITY, _MERGING = 0.35, 0.3
# Edges are measured at most this many times finer than the grid.
_FINEST = 4
_EPSILON = 1e-6


def carry_up(mask: Mask, image: NDArray[np.floating[Any]]) -> Mask:
    """A mask at the size of its image, its outline at the image's edges.

    Sources: signed distance; localised two-region model of an edge (Lankton and Tannenbaum, IEEE TIP 17, 2008).

    Args:
        mask: (h, w) bool, of any size with the image's aspect.
        image: (H, W, C) floats in [0, 1].

    Returns:
        (H, W) bool, empty only if the mask is.
    """
    shape = (image.shape[0], image.shape[1])
    if mask.all() or not mask.any():
        return np.full(shape, mask.any())
    coarse = judged_size(shape)
    small = rescale(mask.astype(np.float64), coarse) >= 0.5
    if not small.any() or small.all():  # smaller than half a pixel of the grid
        return enlarge(mask, shape)
    distance = _signed_distance(small)
    width = _edge_width(distance, image)
    if width < _SHARP and max(shape) > max(coarse):
        value = _by_grey_level(distance, image)
    else:
        foot = min(_FOOT_PER_WIDTH * max(width - _SHARP, 0.0), _FOOT_MOST)
        value = enlarged(distance + foot, shape)
    carried = np.asarray(value > 0)
    return carried if carried.any() else np.asarray(value >= value.max())


def carry_up_labels(
    labels: NDArray[Any], shape: tuple[int, int], scores: NDArray[Any] | None = None, kept: NDArray[Any] | None = None
) -> NDArray[Any]:
    """A label map at another size, without the steps of the nearest neighbour.

    Every cluster's map is enlarged by bilinear interpolation, and the largest value names the pixel's label.

    Args:
        labels: (h, w) integers.
        shape: (H, W). Where it is smaller than (h, w), pixels are the nearest ones.
        scores: (R, h, w) floats of the clusters ``kept`` (R,); ``None`` for a map that is 1 where the label is.
            Pixels of other clusters take the nearest label.

    Returns:
        (H, W), of the dtype of ``labels``.
    """
    nearest = resize_nearest(labels, shape)
    if labels.shape == shape or min(shape) < min(labels.shape):
        return nearest
    names = np.unique(labels) if kept is None or scores is None else kept
    best, result = np.full(shape, -np.inf, dtype=np.float32), np.zeros(shape, dtype=labels.dtype)
    for index, name in enumerate(names):
        values = (labels == name).astype(np.float64) if scores is None else scores[index].astype(np.float64)
        grown = enlarged(values, shape).astype(np.float32)
        result[grown > best] = name
        np.maximum(best, grown, out=best)
    missing = ~np.isin(nearest, names)
    result[missing] = nearest[missing]
    return result


def enlarged(values: Image, shape: tuple[int, int]) -> Image:
    """A map (h, w) of any values at another size, bilinear."""
    low, high = float(values.min()), float(values.max())
    span = max(high - low, _EPSILON)
    return rescale((values - low) / span, shape) * span + low


def _signed_distance(mask: Mask) -> Image:
    """Distance from the outline in pixels, smooth, positive inside; outside the image goes on as its border."""
    from scipy import ndimage

    wide = np.pad(mask, 1, mode="edge")
    inside, outside = ndimage.distance_transform_edt(wide), ndimage.distance_transform_edt(~wide)
    distance = np.where(wide, inside - 0.5, 0.5 - outside)[1:-1, 1:-1]
    return np.asarray(ndimage.gaussian_filter(distance, _SMOOTHING))


def _sides(distance: Image, values: Image) -> tuple[Image, Image]:
    """Means of ``values`` (h, w, C) over what lies inside and outside of the outline, around every pixel."""
    from scipy import ndimage

    means = []
    for side in (distance, -distance):
        near = ((side > 0.5) & (side < _REACH)).astype(np.float64)
        weight = ndimage.gaussian_filter(near, _WINDOW) + _EPSILON
        channels = [ndimage.gaussian_filter(near * each, _WINDOW) / weight for each in np.moveaxis(values, 2, 0)]
        means.append(np.stack(channels, axis=2))
    return means[0], means[1]


def _edge_width(distance: Image, image: NDArray[np.floating[Any]]) -> float:
    """How wide the outline's edge is: the step between its sides over the steepest slope, in pixels of the grid.

    An image of fewer pixels than the grid was enlarged: its edges are as sharp as its own pixels.
    """
    from scipy import ndimage

    shape = image.shape[:2]
    factor = min(max(shape) / max(distance.shape), _FINEST)
    fine = (round(distance.shape[0] * factor), round(distance.shape[1] * factor)) if factor > 1 else distance.shape
    grey = image.mean(axis=2).astype(np.float64)
    inside, outside = _sides(distance, rescale(grey, distance.shape)[..., None])
    factor = max(fine) / max(distance.shape)
    slope = ndimage.gaussian_gradient_magnitude(rescale(grey, fine), 0.5 * factor) * factor
    away = np.abs(enlarged(distance, fine))
    steepest = ndimage.maximum_filter(slope * (away < _WINDOW), size=int(5 * factor) | 1)
    step = enlarged(np.abs(outside - inside)[..., 0], fine)
    on_outline = away < 0.5
    if not on_outline.any():
        return 0.0
    width = float(np.median((step / (steepest + _EPSILON))[on_outline]))
    return width * min(1.0, max(shape) / max(distance.shape))


def _by_grey_level(distance: Image, image: NDArray[np.floating[Any]]) -> Image:
    """Positive where a pixel of the band around the outline is more like the inside next to it than the outside."""
    from scipy import ndimage

    shape = image.shape[:2]
    factor = max(shape) / max(distance.shape)
    small = np.stack([rescale(each, distance.shape) for each in np.moveaxis(image, 2, 0)], axis=2)
    inside, outside = _sides(distance, small)
    step = outside - inside
    length = (step**2).sum(axis=2) + _EPSILON
    # 0 inside, 1 outside: the pixel's place between the two means, (I - inside) . step / |step|^2.
    place = -enlarged((inside * step).sum(axis=2) / length, shape)
    for index, channel in enumerate(np.moveaxis(image, 2, 0)):
        smooth = ndimage.gaussian_filter(channel.astype(np.float64), 0.25 * factor)
        place += smooth * enlarged(step[..., index] / length, shape)
    away = enlarged(distance, shape)
    value = 0.5 - np.clip(place, -0.5, 1.5) + _REGULARITY * away / _BAND
    value = np.where(away > _BAND, 1.0, np.where(away < -_BAND, -1.0, value))
    return np.asarray(ndimage.gaussian_filter(value, _MERGING * factor))
