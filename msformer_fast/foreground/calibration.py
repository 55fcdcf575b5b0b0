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
DOUBTFUL = {
    "lesion": 0.92,
    "lungs-xray": 0.87,
    "lungs-ct": 0.95,
    "prompt lesion": 0.94,
    "prompt lungs-xray": 0.91,
    "prompt lungs-ct": 0.95,
    "clicks lesion": 0.93,
    "clicks lungs-xray": 0.92,
    "clicks lungs-ct": 0.93,
    "box lesion": 0.94,
    "box lungs-xray": 0.9,
    "box lungs-ct": 0.76,
}
#: Weights of :func:`features`, by rule.
WEIGHTS = {
    "lesion": (1.276, 0.705, 1.552),
    "lungs-xray": (1.560, 0.126, 0.847),
    "lungs-ct": (2.156, 0.240, 0.000),
    # Of one click, by a vote with that rule; its score is not weighed. Fitted to whole images alone.
    "prompt lesion": (1.235, 0.719, 0.000),
    "prompt lungs-xray": (1.359, 0.370, 0.000),
    "prompt lungs-ct": (1.464, 0.589, 0.000),
    # Of several clicks, and of a box, in an image of such a kind; likewise.
    "clicks lesion": (1.534, 0.643, 0.000),
    "clicks lungs-xray": (0.625, 0.737, 0.000),
    "clicks lungs-ct": (1.464, 0.589, 0.000),  # of one click: nine slices tell no other
    "box lesion": (0.874, 0.697, 0.000),
    "box lungs-xray": (0.000, 0.763, 0.000),
    "box lungs-ct": (-0.064, 0.622, 0.000),
}
# Beyond these the logarithm of the odds tells rounding, not agreement.
_LEAST, _MOST = 0.02, 0.999


def curve_of(prompt: str, rule: str) -> str:
    """The name of the curve of ``"prompt"``, one click put to a vote with a rule, of several ``"clicks"`` or of a
    ``"box"`` in an image of the kind that a rule was made for; empty without a rule."""
    return f"{prompt} {rule}" if rule else ""


class Raw(NamedTuple):
    """What the confidence is made of.

    Attributes:
        agreement: expected Dice with the other likely candidates, 0 to 1.
        score: of the chosen candidate.
    """

    agreement: float
    score: float


def features(raw: Raw) -> NDArray[np.float64]:
    """What the curve weighs, (3,): one, the log-odds of the agreement, a tenth of the score."""
    agreement = min(max(raw.agreement, _LEAST), _MOST)
    score = float(np.clip(raw.score, -30, 30))
    return np.array([1.0, np.log(agreement / (1 - agreement)), score / 10])


def calibrated(rule: str, raw: Raw) -> float:
    """The Dice to expect of a mask, 0 to 1."""
    return expected_dice(raw, np.array(WEIGHTS[rule]))


def expected_dice(raw: Raw, weights: NDArray[np.float64]) -> float:
    """The logistic curve of these weights (3,)."""
    return float(1 / (1 + np.exp(-features(raw) @ weights)))
