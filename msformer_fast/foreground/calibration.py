"""From how far candidates agree to the Dice that masks like this one have on average."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Confidence under which a person should look.
DOUBTFUL = 0.85


class Raw(NamedTuple):
    """What the confidence is made of.

    Attributes:
        agreement: expected Dice with the other likely candidates, 0 to 1.
        score: of the chosen candidate.
        likeness: to a CT slice, see :mod:`msformer_fast.foreground.kind`.
    """

    agreement: float
    score: float
    likeness: float


def calibrated(rule: str, raw: Raw) -> float:
    return raw.agreement
