"""A mask that a rule proposes, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msformer_fast.foreground.evidence import Mask


@dataclass(frozen=True, eq=False)
class Proposal:
    """One mask among those that a rule weighs.

    Attributes:
        mask: (h, w) bool.
        score: the sum of ``terms``; higher is better.
        terms: what each part of the rule adds, by name.
        parts: the features of the one or two connected parts that make up the mask.
    """

    mask: Mask
    score: float
    terms: Mapping[str, float]
    parts: tuple[Mapping[str, float], ...]
