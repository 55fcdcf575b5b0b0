"""Clusters to a foreground mask without any ground truth.

The network ends with a map of cluster labels, and which clusters are the lesion or the lungs is not part of its
output. Nor are they always whole clusters: lungs share one with the black frame, a lesion's rim may be one of its own.
The rules here therefore take connected parts of level sets of a soft map (the expected darkness of a pixel's cluster,
mixed with the image's own), and weigh each by what the target looks like: size, place, shape, contact with border and
frame, contrast of its outline. Of all that is likely they take what agrees best with the rest, and say how sure that is
and what spoke for it. No rule returns an empty mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.foreground import fallback, lesion, lungs_ct, lungs_xray
from msformer_fast.foreground.calibration import DOUBTFUL, Raw, calibrated
from msformer_fast.foreground.choice import choose, pool
from msformer_fast.foreground.doubt import LEFT, misfit, strangeness
from msformer_fast.foreground.evidence import (
    Evidence,
    Image,
    Labels,
    Mask,
    darkness_channel,
    enlarge,
    gather,
    grey_channel,
)
from msformer_fast.foreground.kind import MODALITIES, Kind, kind_of
from msformer_fast.foreground.proposal import Proposal

__all__ = [
    "CHEST_RULES",
    "LUNG_RULES",
    "MODALITIES",
    "RULES",
    "Foreground",
    "Maps",
    "check_modality",
    "clusters_in",
    "foreground",
    "foreground_of_runs",
]

#: Names that ``rule`` accepts.
RULES = ("auto", "lesion", "lungs", "lungs-xray", "lungs-ct")
#: Those of them that find lungs.
CHEST_RULES = ("lungs", "lungs-xray", "lungs-ct")
#: Those that find lungs in CT.
LUNG_RULES = ("auto", "lungs", "lungs-ct")

# Least share of the mask for a cluster to be named.
_NAMED = 0.05


@dataclass(frozen=True, eq=False)
class Foreground:
    """A foreground mask and how it came about.

    Attributes:
        mask: (H, W) bool, never empty.
        rule: name of the rule that was used; never "auto" or "lungs", which hand over to another rule.
        labels: the clusters that make up 5 % of the mask or more, ascending.
        reason: why, in a sentence or two, and which fallback was taken if one was.
        confidence: the Dice with the truth that masks of this rule have on average where candidates agree as they do
            here and look as this one does (:mod:`msformer_fast.foreground.calibration`); 0 for a fallback, half of it
            where image or mask are unlike what the rule was made for.
        doubtful: a person should look: the confidence is low, only part of what the rule looks for was found, or the
            rule was not made for it.
        terms: what each part of the rule added to the score of this mask, by name.
        candidates: masks that were weighed.
        agreement: expected Dice of the mask with the other likely ones, of which the confidence is made; 0 for a
            fallback.
        likeness: of the image to a CT slice; see :mod:`msformer_fast.foreground.kind`.
        voted_with: the rule without prompts that had as much of a say as the click; empty without one.
    """

    mask: Mask
    rule: str
    labels: tuple[int, ...]
    reason: str
    confidence: float = 0.0
    doubtful: bool = True
    terms: Mapping[str, float] = field(default_factory=dict)
    candidates: int = 0
    agreement: float = 0.0
    likeness: float = 0.0
    voted_with: str = ""


class Maps(NamedTuple):
    """What one run leaves: labels (H, W), and the scores (R, H, W) of its R largest clusters or ``None``."""

    labels: Labels
    scores: NDArray[Any] | None = None


class _Rule(NamedTuple):
    channel: Callable[[Image], Image]
    frame_level: float
    propose: Callable[[Evidence], list[Proposal]]
    describe: Callable[[Proposal], tuple[str, bool]]
    otherwise: Callable[[Labels, Image], tuple[Mask, str]]
    likely: float


_RULES = {
    "lesion": _Rule(
        darkness_channel,
        lesion.FRAME_LEVEL,
        lesion.propose,
        lesion.describe,
        fallback.central_dark_part,
        lesion.LIKELY,
    ),
    "lungs-xray": _Rule(
        grey_channel,
        lungs_xray.FRAME_LEVEL,
        lungs_xray.propose,
        lungs_xray.describe,
        fallback.largest_dark_parts,
        lungs_xray.LIKELY,
    ),
    "lungs-ct": _Rule(
        grey_channel,
        lungs_ct.FRAME_LEVEL,
        lungs_ct.propose,
        lungs_ct.describe,
        fallback.largest_dark_parts,
        lungs_ct.LIKELY,
    ),
}


def foreground(
    labels: Any, image: Any, rule: str = "auto", *, scores: Any = None, modality: str | None = None
) -> Foreground:
    """Choose the foreground of one run from its maps and the image alone.

    Args:
        labels: cluster labels, (H, W) integers, any values.
        image: the image that was clustered, (H, W, C) floats in [0, 1], C >= 1.
        rule: a name in :data:`RULES`: "lesion" (dermoscopy), "lungs-xray" (frontal chest X-ray), "lungs-ct" (axial CT
            slice), "lungs", which tells these two apart, or "auto", which takes "lesion" for a coloured image and
            "lungs" for a grey one.
        scores: (R, H, W) floats, the scores of the clusters that are left, in any order; ``None`` to use the labels.
        modality: "ct" or "xray", a name in :data:`MODALITIES`, where it is known what made the image; ``None`` to judge
            by the image.

    Returns:
        The mask with the rule that was used, why, and how sure it is.

    Raises:
        InputError: the rule or the modality is unknown, ``labels`` is not (H, W) integers, ``image`` is not (H, W, C)
            floats in [0, 1] of the same H and W, or ``scores`` is not (R, H, W) finite floats.
    """
    return foreground_of_runs([Maps(labels, scores)], image, rule, modality=modality)


def foreground_of_runs(
    runs: Sequence[Maps], image: Any, rule: str = "auto", *, modality: str | None = None
) -> Foreground:
    """As :func:`foreground`, from several runs of one image: their candidates are weighed together.

    Every run has the same say, so that what only one of them saw is outvoted. ``labels`` are those of the first.

    Raises:
        InputError: as :func:`foreground`; or there is no run.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise InputError(f"rule: got {rule!r}; accepted is one of {', '.join(RULES)}")
    check_modality(modality)
    if not runs:
        raise InputError("runs: there is none; accepted is one or more")
    pixels = np.asarray(image)
    checked = [_check(maps, pixels) for maps in runs]
    pixels = pixels.astype(np.float64)
    return _decide(checked, pixels, rule, kind_of(pixels, modality))


def check_modality(modality: str | None) -> None:
    """Raises InputError for what is no name in :data:`MODALITIES`, nor ``None``."""
    if modality is not None and modality not in MODALITIES:
        raise InputError(f"modality: got {modality!r}; accepted is one of {', '.join(MODALITIES)}, or None")


def _rule_for(rule: str, kind: Kind) -> tuple[str, str]:
    """The rule that a name hands over to, and why."""
    if rule == "auto" and kind.coloured:
        return "lesion", f" Rule 'lesion' because the image is coloured (mean channel range {kind.colour:.2f})."
    if rule in ("auto", "lungs"):
        grey = f"the image is grey (mean channel range {kind.colour:.2f}) and " if rule == "auto" else ""
        chosen = "lungs-ct" if kind.is_ct else "lungs-xray"
        return chosen, f" Rule '{chosen}' because {grey}{kind.chest}."
    return rule, ""


def _decide(runs: list[Maps], image: Image, asked: str, kind: Kind) -> Foreground:
    name, why = _rule_for(asked, kind)
    rule = _RULES[name]
    channel = rule.channel(image)
    labels = runs[0].labels
    proposals = _proposals(runs, channel, rule)
    pooled, scores = pool(proposals)
    strange = strangeness(image) or misfit(name, kind)
    if not pooled:
        mask, reason = rule.otherwise(labels, channel)
        reason += f" (doubtful: {strange})." if strange else ""
        return Foreground(mask, name, clusters_in(mask, labels), reason + why, likeness=kind.likeness)
    choice = choose([proposal.mask for proposal in pooled], scores)
    chosen = pooled[choice.index]
    mask = enlarge(chosen.mask, labels.shape)
    described, whole = rule.describe(chosen)
    if not strange and chosen.score < rule.likely:
        strange = f"what was found is unlike what the rule was made for (score {chosen.score:.0f})"
    raw = Raw(choice.agreement, chosen.score)
    confidence = calibrated(name, raw) * (LEFT if strange else 1.0)
    count = sum(map(len, proposals))
    reason = f"{described}; chosen among {count} candidates" + (f" of {len(runs)} runs" if len(runs) > 1 else "")
    doubtful = not whole or confidence < DOUBTFUL[name] or bool(strange)
    unsure = f" (doubtful{': ' if strange else ''}{strange})" if doubtful else ""
    return Foreground(
        mask,
        name,
        clusters_in(mask, labels),
        f"{reason}, confidence {confidence:.2f}{unsure}.{why}",
        confidence,
        doubtful,
        dict(chosen.terms),
        count,
        choice.agreement,
        kind.likeness,
    )


def _proposals(runs: Sequence[Maps], channel: Image, rule: _Rule) -> list[list[Proposal]]:
    """What a rule proposes of each run, best first."""
    return [
        rule.propose(gather(maps.labels, maps.scores, channel, rule.frame_level))
        for maps in runs
        # One cluster says nothing of where the target is; what the image alone would say is not asked for.
        if (maps.labels != maps.labels.flat[0]).any()
    ]


def known_rule(image: Image, modality: str | None = None) -> str:
    """The rule for images of this kind, (H, W, C) floats in [0, 1]; empty of one that no rule was made for.

    ``modality``: as in :func:`foreground`.
    """
    kind = kind_of(image, modality)
    name, _ = _rule_for("auto", kind)
    return "" if strangeness(image) or misfit(name, kind) else name


def known_targets(runs: Sequence[Maps], image: Image, name: str) -> tuple[list[Proposal], NDArray[np.float64]]:
    """What a rule proposes, and the scores, their weights adding up to one for each run.

    No proposal that is unlike what the rule was made for.

    Args:
        runs: as in :func:`foreground_of_runs`.
        image: (H, W, C) floats in [0, 1].
        name: of the rule, of :func:`known_rule`; of an empty one nothing is proposed.
    """
    if not name:
        return [], np.zeros(0)
    rule = _RULES[name]
    found = _proposals(runs, rule.channel(image), rule)
    return pool([[each for each in proposals if each.score >= rule.likely] for proposals in found])


def clusters_in(mask: Mask, labels: Labels) -> tuple[int, ...]:
    """The clusters (numbers of ``labels``, (H, W)) that make up 5 % of the mask (H, W) or more, ascending."""
    values, counts = np.unique(labels[mask], return_counts=True)
    return tuple(int(value) for value in values[counts >= min(_NAMED * counts.sum(), counts.max())])


def _check(maps: Maps, pixels: NDArray[Any]) -> Maps:
    label_map = np.asarray(maps.labels)
    if label_map.ndim != 2 or label_map.size == 0 or not np.issubdtype(label_map.dtype, np.integer):
        raise InputError(f"labels: got {label_map.dtype} of shape {label_map.shape}; accepted is (H, W) integers")
    if pixels.ndim != 3 or pixels.shape[:2] != label_map.shape or pixels.shape[2] == 0:
        raise InputError(f"image: got shape {pixels.shape}; accepted is (H, W, C) with (H, W) = {label_map.shape}")
    if not np.issubdtype(pixels.dtype, np.floating) or not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(f"image: got {pixels.dtype} values beyond [0, 1]; accepted are floats in [0, 1]")
    if maps.scores is None:
        return Maps(label_map)
    scores = np.asarray(maps.scores)
    if scores.ndim != 3 or scores.shape[0] == 0 or scores.shape[1:] != label_map.shape:
        raise InputError(f"scores: got shape {scores.shape}; accepted is (R, H, W) with (H, W) = {label_map.shape}")
    if not np.issubdtype(scores.dtype, np.floating) or not np.isfinite(scores).all():
        raise InputError(f"scores: got {scores.dtype} values that are not all finite; accepted are finite floats")
    return Maps(label_map, scores)
