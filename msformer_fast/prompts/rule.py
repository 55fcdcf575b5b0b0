"""From a click or a box to a mask: of all parts that it may mean, what agrees best with the rest.

A click means the part of the level sets that holds it, in whose middle it lies, whose outline is an edge; and with it
what looks the same elsewhere: the other one of a pair, and smaller parts. What belongs together is decided by
the clusters' soft scores and the image's own values, half and half. Where the image is of a kind that a rule without
prompts was made for, what that rule proposes around the click has as much of a say: the two err in different places.
A box means all parts in it that fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msformer_fast.foreground import Foreground, Maps, clusters_in, known_rule, known_targets
from msformer_fast.foreground.calibration import DOUBTFUL, Raw, calibrated, curve_of
from msformer_fast.foreground.choice import choose, vote
from msformer_fast.foreground.evidence import Mask, enlarge
from msformer_fast.foreground.priors import normal_term
from msformer_fast.prompts.box import boxed, rim
from msformer_fast.prompts.looks import Looks, Part, described, look, parts_around
from msformer_fast.prompts.prompt import Box, Point, Prompt, holds

#: The name of this rule.
PROMPT_RULE = "prompt"
#: Confidence from which a mask needs no second look, where there is no curve.
SURE = 0.85

# All were chosen on every other image, by name, of those that the documentation reports on.
# Gains for each unit of contrast and of slope of the outline; beyond this contrast there is no more to gain.
_CONTRAST, _SLOPE, _CONTRAST_MOST = 12.0, 16.0, 1.2
# Means and deviations of a part's features.
_AREA, _SOLIDITY, _BORDER = (-1.4, 0.5), (0.95, 0.08), (0.0, 0.15)
# Deviation of how far from a part's middle a click is: 0 in the middle, 1 at the outline.
_OFF_MIDDLE = 0.2
# Deviations of what the two of a pair differ by, and what a pair gains; largest differences of all.
_PAIR = {"row": 0.08, "area": 0.7, "solidity": 0.06, "mean": 0.05}
_PAIR_GAIN = 3.0
_PAIR_MOST = {"row": 0.2, "area": 1.6}
_PAIR_OVERLAP, _OTHER_BORDER = 0.02, 0.2
# Smaller parts of the same look: least share of the clicked part's area and contrast, largest difference in value.
_LEAST_AREA, _LEAST_CONTRAST, _MOST_UNLIKE, _LEAST_SOLIDITY = 0.05, 0.9, 0.06, 0.5
_KEPT, _OTHERS_KEPT = 40, 60


class _Targets(NamedTuple):
    """What a rule without prompts proposes: its name, scores and masks; no name where none was made for the image."""

    rule: str
    scored: Sequence[tuple[float, Mask]]


@dataclass(frozen=True, eq=False)
class _Guess:
    """A mask that may be meant: its score, and how many parts it has."""

    mask: Mask
    score: float
    first: Part
    paired: bool = False


@dataclass(frozen=True, eq=False)
class _Found:
    """What one click or box means, how sure that is, and what it is called.

    ``rule``: that had a say. ``curve``: the name of the one that brings the agreement to a Dice; empty without one.
    """

    mask: Mask
    agreement: float
    what: str
    candidates: int
    rule: str = ""
    curve: str = ""

    @property
    def confidence(self) -> float:
        """The Dice to expect; without a curve the agreement itself, and where nothing was found 0."""
        return calibrated(self.curve, Raw(self.agreement, 0.0)) if self.curve and self.agreement else self.agreement

    @property
    def doubtful(self) -> bool:
        return self.confidence < (DOUBTFUL[self.curve] if self.curve else SURE)


def prompted(runs: Sequence[Maps], image: NDArray[Any], prompt: Prompt, modality: str | None = None) -> Foreground:
    """The mask that a prompt means.

    Args:
        runs: labels (H, W) and scores (R, H, W) of one run or several of one image, of one size; the expected colours
            of all are averaged. Without scores the image's own values stand alone.
        image: what was clustered, (H, W, C) floats in [0, 1].
        prompt: in pixels of ``image``.
        modality: "ct" or "xray" where it is known what made the image.
    """
    pixels = np.asarray(image, dtype=np.float64)
    labels = runs[0].labels
    looks = look([maps.scores for maps in runs], pixels)
    here = prompt.at(pixels.shape, looks.shape)
    rule = known_rule(pixels, modality)
    targets = _Targets(rule, [])
    if here.points and not here.boxes:
        proposals, scores = known_targets(runs, pixels, rule)
        targets = _Targets(rule, [(float(score), each.mask) for score, each in zip(scores, proposals, strict=True)])
    found = [_of_points(looks, here, None, targets)] if not here.boxes else []
    for box in here.boxes:
        inside = tuple(point for point in here.points if holds(box, point))
        if inside:
            found.append(_of_points(looks, Prompt(inside, here.not_points), box, targets))
        else:
            mask, agreement, count = boxed(looks, box, _pixels(here.not_points, looks.shape))
            found.append(_Found(mask, agreement, "what fills the box", count, curve=curve_of("box", rule)))
    mask = np.any([each.mask for each in found], axis=0)
    confidence = min(each.confidence for each in found)
    doubtful = any(each.doubtful for each in found)
    what = "; ".join(dict.fromkeys(each.what for each in found))
    count = sum(each.candidates for each in found)
    mask = enlarge(mask, (labels.shape[0], labels.shape[1]))
    reason = f"{what[:1].upper()}{what[1:]}, {100 * mask.mean():.1f} % of the image, chosen among {count} candidates"
    return Foreground(
        mask,
        PROMPT_RULE,
        clusters_in(mask, labels),
        f"{reason}, confidence {confidence:.2f}{' (doubtful)' if doubtful else ''}.",
        confidence,
        doubtful,
        {},
        count,
        min(each.agreement for each in found),
        voted_with=found[0].rule,
    )


def _of_points(looks: Looks, prompt: Prompt, box: Box | None, targets: _Targets) -> _Found:
    """The object of one click, or the union of the parts of several."""
    allowed = None if box is None else rim(box, looks.shape)
    clicks, ruled_out = _pixels(prompt.points, looks.shape), _pixels(prompt.not_points, looks.shape)
    found = [_of_click(looks, click, clicks, ruled_out, allowed, targets) for click in clicks]
    if len(found) == 1 and found[0].rule:  # not-points were respected
        return found[0]
    mask = np.any([each.mask for each in found], axis=0)
    for row, column in ruled_out:
        mask[row, column] = False
    what, rule = found[0].what, next((each.rule for each in found if each.rule), "")
    if len(found) > 1:
        what = f"the parts of {len(found)} clicks" + (f", by votes with rule '{rule}'" if rule else "")
    # Clicks within a box, and one click whose rule had no say, have no curve.
    curve = curve_of("clicks", targets.rule) if len(found) > 1 and box is None else ""
    agreement, count = min(each.agreement for each in found), sum(each.candidates for each in found)
    return _Found(mask, agreement, what, count, rule, curve)


def _of_click(
    looks: Looks,
    click: tuple[int, int],
    clicks: Sequence[tuple[int, int]],
    ruled_out: Sequence[tuple[int, int]],
    allowed: Mask | None,
    targets: _Targets,
) -> _Found:
    """What one click means. Of several clicks each means its own part, without what looks alike elsewhere."""
    parts = parts_around(looks, click, allowed)
    clean = [part for part in parts if not _holds_any(part.mask, ruled_out)]
    held = [part for part in clean if part.mask[click]]
    if not held:
        held = [cut for part in parts if part.mask[click] and (cut := _cut_off(part, looks, click, ruled_out))]
    if not held:
        return _Found(_dot(looks.shape, click), 0.0, "the clicked pixel, where no part was found", 0)
    scored = _scored(held, click)[:_KEPT]
    guesses = [_Guess(part.mask, score, part) for score, part in scored]
    others: list[tuple[float, Part]] = []
    if len(clicks) == 1:
        away = [part for part in clean if not part.mask[click] and part.features["border"] < _OTHER_BORDER]
        others = _scored(away, None)
        guesses += [guess for score, part in scored for guess in _pairs(score, part, others[:_OTHERS_KEPT])]
    masks, scores = [guess.mask for guess in guesses], np.array([guess.score for guess in guesses])
    known = _with_click(targets, click, ruled_out, alone=len(clicks) > 1)
    choice = choose(masks, scores)
    chosen = guesses[choice.index]
    what = "the clicked part" + (" and its like on the other side" if chosen.paired else "")
    if known:
        both = (masks, scores), ([mask for _, mask in known], np.array([score for score, _ in known]))
        mask, agreement = vote(both)
        what += f", by a vote with rule '{targets.rule}'"
        return _Found(mask, agreement, what, len(parts) + len(known), targets.rule, curve_of("prompt", targets.rule))
    mask, more = _with_smaller(chosen, others)
    what += f" and {more} smaller of the same look" if more else ""
    return _Found(mask, choice.agreement, what, len(parts))


def _with_click(
    targets: _Targets, click: tuple[int, int], ruled_out: Sequence[tuple[int, int]], alone: bool
) -> list[tuple[float, Mask]]:
    """Those of the masks that the click lies in, or of each its part alone, and their scores by how near the middle of
    that part it does."""
    from scipy import ndimage

    found = []
    for score, mask in targets.scored:
        if mask[click]:
            parts, _ = ndimage.label(mask)
            part = parts == parts[click]
            meant = part if alone else mask
            if not _holds_any(meant, ruled_out):
                found.append((score + normal_term(_off_middle(part, click), _OFF_MIDDLE), meant))
    return found


def _scored(parts: Sequence[Part], click: tuple[int, int] | None) -> list[tuple[float, Part]]:
    """Parts with their scores, best first."""
    return sorted(((_score(part, click), part) for part in parts), key=lambda pair: -pair[0])


def _score(part: Part, click: tuple[int, int] | None) -> float:
    features = part.features
    score = _CONTRAST * min(features["contrast"], _CONTRAST_MOST) + _SLOPE * features["edge"]
    score += normal_term(features["area"] - _AREA[0], _AREA[1])
    score += normal_term(min(0.0, features["solidity"] - _SOLIDITY[0]), _SOLIDITY[1])
    score += normal_term(features["border"] - _BORDER[0], _BORDER[1])
    return score if click is None else score + normal_term(_off_middle(part.mask, click), _OFF_MIDDLE)


def _off_middle(mask: Mask, click: tuple[int, int]) -> float:
    """How far from the deepest pixel's depth the click's is, 0 to 1."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return 1.0 - float(depth[click] / depth.max())


def _pairs(score: float, part: Part, others: Sequence[tuple[float, Part]]) -> list[_Guess]:
    """The part with each other one that may be its like on the other side of the image."""
    guesses = []
    for other_score, other in others:
        a, b = part.features, other.features
        if (a["column"] - 0.5) * (b["column"] - 0.5) > 0:
            continue
        if any(abs(a[name] - b[name]) > most for name, most in _PAIR_MOST.items()):
            continue
        if np.count_nonzero(part.mask & other.mask) > _PAIR_OVERLAP * np.count_nonzero(other.mask):
            continue
        alike = sum(normal_term(a[name] - b[name], deviation) for name, deviation in _PAIR.items())
        total = (score + other_score) / 2 + alike + _PAIR_GAIN
        guesses.append(_Guess(part.mask | other.mask, total, part, paired=True))
    return guesses


def _with_smaller(chosen: _Guess, others: Sequence[tuple[float, Part]]) -> tuple[Mask, int]:
    """The mask with smaller parts of the same look, off it; and how many they are."""
    from scipy import ndimage

    mask, count, first = chosen.mask.copy(), 0, chosen.first.features
    for _, part in others:
        features = part.features
        alike = (
            features["area"] >= first["area"] + np.log(_LEAST_AREA)
            and features["contrast"] >= _LEAST_CONTRAST * first["contrast"]
            and abs(features["mean"] - first["mean"]) <= _MOST_UNLIKE
            and features["solidity"] >= _LEAST_SOLIDITY
        )
        if alike and not (ndimage.binary_dilation(mask) & part.mask).any():
            mask |= part.mask
            count += 1
    return mask, count


def _cut_off(part: Part, looks: Looks, click: tuple[int, int], ruled_out: Sequence[tuple[int, int]]) -> Part | None:
    """The clicked side of a part that holds a pixel that is not of it: the watershed of the edges between the two."""
    from skimage.segmentation import watershed

    markers = np.zeros(looks.shape, dtype=np.int32)
    for row, column in ruled_out:
        markers[row, column] = 2
    markers[click] = 1
    basins = watershed(looks.dark.edges, markers, mask=part.mask)  # type: ignore[no-untyped-call]
    side = basins == 1
    return described(side, looks) if side.any() else None


def _pixels(points: Sequence[Point], shape: tuple[int, int]) -> list[tuple[int, int]]:
    """(row, column) of each point (x, y)."""
    return [(int(np.clip(round(y), 0, shape[0] - 1)), int(np.clip(round(x), 0, shape[1] - 1))) for x, y in points]


def _holds_any(mask: Mask, pixels: Sequence[tuple[int, int]]) -> bool:
    return any(mask[pixel] for pixel in pixels)


def _dot(shape: tuple[int, int], click: tuple[int, int]) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[click] = True
    return mask
