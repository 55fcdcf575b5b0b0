"""Candidate masks: the connected parts of the level sets of a soft map, and what each looks like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msformer_fast.foreground.evidence import Evidence, Image, Mask, around, grown, outline_of

# Widths in pixels of the bands inside and outside of an outline whose difference is its contrast, and the gap
# between outline and outer band: partial pixels belong to neither.
_INNER, _GAP, _OUTER = 3.0, 0.5, 4.0
# Pixels this deep inside a mask, or this far outside, are certain; between them the outline may follow the edge.
_CERTAIN_INSIDE, _CERTAIN_OUTSIDE = 4.0, 7.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """One connected mask with its holes filled.

    Attributes:
        mask: (h, w) bool.
        features: see :func:`measure`.
    """

    mask: Mask
    features: dict[str, float]


def level_set_parts(
    evidence: Evidence,
    soft: Image,
    *,
    quantiles: NDArray[np.float64],
    cuts: Sequence[int],
    areas: tuple[float, float],
) -> list[Candidate]:
    """Every connected part of ``soft <= level`` for every level, as it is and cut free of narrow bridges.

    This is the component tree of the soft map (max-tree of its inverse; Salembier et al., IEEE TIP 7, 1998), sampled
    at quantiles, with an opening by reconstruction at each cut.

    Args:
        evidence: of the run.
        soft: the map to take levels of, (h, w).
        quantiles: of ``soft``, ascending; equal levels count once.
        cuts: radii in pixels.
        areas: least and largest share of the image that a part may have.
    """
    found: dict[bytes, Candidate] = {}
    for level in np.unique(np.quantile(soft, quantiles)):
        for mask in parts_of(soft <= level, cuts, areas):
            key = mask.tobytes()
            if key not in found:
                found[key] = Candidate(mask, measure(mask, evidence))
    return list(found.values())


def parts_of(level_set: Mask, cuts: Sequence[int], areas: tuple[float, float]) -> Iterator[Mask]:
    """The connected parts of a level set (h, w), cut free of narrow bridges at each radius, holes filled; none of all.

    ``cuts`` and ``areas`` as in :func:`level_set_parts`; an area is that of the part before what was cut grows back.
    """
    from scipy import ndimage

    if level_set.all():
        return
    least, most = (share * level_set.size for share in areas)
    depth = ndimage.distance_transform_edt(level_set)
    for cut in cuts:
        parts, _ = ndimage.label(depth > cut)
        sizes = np.bincount(parts.ravel())
        for part in 1 + np.flatnonzero((sizes[1:] >= least) & (sizes[1:] <= most)):
            mask = parts == part
            yield ndimage.binary_fill_holes(grown(mask, level_set, cut) if cut else mask)


def moved_to_edges(mask: Mask, edges: Image) -> Mask:
    """A mask with its outline at the nearest edge, holes filled; may be empty.

    Watershed of the gradient between what is surely inside and surely outside (Beucher and Lantuéjoul, 1979): what has
    other things at its sides, as a lung has ribs, heart and diaphragm, ends at another grey level at each of them.

    Args:
        mask: (h, w).
        edges: magnitude of the image's gradient, (h, w).
    """
    from scipy import ndimage
    from skimage.segmentation import watershed

    window = around(mask, _CERTAIN_OUTSIDE + 1)
    near = mask[window]
    depth = ndimage.distance_transform_edt(near)
    markers = np.zeros(near.shape, dtype=np.int32)
    markers[depth > min(_CERTAIN_INSIDE, 0.5 * depth.max())] = 1
    markers[ndimage.distance_transform_edt(~near) > _CERTAIN_OUTSIDE] = 2
    moved = np.zeros_like(mask)
    basins = watershed(edges[window], markers)  # type: ignore[no-untyped-call]
    moved[window] = ndimage.binary_fill_holes(basins == 1)
    return moved


def measure(mask: Mask, evidence: Evidence) -> dict[str, float]:
    """What a mask looks like, free of the image's size.

    Returns:
        ``area``: logarithm of its share of the image. ``row``, ``column``: its centroid, 0 to 1. ``offset``: distance
        of the centroid from the image's centre, in image sides. ``height``, ``width``: its extent without the
        outermost 2 % of its pixels at each end, in image sides. ``solidity``: its share of its convex hull.
        ``contrast``: how much lighter it is outside of the outline than inside, in units of the image's contrast.
        ``border``: share of the outline on the image border. ``frame``: share of the outline on the frame.
    """
    from scipy import ndimage

    rows, columns = np.nonzero(mask)
    size, (height, width) = mask.size, mask.shape
    window = around(mask, _OUTER)
    top_row, left_column = window[0].start, window[1].start
    mask, frame, channel = mask[window], evidence.frame[window], evidence.channel[window]
    row, column = (rows.mean() + 0.5) / height, (columns.mean() + 0.5) / width
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    inner = mask & (inside <= _INNER)
    outer = (outside > _GAP) & (outside <= _OUTER) & ~frame
    lighter = channel[outer].mean() - channel[inner].mean() if outer.any() else 0.0
    y, x = np.nonzero(outline_of(mask))
    on_frame = ndimage.binary_dilation(frame)[y, x]
    y, x = y + top_row, x + left_column
    border = (y < 1) | (x < 1) | (y > height - 2) | (x > width - 2)
    top, bottom = np.percentile(rows, [2, 98])
    left, right = np.percentile(columns, [2, 98])
    return {
        "area": float(np.log(rows.size / size)),
        "row": float(row),
        "column": float(column),
        "offset": float(np.hypot(row - 0.5, column - 0.5)),
        "height": float((bottom - top) / height),
        "width": float((right - left) / width),
        "solidity": rows.size / _hull_area(rows, columns),
        "contrast": float(lighter / evidence.contrast),
        "border": float(border.mean()),
        "frame": float(on_frame.mean()),
    }


def _hull_area(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
    """Area of the convex hull of the pixels as squares, so that a straight line has a hull as well."""
    from scipy.spatial import ConvexHull

    # Only the first and the last pixel of a row can be on the hull.
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    last = np.append(first[1:], rows.size) - 1
    corners = [
        np.stack([rows[ends] + dy, columns[ends] + dx], axis=1) for ends, dx in ((first, 0), (last, 1)) for dy in (0, 1)
    ]
    return float(ConvexHull(np.concatenate(corners)).volume)
