"""From how far candidates agree, and what the chosen one looks like, to the Dice that such masks have on average.

The expected Dice of the candidates with each other is too sure of itself: candidates may agree and all be wrong. A
logistic curve per rule brings it to the mean Dice with the truth (Platt, Advances in Large Margin Classifiers, 1999,
with Dice in the place of a class). Its weights were fitted by ``benchmarks/calibrate.py`` to the images of odd places
by name that the documentation reports on, whole, and made hard by noise, blur, crops and lost contrast.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Confidence under which a person should look, by rule: at most a tenth of the fitted masks of a Dice above 0.9 is.
DOUBTFUL = {"lesion": 0.85, "lungs-xray": 0.88, "lungs-ct": 0.85}
#: Weights of :func:`features`, by rule.
WEIGHTS = {
    "lesion": (1.286, 0.702, 1.517, 0.0),
    "lungs-xray": (1.364, 0.186, 0.348, 0.047),
    "lungs-ct": (-1.630, 0.768, 0.587, 0.668),
}
# Beyond these the logarithm of the odds tells rounding, not agreement.
_LEAST, _MOST = 0.02, 0.999


class Raw(NamedTuple):
    """What the confidence is made of.

    Attributes:
        agreement: expected Dice with the other likely candidates, 0 to 1.
        score: of the chosen candidate.
        likeness: to a CT slice; see :mod:`msformer_fast.foreground.kind`.
    """

    agreement: float
    score: float
    likeness: float


def features(raw: Raw) -> NDArray[np.float64]:
    """What the curve weighs, (4,): one, the log-odds of the agreement, a tenth of the score, the likeness."""
    agreement = min(max(raw.agreement, _LEAST), _MOST)
    score = float(np.clip(raw.score, -30, 30))
    return np.array([1.0, np.log(agreement / (1 - agreement)), score / 10, raw.likeness])


def calibrated(rule: str, raw: Raw) -> float:
    """The Dice to expect of a mask, 0 to 1."""
    return float(1 / (1 + np.exp(-features(raw) @ np.array(WEIGHTS[rule]))))
