"""Axial CT slices: air inside of the body, in any number of parts, without windpipe, main bronchi and bowel gas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from msformer_fast.foreground.body import Body, Tissue, find_body, tissue_at
from msformer_fast.foreground.evidence import Evidence, Mask, around, outline_of
from msformer_fast.foreground.priors import normal_term
from msformer_fast.foreground.proposal import Proposal

#: No frame is looked for: the body tells the air around it from that inside.
FRAME_LEVEL = 0.0
#: Score under which what was found is unlike any lungs that the priors were taken from.
LIKELY = -4.0
# Grey levels between the 1st and the 99th percentile that outlines are tried at, and those on either side of the best
# that are tried in all variants; fewer, to tell the kind of image.
_LEVELS, _TAILS, _NEAR = 32, (1, 99), 3
_FEWER_LEVELS = 24
# How far below the outline's level parts are told apart, as a share of the difference between tissue and lung; and half
# the width of passages cut there, in pixels.
_DROPS, _CUTS = (0.0, 0.15, 0.3), (0.0, 1.0, 2.0)
_FIRST = (0.0, 1.0)
_KEPT = 40
# Radius in pixels of the closing of every part: thin vessels that reach in from the hilum.
_CLOSING = 2.0
# Largest hole that is filled, as a share of the torso; nearer than this to the middle column (share of the torso's
# width), where lungs meet around heart and hilum, the second.
_HOLE, _MEDIAL, _MEDIAL_HOLE = 0.03, 0.12, 0.002
# Standard deviation of the level from the middle between lung and tissue, as a share of their difference; mean and
# standard deviation of the logarithm of the lungs' share of the torso.
_MIDDLE, _SHARE = 0.08, (-1.1, 0.8)
# Gains of the outline's gradient, of the difference, and loss for air inside of the body that is left out.
_EDGE, _CONTRAST, _MISSED = 20.0, 5.0, 6.0
# Share of the torso from which air is that of a slice above stomach and bowel.
_ABOVE_BELLY = 0.25
# Distance from the torso's middle column, in its widths, within which windpipe and main bronchi lie.
_MIDLINE = 0.1
# Width in pixels of the tissue around a mask that it is compared with.
_RING = 4.0


def propose(evidence: Evidence) -> list[Proposal]:
    """The lungs at grey levels about the best one, best first; empty where no body with air inside is there."""
    levels = _levels(evidence, _LEVELS)
    tissues = [tissue_at(evidence.mixed, level) for level in levels]
    coarse = [_proposal(evidence, tissue, level, _FIRST[1]) for tissue, level in zip(tissues, levels, strict=True)]
    best = _best(coarse)
    middle = coarse[best]
    if middle is None:
        return []
    found: dict[bytes, Proposal] = {}
    for index in range(max(0, best - _NEAR), min(len(levels), best + _NEAR + 1)):
        for drop, cut in product(_DROPS, _CUTS):
            level = levels[index]
            first = (drop, cut) == _FIRST
            made = coarse[index] if first else _proposal(evidence, tissues[index], level - drop * middle[1], cut)
            if made is not None:
                found.setdefault(made[0].mask.tobytes(), made[0])
    return sorted(found.values(), key=lambda one: -one.score)[:_KEPT]


def at_best_level(evidence: Evidence) -> Proposal | None:
    """The best of a few grey levels, or ``None``: enough to tell what kind of image this is."""
    levels = _levels(evidence, _FEWER_LEVELS)
    coarse = [_proposal(evidence, tissue_at(evidence.mixed, level), level, _FIRST[1]) for level in levels]
    best = coarse[_best(coarse)]
    return None if best is None else best[0]


def _levels(evidence: Evidence, count: int) -> list[float]:
    low, high = np.percentile(evidence.mixed, _TAILS)
    return [float(level) for level in np.linspace(low, high, count + 2)[1:-1]]


def _best(made: Sequence[tuple[Proposal, float] | None]) -> int:
    return int(np.argmax([-np.inf if each is None else each[0].score for each in made]))


def _proposal(evidence: Evidence, tissue: Tissue | None, core: float, cut: float) -> tuple[Proposal, float] | None:
    """The lungs in a tissue, at its level, and how much lighter the tissue around them is."""
    from scipy import ndimage

    body = None if tissue is None else find_body(evidence.mixed, tissue, core, cut)
    if tissue is None or body is None:
        return None
    parts = {int(number): place(body.air == number, body, evidence) for number in np.unique(body.air) if number}
    kept = lungs_among(parts)
    if not kept:
        return None
    mask = np.zeros_like(body.torso)
    for number in kept:  # each for itself: lungs that nearly touch stay apart
        mask |= _closed(body.air == number)
    mask = _filled(mask & body.torso, body)
    inside = float(np.median(evidence.channel[mask]))
    near = around(mask, _RING)
    ring = (ndimage.distance_transform_edt(~mask[near]) <= _RING) & body.tissue[near]
    difference = max((float(np.median(evidence.channel[near][ring])) if ring.any() else tissue.level) - inside, 1e-6)
    air = int((body.air > 0).sum())
    missed = int(((body.air > 0) & ~mask).sum())
    terms = {
        "middle": normal_term((tissue.level - inside) / difference - 0.5, _MIDDLE),
        "edge": _EDGE * float(evidence.edges[outline_of(mask)].mean()) / evidence.contrast,
        "contrast": _CONTRAST * difference / evidence.contrast,
        "share": normal_term(float(np.log(mask.sum() / body.torso.sum())) - _SHARE[0], _SHARE[1]),
        "missed": -_MISSED * missed / air,
    }
    return Proposal(mask, sum(terms.values()), terms, tuple(parts[number] for number in kept)), difference


def place(part: Mask, body: Body, evidence: Evidence) -> dict[str, float]:
    """How large an air-filled part is, where it lies in the torso, and how dark it is.

    Returns:
        ``area``: share of the torso. ``row``: its centroid, from 0 at the torso's top to 1. ``column``: its centroid
        from the torso's, to the right, and ``width``, in widths of the torso. ``wall``: the least distance from the
        torso's outline, in roots of the torso's area. ``grey``: its median.
    """
    rows, columns = np.nonzero(part)
    return {
        "area": rows.size / body.area,
        "row": float((rows.mean() - body.top) / body.height),
        "column": float((columns.mean() - body.middle) / body.width),
        "width": float((np.ptp(columns) + 1) / body.width),
        "wall": float(body.depth[part].min() / np.sqrt(body.area)),
        "grey": float(np.median(evidence.channel[part])),
    }


def lungs_among(parts: Mapping[int, Mapping[str, float]]) -> list[int]:
    """Which of the air-filled parts of a torso are lung, by their numbers; see :func:`place`."""
    large = {number: part for number, part in parts.items() if not _is_speck(part)}
    likely = {number: part for number, part in large.items() if not _is_airway(part)}
    if not likely:  # apices are as small and as deep as bronchi, but not in the middle
        likely = {number: part for number, part in large.items() if abs(part["column"]) >= _MIDLINE}
    if not likely:
        return []
    largest = max(likely.values(), key=lambda part: part["area"])
    if sum(part["area"] for part in likely.values()) > _ABOVE_BELLY:
        return list(likely)
    return [number for number, part in likely.items() if part is largest or not _is_gas(part, largest)]


def _is_speck(part: Mapping[str, float]) -> bool:
    return part["area"] < 0.0015 or (part["area"] < 0.004 and part["wall"] > 0.1)


def _is_airway(part: Mapping[str, float]) -> bool:
    """Windpipe, main bronchi or gullet: small and narrow, and in the middle or far from every wall."""
    small = part["area"] < 0.02 and part["width"] < 0.15
    return small and (abs(part["column"]) < _MIDLINE or part["wall"] > 0.3)


def _is_gas(part: Mapping[str, float], lung: Mapping[str, float]) -> bool:
    """Gas of stomach or bowel: in front, off the chest wall that lungs lie against, and smaller by far than a lung."""
    small = part["area"] < 0.06 and part["area"] < 0.5 * lung["area"]
    return small and part["row"] < 0.45 and part["wall"] > 0.08 and part["row"] < lung["row"] - 0.1


def _closed(part: Mask) -> Mask:
    from scipy import ndimage

    # A closing stays within the part's rows and columns.
    window, beyond = around(part, 0), int(_CLOSING) + 1
    near = ndimage.distance_transform_edt(~np.pad(part[window], beyond)) <= _CLOSING
    closed = np.zeros_like(part)
    closed[window] = (ndimage.distance_transform_edt(near) > _CLOSING)[beyond:-beyond, beyond:-beyond]
    return closed


def _filled(mask: Mask, body: Body) -> Mask:
    """With its holes filled: vessels and nodules, not what lungs enclose that meet around heart or hilum."""
    from scipy import ndimage

    holes, count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    filled = mask.copy()
    for number in range(1, count + 1):
        hole = holes == number
        medial = np.abs(np.nonzero(hole)[1] - body.middle).min() < _MEDIAL * body.width
        if hole.sum() <= (_MEDIAL_HOLE if medial else _HOLE) * body.area:
            filled |= hole
    return filled


def describe(chosen: Proposal) -> tuple[str, bool]:
    """What was chosen, in words, and whether it is all that the rule looks for."""
    shares = sorted((100 * part["area"] for part in chosen.parts), reverse=True)
    listed = ", ".join(f"{share:.1f}" for share in shares[:4]) + (" ..." if len(shares) > 4 else "")
    return (
        f"Air inside of the body in {len(shares)} part{'s' * (len(shares) != 1)} of {listed} % of the torso, without "
        "windpipe and bowel gas, vessels filled"
    ), True
