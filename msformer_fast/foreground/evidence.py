"""What a rule looks at: the soft map of a run, the image, and what of it is frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msformer_fast.images import resize_image

Mask: TypeAlias = NDArray[np.bool_]
Labels: TypeAlias = NDArray[np.integer[Any]]
Image: TypeAlias = NDArray[np.float64]

#: Longest side in pixels at which candidates are made and judged, whatever the image's; radii are in pixels of it.
SIDE = 129
# Temperature of the softmax, in standard deviations of the scores: the loop drives scores so far apart that without
# it the soft map is the hard one. From 0.1 to 1.6 the best candidates are equally good.
_TEMPERATURE = 0.4
#: Standard deviation in pixels of the smoothing before anything is compared.
SMOOTHING = 0.8
# A larger share of the image is no frame but a dark image.
_MOST_FRAME = 0.9
#: Weight of the soft map where both are mixed: the map is free of hairs and texture, the image has the finer outline.
SOFT_SHARE = 0.5
# Standard deviation of the centre weight, in units of the image's height and width.
_CENTRE_WIDTH = 0.2


@dataclass(frozen=True, eq=False)
class Evidence:
    """The maps of one run, all (h, w) with the longest side :data:`SIDE`; dark is low.

    Attributes:
        soft: expected channel value of the pixel's cluster.
        mixed: mean of ``soft`` and ``channel``, whose level sets give the candidates.
        channel: the darkness channel of the image, smoothed.
        edges: magnitude of the channel's gradient.
        frame: black frame or vignette, joined to the image border.
        contrast: spread of the channel outside the frame (5th to 95th percentile), positive.
    """

    soft: Image
    mixed: Image
    channel: Image
    edges: Image
    frame: Mask
    contrast: float


def gather(labels: Labels, scores: NDArray[Any] | None, channel: Image, frame_level: float) -> Evidence:
    """Put the maps of a run together.

    Args:
        labels: (H, W) integers. scores: (R, H, W) or ``None``; see :func:`soft_map`.
        channel: (H, W), in which the target is dark.
        frame_level: what is darker than this part of the channel's 90th percentile, and joined to the image border,
            is frame (border-connected components; Soille, Morphological Image Analysis, 2003).
    """
    from scipy import ndimage

    shape = judged_size(labels.shape)
    soft = rescale(soft_map(labels, channel, scores), shape)
    smooth, edges = _smooth_and_edges(channel, shape)
    parts, _ = ndimage.label(smooth < frame_level * np.percentile(smooth, 90))
    border = border_values(parts)
    frame = ndimage.binary_dilation(np.isin(parts, border[border > 0]))
    if frame.mean() > _MOST_FRAME:
        frame = np.zeros_like(frame)
    mixed = SOFT_SHARE * soft + (1 - SOFT_SHARE) * smooth
    return Evidence(soft, mixed, smooth, edges, frame, contrast_of(smooth[~frame]))


def image_evidence(channel: Image) -> Evidence:
    """The maps of an image alone, (H, W), without a run and without a frame."""
    smooth, edges = _smooth_and_edges(channel, judged_size(channel.shape))
    return Evidence(smooth, smooth, smooth, edges, np.zeros(smooth.shape, dtype=bool), contrast_of(smooth))


def _smooth_and_edges(channel: Image, shape: tuple[int, int]) -> tuple[Image, Image]:
    from scipy import ndimage

    small = rescale(channel, shape)
    return ndimage.gaussian_filter(small, SMOOTHING), ndimage.gaussian_gradient_magnitude(small, SMOOTHING)


def ends_of(values: NDArray[Any]) -> tuple[float, float]:
    """Between which all values lie but the outermost half a percent at each end."""
    low, high = np.percentile(values, [0.5, 99.5])
    return float(low), float(high)


def contrast_of(values: NDArray[np.float64]) -> float:
    """Spread of the values, from the 5th to the 95th percentile; positive."""
    low, high = np.percentile(values, [5, 95])
    return max(float(high - low), 1e-6)


def soft_map(labels: Labels, channel: Image, scores: NDArray[Any] | None) -> Image:
    """The expected channel value of every pixel's cluster, (H, W).

    ``scores`` (R, H, W) of the clusters that are left: softmax over them, times the mean channel of each. Without
    scores: every pixel gets its label's mean.
    """
    if scores is None:
        _, index = np.unique(labels, return_inverse=True)
        index = index.ravel()
        means = np.bincount(index, channel.ravel()) / np.bincount(index)
        return np.asarray(means[index].reshape(labels.shape))
    shares = cluster_shares(scores)
    means = (shares * channel).sum(axis=(1, 2)) / shares.sum(axis=(1, 2))
    return np.asarray(np.tensordot(means, shares, axes=1))


def cluster_shares(scores: NDArray[Any]) -> Image:
    """How much a pixel belongs to each cluster, (R, H, W): the softmax over the scores (R, H, W)."""
    logits = scores.astype(np.float64)
    logits -= logits.max(axis=0)
    shares = np.exp(logits / (_TEMPERATURE * max(float(logits.std()), 1e-6)))
    shares /= shares.sum(axis=0)
    return shares


def darkness_channel(image: Image) -> Image:
    """Where a dark target stands out: blue of an RGB image, in which melanin absorbs most, else the mean."""
    return image[..., 2] if image.shape[2] == 3 else image.mean(axis=2)


def grey_channel(image: Image) -> Image:
    """The mean of the channels, (H, W)."""
    return np.asarray(image.mean(axis=2))


def rescale(values: Image, shape: tuple[int, int]) -> Image:
    """A map (H, W) at another size, by the image's own resizing."""
    return np.asarray(resize_image(values[..., None].astype(np.float32), shape)[..., 0], dtype=np.float64)


def judged_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """(h, w) with the longest side :data:`SIDE`."""
    factor = SIDE / max(shape)
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def enlarge(mask: Mask, shape: tuple[int, int]) -> Mask:
    """A mask at another size with smooth outlines, not in steps."""
    if mask.shape == shape:
        return mask
    covered = rescale(mask.astype(np.float64), shape)
    # A mask smaller than half a pixel keeps the pixel that it covers most.
    return np.asarray(covered >= min(0.5, covered.max()))


def around(mask: Mask, margin: float) -> tuple[slice, slice]:
    """The rows and columns within ``margin`` pixels of a mask: distances up to there are the same in this window."""
    from scipy import ndimage

    (box,) = ndimage.find_objects(mask.astype(np.int8))
    reach = int(np.ceil(margin)) + 1
    rows, columns = (
        slice(max(0, side.start - reach), min(length, side.stop + reach))
        for side, length in zip(box, mask.shape, strict=True)
    )
    return rows, columns


def grown(seed: Mask, within: Mask, radius: float) -> Mask:
    """What of ``within`` is within ``radius`` pixels of ``seed``: the other half of an opening by reconstruction."""
    from scipy import ndimage

    return within & (ndimage.distance_transform_edt(~seed) <= radius)


def outline_of(mask: Mask) -> Mask:
    """The pixels of a mask that have a 4-neighbour outside of it; outside of the image is outside."""
    from scipy import ndimage

    return mask & ~ndimage.binary_erosion(mask)


def centre_weight(shape: tuple[int, ...]) -> Image:
    """How central every pixel is, (H, W): a Gaussian about the image's middle, 1 there."""
    rows, columns = (((np.arange(n) + 0.5) / n - 0.5) / _CENTRE_WIDTH for n in shape)
    return np.asarray(np.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / 2))


def border_values(parts: NDArray[Any]) -> NDArray[Any]:
    """The numbers that occur on the border of a map."""
    return np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
