"""A box without a click: the part or the parts in it that fill it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from msformer_fast.foreground.choice import choose
from msformer_fast.foreground.evidence import Mask, outline_of
from msformer_fast.foreground.priors import normal_term
from msformer_fast.prompts.looks import Looks, Part, parts_in
from msformer_fast.prompts.prompt import Box

# How much further than its box an object may reach, as a part of the box's sides.
_RIM = 0.06
# Least share of the box that an object fills.
_LEAST = 0.02
# Gains of contrast and slope of the outline; mean and deviation of solidity; deviation of how far the object's sides
# are from the box's, as a part of them, and of the share of an outline that is the rim's. Of two parts, what they
# differ by; so many parts are taken for pairs.
_CONTRAST, _SLOPE, _CONTRAST_MOST = 12.0, 12.0, 1.2
_SOLIDITY, _SIDES, _CUT = (0.95, 0.06), 0.06, 0.06
_PAIR_MEAN, _PAIR_GAIN, _PAIR_OVERLAP = 0.1, 0.0, 0.02
_KEPT, _MANY = 80, 30
# Of parts of the same look: largest difference in value, least share of the contrast.
_MOST_UNLIKE, _LEAST_CONTRAST = 0.06, 0.8


def boxed(looks: Looks, box: Box, ruled_out: Sequence[tuple[int, int]]) -> tuple[Mask, float, int]:
    """The mask that a box means, how sure that is, and how many parts were weighed.

    ``box`` is in pixels of the grid; ``ruled_out`` are pixels (row, column) that parts may not hold.
    """
    allowed = rim(box, looks.shape)
    every = parts_in(looks, allowed)
    least = _LEAST * np.count_nonzero(allowed)
    parts = [
        part
        for part in every
        if np.count_nonzero(part.mask) >= least and not any(part.mask[pixel] for pixel in ruled_out)
    ]
    scored = sorted(((_score(part, allowed), part) for part in parts), key=lambda pair: -pair[0])
    guesses = [(score + _fit(mask, box), mask) for score, mask in _guesses(scored)]
    if not guesses:
        return rim(box, looks.shape, wider=0.0), 0.0, len(every)
    choice = choose([mask for _, mask in guesses], np.array([score for score, _ in guesses]))
    return guesses[choice.index][1], choice.agreement, len(every)


def rim(box: Box, shape: tuple[int, int], wider: float = _RIM) -> Mask:
    """The pixels (h, w) of a box, and of a rim of so many of its sides around it; never none."""
    x0, y0, x1, y1 = box
    rows = _range(y0, y1, wider, shape[0])
    columns = _range(x0, x1, wider, shape[1])
    mask = np.zeros(shape, dtype=bool)
    mask[rows, columns] = True
    return mask


def _range(low: float, high: float, wider: float, length: int) -> slice:
    more = wider * (high - low)
    first = min(max(0, int(np.floor(low - more))), length - 1)
    return slice(first, max(first + 1, int(np.ceil(high + more))))


def _guesses(scored: list[tuple[float, Part]]) -> Iterator[tuple[float, Mask]]:
    """Single parts, two that do not overlap and have the same value, and all that look the same as one."""
    for index, (score, part) in enumerate(scored[:_MANY]):
        yield _all_alike(score, part, scored[:index] + scored[index + 1 :])
    for index, (score, part) in enumerate(scored):
        yield score, part.mask
        for other_score, other in scored[index + 1 : _KEPT]:
            unlike = part.features["mean"] - other.features["mean"]
            smaller = min(np.exp(each.features["area"]) * each.mask.size for each in (part, other))
            if np.count_nonzero(part.mask & other.mask) <= _PAIR_OVERLAP * smaller:
                total = (score + other_score) / 2 + normal_term(unlike, _PAIR_MEAN) + _PAIR_GAIN
                yield total, part.mask | other.mask


def _all_alike(score: float, part: Part, others: Sequence[tuple[float, Part]]) -> tuple[float, Mask]:
    """The part with all that are off it and look the same; the mean of their scores, by area."""
    from scipy import ndimage

    mask, own = part.mask.copy(), part.features
    scores, areas = [score], [np.count_nonzero(part.mask)]
    for other_score, other in others:
        features = other.features
        alike = (
            abs(features["mean"] - own["mean"]) <= _MOST_UNLIKE
            and features["contrast"] >= _LEAST_CONTRAST * own["contrast"]
        )
        if alike and not (ndimage.binary_dilation(mask) & other.mask).any():
            mask |= other.mask
            scores.append(other_score)
            areas.append(np.count_nonzero(other.mask))
    return float(np.average(scores, weights=areas)), mask


def _score(part: Part, allowed: Mask) -> float:
    from scipy import ndimage

    features = part.features
    outline = outline_of(part.mask)
    # What ends where the rim ends goes on beyond it, and is not what the box was drawn around.
    cut = float((outline & ~ndimage.binary_erosion(allowed, border_value=True)).sum() / outline.sum())
    score = _CONTRAST * min(features["contrast"], _CONTRAST_MOST) + _SLOPE * features["edge"]
    score += normal_term(min(0.0, features["solidity"] - _SOLIDITY[0]), _SOLIDITY[1])
    return score + normal_term(cut, _CUT)


def _fit(mask: Mask, box: Box) -> float:
    """How well the sides of a mask agree with those of the box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x0, y0, x1, y1 = box
    across = (columns[0] - x0, columns[-1] + 1 - x1)
    down = (rows[0] - y0, rows[-1] + 1 - y1)
    return sum(normal_term(each / max(x1 - x0, 1.0), _SIDES) for each in across) + sum(
        normal_term(each / max(y1 - y0, 1.0), _SIDES) for each in down
    )
