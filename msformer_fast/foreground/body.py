"""The body on a CT slice: light tissue with air around it and air inside of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from msformer_fast.foreground.evidence import Image, Labels, Mask, grown, outline_of

# The table is thinner than this, in pixels on either side of its middle, and so falls off the body.
_TABLE = 2.0
# A part of the image's border that a dark part may touch and be inside of the body all the same, where the slice was
# cut too narrow: of the part's outline, without a corner of the image.
_CUT_OFF = 0.15
# A body of less than this share of the image is none.
_LEAST_BODY = 0.03
# Pixels that a dark part has at least where it begins; fewer are noise.
_LEAST_SEED = 6
# Share of a dark part inside of the tissue's convex hull from which the part is inside of the body.
_COVERED = 0.7


@dataclass(frozen=True, eq=False)
class Body:
    """A body at one grey level.

    Attributes:
        tissue: (h, w) bool, the largest light part, without the table.
        torso: (h, w) bool, all that is inside of its outline.
        air: (h, w) int, the numbered dark parts inside; 0 elsewhere.
    """

    tissue: Mask
    torso: Mask
    air: Labels

    @cached_property
    def area(self) -> int:
        """Pixels of the torso."""
        return int(self.torso.sum())

    @cached_property
    def top(self) -> int:
        return int(np.nonzero(self.torso.any(axis=1))[0][0])

    @cached_property
    def height(self) -> int:
        return int(np.ptp(np.nonzero(self.torso.any(axis=1))[0])) + 1

    @cached_property
    def width(self) -> int:
        return int(np.ptp(np.nonzero(self.torso.any(axis=0))[0])) + 1

    @cached_property
    def middle(self) -> float:
        """Column of the torso's centroid."""
        return float(np.nonzero(self.torso)[1].mean())

    @cached_property
    def depth(self) -> Image:
        """(h, w), distance from outside of the torso; beyond the image is outside."""
        from scipy import ndimage

        return np.asarray(ndimage.distance_transform_edt(np.pad(self.torso, 1))[1:-1, 1:-1])


@dataclass(frozen=True, eq=False)
class Tissue:
    """What is lighter than a grey level and may be a body; several bodies are found in one.

    Attributes:
        level: the grey level.
        mask: (h, w) bool, the largest light part, without the table.
    """

    level: float
    mask: Mask

    @cached_property
    def hull(self) -> Mask:
        """(h, w) bool, the convex hull."""
        from skimage.morphology import convex_hull_image

        return np.asarray(convex_hull_image(self.mask))  # type: ignore[no-untyped-call]


def tissue_at(channel: Image, level: float) -> Tissue | None:
    """The tissue of what is lighter than ``level`` in ``channel`` (h, w), or ``None`` where it is too little."""
    mask = _largest_wide(channel > level, _TABLE)
    return Tissue(level, mask) if mask.mean() >= _LEAST_BODY else None


def find_body(channel: Image, tissue: Tissue, core: float, cut: float) -> Body | None:
    """The body of a tissue, and the air inside.

    Dark parts are told apart where they are: at the level ``core``, narrow passages cut. From there they grow up to
    the tissue's level and meet at the lightest line between them (watershed; Beucher and Lantuéjoul, 1979): so a chest
    wall or the wall of a bronchus holds that is too thin to be light. What is joined to the image's border is outside.

    Args:
        channel: (h, w), light tissue.
        tissue: of the channel, at the level of the outlines.
        core: at most that level.
        cut: half the width in pixels of passages that are cut.

    Returns:
        The body, or ``None`` where no air is inside.
    """
    from scipy import ndimage
    from skimage.segmentation import watershed

    dark = channel <= core
    seeds, count = ndimage.label(_depth(dark, cut) > cut if cut else dark)
    sizes = np.bincount(seeds.ravel(), minlength=count + 1)
    seeds[np.isin(seeds, np.flatnonzero(sizes < _LEAST_SEED))] = 0
    parts = watershed(channel, seeds, mask=channel <= tissue.level)  # type: ignore[no-untyped-call]
    air = np.where(np.isin(parts, _outer(parts, count)), 0, parts)
    if not air.any():
        return None
    # What the table closes off lies beneath the back, and so outside of the tissue's convex hull.
    covered = np.bincount(air[tissue.hull], minlength=count + 1)
    air = np.where((covered >= _COVERED * np.bincount(air.ravel(), minlength=count + 1))[air], air, 0)
    if not air.any():
        return None
    return Body(tissue.mask, ndimage.binary_fill_holes(tissue.mask | (air > 0)), air)


def _outer(parts: Labels, count: int) -> Labels:
    """The numbers of the parts that lie outside: those on the border but for what the border cuts off a little."""
    border = np.concatenate([parts[0], parts[-1], parts[1:-1, 0], parts[1:-1, -1]])
    contact = np.bincount(border, minlength=count + 1)
    corners = {int(parts[row, column]) for row in (0, -1) for column in (0, -1)}
    outer = [
        number
        for number in range(1, count + 1)
        if number in corners or (contact[number] and contact[number] > _CUT_OFF * outline_of(parts == number).sum())
    ]
    return np.array(outer, dtype=np.intp)


def _depth(mask: Mask, radius: float) -> Image:
    """Distance to the nearest pixel that is not in the mask, right up to ``radius``; the image's border is no edge."""
    from scipy import ndimage

    beyond = int(radius) + 1
    distance = ndimage.distance_transform_edt(np.pad(mask, beyond, mode="edge"))
    return np.asarray(distance[beyond:-beyond, beyond:-beyond])


def _largest_wide(mask: Mask, radius: float) -> Mask:
    """The largest part of a mask after an opening by reconstruction of this radius."""
    core = _largest(_depth(mask, radius) > radius)
    return grown(core, mask, radius) if core.any() else core


def _largest(mask: Mask) -> Mask:
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax()) if sizes.any() else np.zeros_like(mask)
