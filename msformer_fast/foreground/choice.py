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
    best = np.argsort(-scores, kind="stable")[:_COMPARED]
    weights = np.exp((scores[best] - scores[best[0]]) / _FLATNESS)
    weights /= weights.sum()
    flat = np.stack([masks[index].ravel() for index in best]).astype(np.float32)
    sizes = flat.sum(axis=1)
    overlaps = 2 * (flat @ flat.T) / (sizes[:, None] + sizes)
    expected = overlaps @ weights
    chosen = int(expected.argmax())
    return Choice(int(best[chosen]), float(expected[chosen]))


def pool(runs: Sequence[Sequence[Proposal]]) -> tuple[list[Proposal], NDArray[np.float64]]:
    """The best proposals of several runs, and their scores less what makes each run's weights add up to one.

    Args:
        runs: the proposals of each run, best first; a run without any has no say.
    """
    kept = [list(proposals[:_COMPARED]) for proposals in runs if proposals]
    scores = [np.array([proposal.score for proposal in proposals]) for proposals in kept]
    flat = [each - _FLATNESS * np.logaddexp.reduce(each / _FLATNESS) for each in scores]
    return [proposal for proposals in kept for proposal in proposals], np.concatenate([np.zeros(0), *flat])
