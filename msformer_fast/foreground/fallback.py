"""What to take where no candidate is there: a rule never leaves an empty mask."""

from __future__ import annotations

import numpy as np

from msformer_fast.foreground.evidence import Image, Labels, Mask, centre_weight, soft_map

_EPSILON = 1e-6


def central_dark_part(labels: Labels, channel: Image) -> tuple[Mask, str]:
    """The most central part of the clusters darker than the image, or else the most central cluster."""
    parts, sizes = _dark_parts(labels, channel)
    if not sizes.size:
        return _most_central_cluster(labels)
    weights = np.bincount(parts.ravel(), centre_weight(labels.shape).ravel())
    why = "No dark part is large enough to be judged, so the most central one was kept, holes filled."
    return _filled(parts == weights[1:].argmax() + 1), why


def largest_dark_parts(labels: Labels, channel: Image) -> tuple[Mask, str]:
    """The two largest parts of the clusters darker than the image, or else the most central cluster."""
    parts, sizes = _dark_parts(labels, channel)
    if not sizes.size:
        return _most_central_cluster(labels)
    kept = np.isin(parts, 1 + np.argsort(-sizes, kind="stable")[:2])
    return _filled(kept), "No dark part looks like a lung, so the largest, which may touch the border, were kept."


def _dark_parts(labels: Labels, channel: Image) -> tuple[Labels, Labels]:
    """Numbered parts of the clusters darker than the mean, and the size of each."""
    from scipy import ndimage

    parts, _ = ndimage.label(soft_map(labels, channel, None) < channel.mean() - _EPSILON)
    return parts, np.bincount(parts.ravel())[1:]


def _most_central_cluster(labels: Labels) -> tuple[Mask, str]:
    values, index = np.unique(labels, return_inverse=True)
    weights = np.bincount(index.ravel(), centre_weight(labels.shape).ravel())
    why = "No cluster is darker than the image mean, so the most central cluster was kept."
    return np.asarray(labels == values[weights.argmax()]), why


def _filled(mask: Mask) -> Mask:
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(mask))
