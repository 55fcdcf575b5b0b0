"""A box without a click: the part or the parts in it that fill it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from msformer_fast.foreground.choice import choose
from msformer_fast.foreground.evidence import Mask
from msformer_fast.foreground.priors import normal_term
from msformer_fast.prompts.looks import Looks, Part, parts_in
from msformer_fast.prompts.prompt import Box

# How much further than its box an object may reach, as a part of the box's sides.
_RIM = 0.06
# Least share of the box that an object fills.
_LEAST = 0.05
# Gains of contrast and slope of the outline; mean and deviation of solidity; deviation of how far the object's sides
# are from the box's, as a part of them. Of two parts in one box, what they differ by.
_CONTRAST, _SLOPE, _CONTRAST_MOST = 12.0, 5.0, 1.2
_SOLIDITY, _SIDES = (0.95, 0.06), 0.06
_PAIR_MEAN, _PAIR_GAIN, _PAIR_OVERLAP = 0.1, 0.0, 0.02
_KEPT = 60


def boxed(looks: Looks, box: Box, ruled_out: Sequence[tuple[int, int]]) -> tuple[Mask, float, int]:
    """The mask that a box means, how sure that is, and how many parts were weighed.

    ``box`` is in pixels of the grid; ``ruled_out`` are pixels (row, column) that parts may not hold.
    """
    allowed = rim(box, looks.shape)
    every = parts_in(looks, allowed)
    parts = [part for part in every if not any(part.mask[pixel] for pixel in ruled_out)]
    scored = sorted(((_score(part), part) for part in parts), key=lambda pair: -pair[0])[:_KEPT]
    guesses = [(score + _fit(mask, box), mask) for score, mask in _guesses(scored)]
    guesses = [(score, mask) for score, mask in guesses if mask.sum() >= _LEAST * allowed.sum()]
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


def _guesses(scored: Sequence[tuple[float, Part]]) -> Iterator[tuple[float, Mask]]:
    """Single parts, and two that do not overlap and have the same value."""
    for index, (score, part) in enumerate(scored):
        yield score, part.mask
        for other_score, other in scored[index + 1 :]:
            unlike = part.features["mean"] - other.features["mean"]
            smaller = min(np.exp(each.features["area"]) * each.mask.size for each in (part, other))
            if np.count_nonzero(part.mask & other.mask) <= _PAIR_OVERLAP * smaller:
                total = (score + other_score) / 2 + normal_term(unlike, _PAIR_MEAN) + _PAIR_GAIN
                yield total, part.mask | other.mask


def _score(part: Part) -> float:
    features = part.features
    score = _CONTRAST * min(features["contrast"], _CONTRAST_MOST) + _SLOPE * features["edge"]
    return score + normal_term(min(0.0, features["solidity"] - _SOLIDITY[0]), _SOLIDITY[1])


def _fit(mask: Mask, box: Box) -> float:
    """How well the sides of a mask agree with those of the box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x0, y0, x1, y1 = box
    across = (columns[0] - x0, columns[-1] + 1 - x1)
    down = (rows[0] - y0, rows[-1] + 1 - y1)
    return sum(normal_term(each / max(x1 - x0, 1.0), _SIDES) for each in across) + sum(
        normal_term(each / max(y1 - y0, 1.0), _SIDES) for each in down
    )
