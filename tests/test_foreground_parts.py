"""The parts of the rules: soft map and frame, candidates and what is measured of them, the choice."""

from __future__ import annotations

import numpy as np
import pytest

from msformer_fast.foreground.candidates import level_set_parts, measure
from msformer_fast.foreground.choice import choose, pool
from msformer_fast.foreground.evidence import SIDE, enlarge, gather, judged_size, soft_map
from msformer_fast.foreground.priors import LESION
from msformer_fast.foreground.proposal import Proposal

ROW, COLUMN = np.mgrid[:SIDE, :SIDE]


def disc(row, column, radius):
    return (ROW - row) ** 2 + (COLUMN - column) ** 2 <= radius**2


def evidence_of(image, frame_level=0.2):
    return gather((image * 255).astype(np.uint8), None, image, frame_level)


def test_soft_map_of_labels_is_their_mean():
    rng = np.random.default_rng()
    labels, channel = rng.integers(-3, 4, (20, 31)), rng.random((20, 31))
    soft = soft_map(labels, channel, None)
    for value in np.unique(labels):
        assert soft[labels == value] == pytest.approx(channel[labels == value].mean())


def test_soft_map_of_far_scores_is_that_of_their_labels():
    """However large or small the scores' unit."""
    rng = np.random.default_rng()
    labels, channel = rng.integers(0, 4, (20, 31)), rng.random((20, 31))
    for unit in (1e-3, 1.0, 1e3):
        scores = unit * (40.0 * (np.arange(4)[:, None, None] == labels))
        assert soft_map(labels, channel, scores) == pytest.approx(soft_map(labels, channel, None), abs=0.02)


def test_soft_map_lies_between_where_scores_are_even():
    channel = np.where(COLUMN < SIDE // 2, 0.2, 0.8)
    towards = (COLUMN - SIDE / 2) / SIDE
    soft = soft_map((COLUMN >= SIDE // 2).astype(int), channel, np.stack([-towards, towards]))
    assert (np.diff(soft[0]) > 0).all() and 0.2 < soft.min() < 0.45 < 0.55 < soft.max() < 0.8


def test_frame_is_dark_and_joined_to_the_border():
    image = np.full((SIDE, SIDE), 0.8)
    image[:20], image[60:70, 60:70] = 0.02, 0.02
    frame = evidence_of(image).frame
    assert frame[:20].all() and not frame[25:].any()
    assert not evidence_of(np.full((SIDE, SIDE), 0.02)).frame.any(), "a dark image is not all frame"


@pytest.mark.parametrize("shape", [(65, 65), (257, 190), (500, 33)])
def test_whatever_the_size_the_same_part_is_found(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    truth = np.hypot((rows + 0.5) / shape[0] - 0.5, (columns + 0.5) / shape[1] - 0.5) < 0.25
    evidence = gather(truth.astype(int), None, np.where(truth, 0.3, 0.8), 0.2)
    assert max(evidence.mixed.shape) == SIDE and evidence.mixed.shape == judged_size(shape)
    parts = level_set_parts(
        evidence, evidence.mixed, quantiles=np.linspace(0.05, 0.9, 18), cuts=(0,), areas=(0.01, 0.9)
    )
    part = max(
        parts, key=lambda each: (enlarge(each.mask, shape) & truth).sum() - (enlarge(each.mask, shape) & ~truth).sum()
    )
    assert enlarge(part.mask, shape).shape == shape
    overlap = (enlarge(part.mask, shape) & truth).sum() / truth.sum()
    assert overlap > 0.9
    assert np.exp(part.features["area"]) == pytest.approx(np.pi / 16, rel=0.1)
    assert part.features["row"] == pytest.approx(0.5, abs=0.02) and part.features["offset"] < 0.02


def test_a_cut_frees_a_part_of_its_bridge():
    dark = disc(64, 40, 20) | disc(64, 95, 20) | ((np.abs(ROW - 64) < 2) & (COLUMN > 40) & (COLUMN < 95))
    evidence = evidence_of(np.where(dark, 0.3, 0.9))
    options = {"quantiles": np.array([0.16]), "areas": (0.01, 0.9)}
    (joined,) = level_set_parts(evidence, evidence.mixed, cuts=(0,), **options)
    apart = level_set_parts(evidence, evidence.mixed, cuts=(4,), **options)
    assert joined.mask[64, 68] and len(apart) == 2
    assert not any(part.mask[64, 68] for part in apart)
    assert sum(part.mask.sum() for part in apart) > 0.9 * (disc(64, 40, 20) | disc(64, 95, 20)).sum()


def test_measures_of_a_square_and_of_a_line():
    image = np.full((SIDE, SIDE), 0.9)
    image[30:90, 20:60] = 0.4
    square = np.zeros((SIDE, SIDE), dtype=bool)
    square[30:90, 20:60] = True
    values = measure(square, evidence_of(image))
    assert values["area"] == pytest.approx(np.log(60 * 40 / SIDE**2))
    assert values["row"] == pytest.approx(60 / SIDE) and values["column"] == pytest.approx(40 / SIDE)
    assert values["solidity"] == pytest.approx(1.0)
    assert values["height"] == pytest.approx(57 / SIDE, abs=0.02) and values["border"] == 0 and values["frame"] == 0
    assert 0.7 < values["contrast"] < 1.05, "the outline is as strong as the image's contrast"
    line = np.zeros_like(square)
    line[5, 10:50] = True
    assert measure(line, evidence_of(image))["solidity"] == pytest.approx(1.0)
    ring = disc(64, 64, 40) & ~(disc(64, 64, 30))
    assert measure(ring & (COLUMN > 64), evidence_of(image))["solidity"] < 0.6


def test_contrast_is_negative_for_a_light_part():
    image = np.where(disc(64, 64, 25), 0.9, 0.4)
    assert measure(disc(64, 64, 25), evidence_of(image))["contrast"] < -0.5


def test_the_terms_name_what_is_wrong():
    image = np.where(disc(64, 64, 25), 0.3, 0.9)
    evidence = evidence_of(image)
    options = {"quantiles": np.array([0.1]), "cuts": (0,), "areas": (0.001, 0.9)}
    (good,) = level_set_parts(evidence, evidence.mixed, **options)
    corner = evidence_of(np.where(disc(16, 16, 25), 0.3, 0.9))
    (bad,) = level_set_parts(corner, corner.mixed, **options)
    worse = {name for name, value in LESION.terms(bad).items() if value < LESION.terms(good)[name] - 0.1}
    assert {"offset", "border"} <= worse
    assert sum(LESION.terms(good).values()) > sum(LESION.terms(bad).values()) + 1


def test_the_choice_agrees_with_most_of_what_is_likely():
    """Three alike and one slightly better that is like none: the best score does not win."""
    masks = [disc(30, 30, 15), *(disc(80, 80, radius) for radius in (18, 20, 22))]
    choice = choose(masks, np.array([0.3, 0.0, 0.0, 0.0]))
    assert choice.index == 2 and 0.5 < choice.agreement < 0.9
    sure = choose(masks, np.array([20.0, 0.0, 0.0, 0.0]))
    assert sure.index == 0 and sure.agreement == pytest.approx(1.0, abs=1e-3)
    assert choose(masks[:1], np.zeros(1)).agreement == pytest.approx(1.0)


def test_every_run_has_the_same_say():
    def proposals(*scores):
        return [Proposal(disc(64, 64, 9), score, {}, ()) for score in scores]

    pooled, scores = pool([proposals(50.0, 48.0), [], proposals(-3.0)])
    weights = np.exp(scores / 2)
    assert len(pooled) == 3 and weights[:2].sum() == pytest.approx(1.0) and weights[2] == pytest.approx(1.0)
    assert pool([[], []])[0] == []
