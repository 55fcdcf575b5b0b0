"""Weights of the three self-guiding losses."""

from __future__ import annotations

import math
from typing import NamedTuple

from msformer_fast.errors import InputError


class LossWeights(NamedTuple):
    """Weights of the losses; the defaults are the authors'. Their label-free demo uses (1, 2, 1.2)."""

    clustering: float = 1.0
    consistency: float = 1.5
    stability: float = 1.3

    def check(self) -> None:
        """Raises InputError unless every weight is finite and not negative."""
        for name, weight in self._asdict().items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"weights: {name} must be a finite number, 0 or more; got {weight}")
