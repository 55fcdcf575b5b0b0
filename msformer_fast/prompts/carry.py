"""From the mask of one slice of a volume to the mask of the next one: what of the object goes on there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.foreground import Foreground, Maps, clusters_in, known_rule, known_targets
from msformer_fast.foreground.choice import choose, vote
from msformer_fast.foreground.evidence import (
    SMOOTHING,
    Image,
    Mask,
    darkness_channel,
    enlarge,
    outline_of,
    rescale,
)
from msformer_fast.foreground.priors import normal_term
from msformer_fast.prompts.box import rim
from msformer_fast.prompts.looks import Looks, Part, look, parts_around
from msformer_fast.prompts.prompt import Box, Point, Prompt
from msformer_fast.prompts.rule import PROMPT_RULE, SURE

# How far the object may grow from slice to slice, in pixels and as a part of the root of its area.
_REACH, _REACH_SHARE = 3.0, 0.15
# Width in pixels of what is looked at around a part.
_RING = 4.0
# Least share of a part's pixels that are still nearer to its grey level than to that around it.
_LEAST_LIKE = 0.2
# Least Dice of a part with the one that goes on; or, for what ends, most of it inside and that share of the size.
_LEAST_DICE, _INSIDE, _LEAST_SIZE = 0.35, 0.7, 0.08
# Parts of fewer pixels go on no further.
_SMALLEST = 4
# Gains of contrast and slope of the outline, deviation of one less the Dice, and of the outline that is the reach's.
_CONTRAST, _SLOPE, _CONTRAST_MOST = 6.0, 8.0, 1.2
_UNLIKE, _CUT = 0.15, 0.15
# Least Dice of what a rule proposes for it to have a say, and deviation of one less that.
_LEAST_KNOWN, _UNLIKE_KNOWN = 0.6, 0.1


class Neighbour(NamedTuple):
    """A slice that is done, beside the one to do.

    Attributes:
        pixels: (H, W, C) floats in [0, 1].
        mask: (H, W) bool.
        box: (x0, y0, x1, y1) in its pixels, that the object may not leave, or ``None``.
    """

    pixels: NDArray[np.float32]
    mask: Mask
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class _Before:
    """A connected part of the neighbour's mask (h, w), and the grey levels inside and around it."""

    mask: Mask
    inside: float
    around: float

    def nearer(self, channel: Image) -> Mask:
        """Where a channel is nearer to the grey level inside than to that around."""
        return np.abs(channel - self.inside) < np.abs(channel - self.around)


def check_neighbour(neighbour: Neighbour, shape: tuple[int, ...]) -> None:
    """Raises InputError unless pixels and mask are of the image's shape (H, W, C)."""
    if neighbour.pixels.shape != shape or neighbour.mask.shape != shape[:2] or neighbour.mask.dtype != np.bool_:
        raise InputError(
            f"neighbour: got pixels {neighbour.pixels.shape} and a mask {neighbour.mask.shape} of "
            f"{neighbour.mask.dtype}; accepted are {shape} and {shape[:2]} of bool, as the image"
        )


def carried(
    runs: Sequence[Maps],
    image: NDArray[Any],
    neighbour: Neighbour,
    not_points: Sequence[Point] = (),
    modality: str | None = None,
) -> Foreground:
    """What of the neighbour's object goes on in an image; the mask is empty where nothing does.

    Each connected part of the neighbour's mask goes on by itself: where pixels are that still have its grey level, the
    deepest of them is a click, and of the parts around it, no further than the object may grow, one is chosen by its
    outline and by how like the neighbour's it is. It has ended where few such pixels are, or what was chosen has the
    grey level of what is around, or overlaps too little. Where a rule without prompts proposes much the same as goes
    on, it has as much of a say, as for a click.

    Args:
        runs: labels (H, W) and scores (R, H, W) of one run or several of the image.
        image: what was clustered, (H, W, C) floats in [0, 1].
        neighbour: at any size.
        not_points: in pixels of ``image``, of pixels that are not of the object.
        modality: see :func:`msformer_fast.foreground.foreground`.
    """
    pixels = np.asarray(image, dtype=np.float64)
    shape = runs[0].labels.shape
    looks = look([maps.scores for maps in runs], pixels)
    ruled_out = [(int(y), int(x)) for x, y in Prompt(not_points=tuple(not_points)).at(shape, looks.shape).not_points]
    allowed = None
    if neighbour.box is not None:
        (box,) = Prompt(boxes=(neighbour.box,)).at(neighbour.mask.shape, looks.shape).boxes
        allowed = rim(box, looks.shape)
    before = rescale(neighbour.mask.astype(np.float64), looks.shape) > 0.5
    found = [_goes_on(looks, part, ruled_out, allowed) for part in _parts(before, neighbour.pixels, looks.shape)]
    kept = [each for each in found if each is not None]
    ended = len(found) - len(kept)
    if not kept:
        return Foreground(
            np.zeros(shape, dtype=bool), PROMPT_RULE, (), "The object ends before this slice.", doubtful=False
        )
    mask = np.any([each for each, _ in kept], axis=0)
    agreement = min(sureness for _, sureness in kept)
    what = "What goes on of the slice next to it"
    rule = known_rule(pixels, modality) if allowed is None else ""
    proposals, scores = known_targets(runs, pixels, rule)
    known = [
        (float(score) + normal_term(1 - _dice(each.mask, mask), _UNLIKE_KNOWN), each.mask)
        for score, each in zip(scores, proposals, strict=True)
        if _dice(each.mask, mask) >= _LEAST_KNOWN and not any(each.mask[pixel] for pixel in ruled_out)
    ]
    if known:
        groups = ([mask], np.zeros(1)), ([each for _, each in known], np.array([score for score, _ in known]))
        mask, agreement = vote(groups)
        what += f", by a vote with rule '{rule}'"
    doubtful = agreement < SURE
    reason = f"{what}{f', without {ended} parts that end' if ended else ''}, confidence {agreement:.2f}"
    mask = enlarge(mask, (shape[0], shape[1]))
    return Foreground(
        mask,
        PROMPT_RULE,
        clusters_in(mask, runs[0].labels),
        f"{reason}{' (doubtful)' if doubtful else ''}.",
        agreement,
        doubtful,
        {},
        len(found),
        agreement,
    )


def _parts(mask: Mask, pixels: NDArray[Any], shape: tuple[int, int]) -> list[_Before]:
    """The connected parts of the neighbour's mask that are large enough to go on."""
    from scipy import ndimage

    channel = rescale(darkness_channel(np.asarray(pixels, dtype=np.float64)), shape)
    channel = ndimage.gaussian_filter(channel, SMOOTHING)
    parts, count = ndimage.label(mask)
    found = []
    for number in range(1, count + 1):
        part = parts == number
        if np.count_nonzero(part) < _SMALLEST:
            continue
        ring = ~mask & (ndimage.distance_transform_edt(~part) <= _RING)
        inside = float(np.median(channel[part]))
        found.append(_Before(part, inside, float(np.median(channel[ring])) if ring.any() else 1 - inside))
    return found


def _goes_on(
    looks: Looks, before: _Before, ruled_out: Sequence[tuple[int, int]], allowed: Mask | None
) -> tuple[Mask, float] | None:
    """The mask with which a part goes on and how sure that is, or ``None`` where it has ended."""
    from scipy import ndimage

    channel, size = looks.dark.channel, np.count_nonzero(before.mask)
    alike = before.mask & before.nearer(channel)
    if allowed is not None:
        alike &= allowed
    if np.count_nonzero(alike) < max(_LEAST_LIKE * size, 1):
        return None
    depth = ndimage.distance_transform_edt(np.pad(alike, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), alike.shape)
    click = int(row), int(column)
    reach = ndimage.distance_transform_edt(~before.mask) <= _REACH + _REACH_SHARE * np.sqrt(size)
    if allowed is not None:
        reach &= allowed
    held = [
        part
        for part in parts_around(looks, click, reach)
        if part.mask[click] and not any(part.mask[pixel] for pixel in ruled_out)
    ]
    likely = [part for part in held if _is_like(part.mask, before, channel)]
    if not likely:
        return None
    scores = np.array([_score(part, before, reach) for part in likely])
    choice = choose([part.mask for part in likely], scores)
    return likely[choice.index].mask, choice.agreement


def _is_like(mask: Mask, before: _Before, channel: Image) -> bool:
    """Whether a mask may be what a part goes on as: by where it is, how large, and its grey level."""
    if abs(np.median(channel[mask]) - before.inside) >= abs(np.median(channel[mask]) - before.around):
        return False
    if _dice(mask, before.mask) >= _LEAST_DICE:
        return True
    size, shared = np.count_nonzero(mask), np.count_nonzero(mask & before.mask)
    return bool(shared >= _INSIDE * size and size >= _LEAST_SIZE * np.count_nonzero(before.mask))


def _score(part: Part, before: _Before, reach: Mask) -> float:
    from scipy import ndimage

    outline = outline_of(part.mask)
    cut = float((outline & ~ndimage.binary_erosion(reach, border_value=True)).sum() / outline.sum())
    score = _CONTRAST * min(part.features["contrast"], _CONTRAST_MOST) + _SLOPE * part.features["edge"]
    return score + normal_term(1 - _dice(part.mask, before.mask), _UNLIKE) + normal_term(cut, _CUT)


def _dice(a: Mask, b: Mask) -> float:
    return float(2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1))
