"""The choice among scored masks, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msformer_fast.foreground.evidence import Mask
from msformer_fast.foreground.proposal import Proposal

# Scores are sums of correlated terms; as log-probabilities they would be far too sure of themselves.
_FLATNESS = 2.0
_COMPARED = 40
# Parts of a vote of less than this share of the largest are left over where outlines cross.
_SMALL = 0.05


@dataclass(frozen=True)
class Choice:
    """The mask that agrees best with all that is likely.

    Attributes:
        index: of the chosen candidate.
        agreement: its expected Dice with the true one, were the candidates' weights its probabilities.
    """

    index: int
    agreement: float


def choose(masks: Sequence[Mask], scores: NDArray[np.float64]) -> Choice:
    """The candidate with the largest expected Dice (minimum Bayes risk), candidates weighed by exp(score / 2).

    The best score alone may belong to an outlier; several masks that say nearly the same outvote it.

    Args:
        masks: (h, w) bool each, one or more.
        scores: one a mask.
    """
    best, weights = _likely(scores)
    flat = np.stack([masks[index].ravel() for index in best]).astype(np.float32)
    sizes = flat.sum(axis=1)
    overlaps = 2 * (flat @ flat.T) / (sizes[:, None] + sizes)
    expected = overlaps @ weights
    chosen = int(expected.argmax())
    return Choice(int(best[chosen]), float(expected[chosen]))


def vote(groups: Sequence[tuple[Sequence[Mask], NDArray[np.float64]]]) -> tuple[Mask, float]:
    """The pixels that more than half of all weight holds, and their expected Dice with the masks.

    Every group has the same say, weights in it are those of :func:`choose`. Where sources err in different places, what
    they have in common is better than the best of any (weighted majority vote; Heckemann et al., NeuroImage 33, 2006).

    Args:
        groups: masks (h, w) bool, one or more, and their scores. All of them have a pixel in common.

    Returns:
        The mask, holes filled, without parts that are small beside the largest; and 0 to 1.
    """
    from scipy import ndimage

    masks, weights = [], []
    for group, scores in groups:
        best, of_group = _likely(scores)
        masks += [group[index] for index in best]
        weights += [of_group / len(groups)]
    flat, each = np.stack([mask.ravel() for mask in masks]).astype(np.float64), np.concatenate(weights)
    # Rounding may make a little more than a half of two halves.
    parts, count = ndimage.label((each @ flat).reshape(masks[0].shape) > 0.5 + 1e-9)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    voted = ndimage.binary_fill_holes(np.isin(parts, 1 + np.flatnonzero(sizes >= _SMALL * sizes.max())))
    shared = flat @ voted.ravel()
    return voted, float(each @ (2 * shared / (flat.sum(axis=1) + voted.sum())))


def _likely(scores: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The best scores, by their places, and their weights, which add up to one."""
    best = np.argsort(-scores, kind="stable")[:_COMPARED]
    weights = np.exp((scores[best] - scores[best[0]]) / _FLATNESS)
    return best, weights / weights.sum()


def pool(runs: Sequence[Sequence[Proposal]]) -> tuple[list[Proposal], NDArray[np.float64]]:
    """The best proposals of several runs, and their scores less what makes each run's weights add up to one.

    Args:
        runs: the proposals of each run, best first; a run without any has no say.
    """
    kept = [list(proposals[:_COMPARED]) for proposals in runs if proposals]
    scores = [np.array([proposal.score for proposal in proposals]) for proposals in kept]
    flat = [each - _FLATNESS * np.logaddexp.reduce(each / _FLATNESS) for each in scores]
    return [proposal for proposals in kept for proposal in proposals], np.concatenate([np.zeros(0), *flat])
