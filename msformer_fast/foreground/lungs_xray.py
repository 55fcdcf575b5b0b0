"""Chest images: two dark parts inside the body, one on each side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from msformer_fast.foreground.candidates import Candidate, level_set_parts, measure, moved_to_edges
from msformer_fast.foreground.evidence import Evidence
from msformer_fast.foreground.priors import LUNG, LUNG_DISTANCE, LUNG_PAIR, normal_term
from msformer_fast.foreground.proposal import Proposal

#: The black frame of a radiograph, as a part of the light tissue's value; see :func:`evidence.gather`.
FRAME_LEVEL = 0.2
#: Score under which what was found is unlike any lungs that the priors were taken from (-4.3 at least). Those of CT
#: slices have other shapes, and reach -9 where they are found.
LIKELY = -12.0
_QUANTILES = np.linspace(0.05, 0.7, 20)
_CUTS = (0, 1, 2, 3)
_AREAS = (0.015, 0.3)
_SIDE_KEPT = 60
_PAIRS_KEPT = 40
_SIDES = ("left", "right")


def propose(evidence: Evidence) -> list[Proposal]:
    """Pairs of lungs, best first, or single lungs where no pair is there; empty where nothing is dark enough."""
    parts = _candidates(evidence)
    sides = [[part for part in parts if (part.features["column"] > 0.5) == right] for right in (False, True)]
    scored = [_best(side) for side in sides]
    if not (scored[0] and scored[1]):
        singles = scored[0] + scored[1]
        return sorted((_single(part, terms) for part, terms in singles), key=lambda one: -one.score)[:_PAIRS_KEPT]
    totals = np.array(
        [
            [sum(a.values()) + sum(b.values()) + sum(_pair_terms(left, right).values()) for right, b in scored[1]]
            for left, a in scored[0]
        ]
    )
    best = np.argsort(-totals, axis=None, kind="stable")[:_PAIRS_KEPT]
    pairs = []
    for flat in best:
        i, j = divmod(int(flat), totals.shape[1])
        (left, a), (right, b) = scored[0][i], scored[1][j]
        terms = {
            f"{side} {name}": value for side, each in zip(_SIDES, (a, b), strict=True) for name, value in each.items()
        }
        terms |= {f"pair {name}": value for name, value in _pair_terms(left, right).items()}
        pairs.append(Proposal(left.mask | right.mask, float(totals[i, j]), terms, (left.features, right.features)))
    return pairs


def _candidates(evidence: Evidence) -> list[Candidate]:
    """Dark parts off the frame, each as its level set gives it and with its outline moved to the nearest edge."""
    mixed = np.where(evidence.frame, max(1.0, float(evidence.mixed.max())), evidence.mixed)
    parts = level_set_parts(evidence, mixed, quantiles=_QUANTILES, cuts=_CUTS, areas=_AREAS)
    moved = [(part, moved_to_edges(part.mask, evidence.edges)) for part in parts]
    return parts + [replace(part, mask=mask, features=measure(mask, evidence)) for part, mask in moved if mask.any()]


def _best(parts: list[Candidate]) -> list[tuple[Candidate, dict[str, float]]]:
    scored = [(part, _terms(part)) for part in parts]
    scored.sort(key=lambda pair: -sum(pair[1].values()))
    return scored[:_SIDE_KEPT]


def _terms(part: Candidate) -> dict[str, float]:
    mean, deviation = LUNG_DISTANCE
    distance = abs(part.features["column"] - 0.5)
    return LUNG.terms(part) | {"distance": normal_term(distance - mean, deviation)}


def _pair_terms(left: Candidate, right: Candidate) -> dict[str, float]:
    return {
        name: normal_term(left.features[name] - right.features[name], deviation)
        for name, deviation in LUNG_PAIR.items()
    }


def _single(part: Candidate, terms: dict[str, float]) -> Proposal:
    return Proposal(part.mask, sum(terms.values()), terms, (part.features,))


def describe(chosen: Proposal) -> tuple[str, bool]:
    """What was chosen, in words, and whether it is all that the rule looks for: two lungs."""
    shares = " and ".join(f"{100 * np.exp(part['area']):.0f} %" for part in chosen.parts)
    if len(chosen.parts) == 1:
        return f"The only large dark part off the frame, {shares} of the image, holes filled", False
    solidity = min(part["solidity"] for part in chosen.parts)
    return (
        f"The two dark parts off the frame of {shares} of the image that look most like a pair of lungs "
        f"(solidity from {solidity:.2f}), outlines moved to the nearest edges, holes filled"
    ), True
