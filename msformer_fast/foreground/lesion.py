"""Dermoscopic images: one dark part, compact and near the middle, with a clear outline."""

from __future__ import annotations

import numpy as np

from msformer_fast.foreground.candidates import level_set_parts
from msformer_fast.foreground.evidence import Evidence
from msformer_fast.foreground.priors import LESION
from msformer_fast.foreground.proposal import Proposal

#: Vignette and black corners, as a part of the skin's value; see :func:`evidence.gather`.
FRAME_LEVEL = 0.35
#: Score under which what was found is unlike any lesion that the priors were taken from (-2.3 at least).
LIKELY = -5.0
_QUANTILES = np.linspace(0.03, 0.9, 30)
# Cutting bridges of 4 pixels frees a lesion from hairs and from the vignette.
_CUTS = (0, 2)
_AREAS = (0.01, 0.95)


def propose(evidence: Evidence) -> list[Proposal]:
    """Every dark part with its score, best first; empty where nothing is dark enough."""
    parts = level_set_parts(evidence, evidence.mixed, quantiles=_QUANTILES, cuts=_CUTS, areas=_AREAS)
    proposals = []
    for part in parts:
        terms = LESION.terms(part)
        proposals.append(Proposal(part.mask, sum(terms.values()), terms, (part.features,)))
    return sorted(proposals, key=lambda one: -one.score)


def describe(chosen: Proposal) -> tuple[str, bool]:
    """What was chosen, in words, and whether it is all that the rule looks for."""
    (part,) = chosen.parts
    return (
        f"The dark part of {100 * np.exp(part['area']):.0f} % of the image, its centroid {part['offset']:.2f} image "
        f"sides from the middle, solidity {part['solidity']:.2f}, contrast {part['contrast']:.2f}, holes filled"
    ), True
