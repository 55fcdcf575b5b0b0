"""The rules that turn clusters into a mask, on label maps drawn here."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from msformer_fast.errors import InputError
from msformer_fast.foreground import RULES, Maps, foreground, foreground_of_runs
from msformer_fast.foreground.calibration import DOUBTFUL
from msformer_fast.metrics import dice
from msformer_fast.phantom import make

H, W = 120, 160
ROW, COLUMN = np.mgrid[:H, :W]
SKIN, DARK, HAIR, PALE = 7, 2, 4, 9


def ellipse(row, column, height, width):
    return ((ROW - row) / height) ** 2 + ((COLUMN - column) / width) ** 2 < 1


def drawn(regions, colours, shape=(H, W)):
    """Label map and RGB image: ``regions`` is (label, mask) in drawing order, ``colours`` RGB by label."""
    labels = np.full(shape, regions[0][0])
    for label, mask in regions[1:]:
        labels[mask] = label
    image = np.zeros((*shape, 3), dtype=np.float32)
    for label, colour in colours.items():
        image[labels == label] = colour
    return labels, image


def lesion_case(vignette):
    """A lesion off the middle with a pale spot, a hair across it, and a vignette in the same cluster."""
    truth = ellipse(70, 70, 22, 26)
    hair = np.abs(ROW - 0.4 * COLUMN - 40) < 1.5
    spot = ellipse(70, 70, 5, 5)
    labels, image = drawn(
        [(SKIN, truth), (DARK, truth), (PALE, spot), (HAIR, hair & ~spot), (DARK, vignette)],
        {SKIN: (0.9, 0.7, 0.6), DARK: (0.4, 0.2, 0.15), HAIR: (0.1, 0.1, 0.1), PALE: (0.9, 0.8, 0.8)},
    )
    return labels, image, truth


CORNERS = ~ellipse(60, 80, 78, 104)
RING = ~ellipse(60, 80, 58, 78)


@pytest.mark.parametrize("vignette", [CORNERS, RING], ids=["corners", "ring"])
def test_lesion_beats_vignette_and_hair(vignette):
    labels, image, truth = lesion_case(vignette)
    result = foreground(labels, image, "lesion")
    assert dice(result.mask, truth) > 0.92
    assert result.mask[70, 70], "the pale spot is a hole and must be filled"
    assert set(result.labels) <= {DARK, HAIR} and DARK in result.labels
    assert ndimage.label(result.mask)[1] == 1
    assert result.rule == "lesion" and "dark part" in result.reason and "candidates" in result.reason


def test_auto_takes_lesion_for_colour_and_lungs_for_grey():
    labels, image, _ = lesion_case(CORNERS)
    coloured = foreground(labels, image)
    grey = foreground(labels, np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2))
    one_channel = foreground(labels, image[..., :1])
    assert coloured.rule == "lesion" and {grey.rule, one_channel.rule} <= {"lungs-xray", "lungs-ct"}
    assert "coloured" in coloured.reason and "grey" in grey.reason
    assert np.array_equal(coloured.mask, foreground(labels, image, "lesion").mask)


def test_a_lesion_too_small_to_be_judged_is_kept_and_doubtful():
    labels, image = drawn(
        [(SKIN, None), (DARK, (ROW == 60) & (np.abs(COLUMN - 80) < 9))],
        {SKIN: (0.9, 0.7, 0.6), DARK: (0.3, 0.2, 0.1)},
    )
    result = foreground(labels, image, "lesion")
    assert np.array_equal(result.mask, labels == DARK) and "large enough" in result.reason
    assert result.doubtful and result.confidence == 0


FRAME, LUNG, FLANK, BODY, BRIGHT = 1, 2, 3, 4, 5
GREYS = {FRAME: 0.02, LUNG: 0.30, FLANK: 0.45, BODY: 0.75, BRIGHT: 0.95}


def chest_case(lung_label=LUNG, bridge=False):
    """Two lungs with a bright rib each in a body with darker flanks, on a black frame."""
    body = ellipse(60, 80, 70, 62)
    lungs = ellipse(58, 55, 34, 15) | ellipse(58, 105, 34, 15)
    ribs = ((ROW == 50) | (ROW == 66)) & lungs & (np.abs(np.abs(COLUMN - 80) - 25) < 8)
    regions = [(FRAME, None), (FLANK, body), (BODY, ellipse(60, 80, 66, 56))]
    regions += [(lung_label, lungs), (BRIGHT, ribs)]
    if bridge:
        regions.append((lung_label, (np.abs(ROW - 58) < 2) & (COLUMN < 45)))
    labels, image = drawn(regions, {label: (grey,) * 3 for label, grey in GREYS.items()})
    return labels, image, lungs


@pytest.mark.parametrize("bridge", [False, True], ids=["apart", "bridge to the border"])
@pytest.mark.parametrize("lung_label", [LUNG, FRAME], ids=["own cluster", "cluster of the frame"])
def test_lungs_without_the_frame(lung_label, bridge):
    labels, image, truth = chest_case(lung_label, bridge)
    result = foreground(labels, image, "lungs-xray")
    assert dice(result.mask, truth) > 0.97
    assert result.mask[50, 55], "a rib is a hole and must be filled"
    assert not result.mask[0].any() and not result.mask[:, 0].any()
    assert lung_label in result.labels and result.rule == "lungs-xray" and "two dark parts" in result.reason
    assert result.agreement > 0.95
    assert "looks like a CT slice" in result.reason, "what is drawn in steps is no radiograph"


def test_lungs_drop_small_parts_and_report_a_single_one():
    truth = ellipse(60, 50, 30, 15)
    labels, image = drawn(
        [(BODY, None), (LUNG, truth), (LUNG, ellipse(60, 110, 4, 4))],
        {BODY: (0.8,) * 3, LUNG: (0.3,) * 3},
    )
    result = foreground(labels, image, "lungs-xray")
    assert dice(result.mask, truth) > 0.97 and "only" in result.reason
    assert not result.mask[:, 90:].any() and result.doubtful, "one lung alone is for a person to look at"


def test_lungs_fall_back_to_dark_parts_of_any_size():
    small = ellipse(60, 50, 8, 4) | ellipse(60, 110, 6, 4)
    labels, image = drawn([(BODY, None), (LUNG, small | ellipse(20, 80, 2, 2))], {BODY: (0.8,) * 3, LUNG: (0.3,) * 3})
    result = foreground(labels, image, "lungs-xray")
    assert np.array_equal(result.mask, small)
    assert result.labels == (LUNG,) and "looks like a lung" in result.reason and result.doubtful


@pytest.mark.parametrize("rule", RULES)
def test_a_single_label_gives_the_whole_image_and_says_so(rule):
    result = foreground(np.full((40, 55), 3), np.random.default_rng(0).random((40, 55, 3)), rule)
    assert result.mask.all() and result.mask.shape == (40, 55)
    assert result.labels == (3,) and "most central cluster" in result.reason


@pytest.mark.parametrize("rule", RULES)
def test_a_flat_image_gives_the_most_central_cluster(rule):
    labels = np.zeros((40, 55), dtype=np.uint8)
    labels[10:30, 10:45] = 6
    result = foreground(labels, np.full((40, 55, 3), 0.1), rule)
    assert np.array_equal(result.mask, labels == 6) and result.labels == (6,)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(97, 131), (131, 97)])
@pytest.mark.parametrize("kind", ["lesion", "chest"])
def test_many_labels_on_the_phantoms(kind, size, seed):
    print("seed", seed)
    image, truth = make(kind, size, seed)
    smooth = ndimage.gaussian_filter(image.mean(axis=2), 1)
    # Some 60 clusters: grey levels, each cut in two by position, under shuffled labels.
    levels = np.digitize(smooth, np.linspace(0, 1, 30)) * 2 + (np.arange(size[1]) > size[1] / 2)
    shuffled = np.random.default_rng(seed).permutation(levels.max() + 1)
    result = foreground(shuffled[levels], image)
    assert result.rule == ("lesion" if kind == "lesion" else "lungs-xray")
    assert dice(result.mask, truth) > 0.93
    assert set(result.labels) <= set(shuffled.tolist()) and list(result.labels) == sorted(result.labels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (7, 90)])
@pytest.mark.parametrize("rule", RULES)
def test_never_empty_however_small(rule, shape):
    """Dark and noisy images too; with scores and without."""
    rng = np.random.default_rng()
    for index in range(6):
        image = rng.random((*shape, 1 + index % 3)) * (0.05 if index % 2 else 1.0)
        labels, scores = rng.integers(0, 4, shape), rng.normal(size=(4, *shape)).astype(np.float16)
        mask = foreground(labels, image, rule, scores=scores if index > 2 else None).mask
        assert mask.shape == shape and mask.any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", RULES)
def test_never_empty_and_free_of_side_effects(rule, seed):
    print("seed", seed)
    rng = np.random.default_rng(seed)
    labels, image = rng.integers(-2, 100, (35, 47)), rng.random((35, 47, 3)).astype(np.float32)
    before = labels.copy(), image.copy()
    result, again = foreground(labels, image, rule), foreground(labels, image, rule)
    assert result.mask.any() and result.mask.dtype == np.bool_ and result.mask.shape == labels.shape
    assert result.labels and result.reason.endswith(".") and result.rule in set(RULES) - {"auto", "lungs"}
    assert np.array_equal(result.mask, again.mask) and result.labels == again.labels
    assert 0 <= result.confidence <= 1 and (result.candidates > 0) == bool(result.terms)
    assert np.array_equal(labels, before[0]) and np.array_equal(image, before[1])


def soft_scores(labels, sharpness=6.0):
    """Scores whose argmax is the label map but at its soft edges."""
    values = np.unique(labels)
    hot = np.stack([(labels == value).astype(float) for value in values])
    return np.stack([sharpness * ndimage.gaussian_filter(each, 1.0) for each in hot])


@pytest.mark.parametrize("case", ["lesion", "lungs-xray"])
def test_scores_instead_of_labels(case):
    labels, image, truth = lesion_case(RING) if case == "lesion" else chest_case()
    hard, soft = foreground(labels, image, case), foreground(labels, image, case, scores=soft_scores(labels))
    order = np.random.default_rng(0).permutation(len(np.unique(labels)))
    shuffled = foreground(labels, image, case, scores=soft_scores(labels)[order].astype(np.float16))
    assert dice(soft.mask, truth) > 0.93
    assert not np.array_equal(soft.mask, hard.mask), "the scores are used"
    assert dice(shuffled.mask, soft.mask) > 0.99, "their order means nothing"


def test_an_outlier_among_runs_is_outvoted():
    """Two runs see the lesion, one a disc in a corner of an image that shows neither."""
    truth, corner = ellipse(60, 80, 25, 30), ellipse(25, 30, 20, 24)
    image = np.full((H, W, 3), (0.9, 0.7, 0.6)) - 0.3 * truth[..., None] - 0.3 * corner[..., None]
    good, bad = Maps(truth.astype(int)), Maps(corner.astype(int))
    assert dice(foreground_of_runs([good, bad, good], image, "lesion").mask, truth) > 0.95
    alone, together = (foreground_of_runs(runs, image, "lesion") for runs in ([good], [good, good]))
    assert np.array_equal(alone.mask, together.mask) and "2 runs" in together.reason
    assert together.confidence == pytest.approx(alone.confidence, abs=0.02)
    assert together.candidates == 2 * alone.candidates


def test_two_equal_targets_are_doubtful_and_one_is_not():
    both = ellipse(60, 45, 20, 20) | ellipse(60, 115, 20, 20)
    # Lit from one side, as skin is: two flat tones would be a drawing.
    skin = np.full((H, W, 3), (0.8, 0.7, 0.6)) + np.linspace(-0.1, 0.1, W)[:, None]
    two = foreground(both.astype(int), skin - 0.4 * both[..., None], "lesion")
    one_mask = ellipse(60, 80, 25, 30)
    one = foreground(one_mask.astype(int), skin - 0.4 * one_mask[..., None], "lesion")
    assert two.agreement < 0.7 and two.confidence < DOUBTFUL["lesion"] and two.doubtful and "doubtful" in two.reason
    assert one.confidence > 0.9 and not one.doubtful


GOOD_LABELS, GOOD_IMAGE = np.zeros((40, 50), dtype=int), np.zeros((40, 50, 3))


@pytest.mark.parametrize(
    ("labels", "image", "rule", "name"),
    [
        (GOOD_LABELS, GOOD_IMAGE, "liver", "rule"),
        (GOOD_LABELS, GOOD_IMAGE, None, "rule"),
        (GOOD_LABELS.astype(float), GOOD_IMAGE, "auto", "labels"),
        (GOOD_LABELS[0], GOOD_IMAGE, "auto", "labels"),
        (GOOD_LABELS, GOOD_IMAGE[..., 0], "auto", "image"),
        (GOOD_LABELS.T, GOOD_IMAGE, "auto", "image"),
        (GOOD_LABELS, GOOD_IMAGE.astype(np.uint8), "auto", "image"),
        (GOOD_LABELS, GOOD_IMAGE + 1.5, "auto", "image"),
        (GOOD_LABELS, GOOD_IMAGE + np.nan, "auto", "image"),
    ],
)
def test_bad_input(labels, image, rule, name):
    with pytest.raises(InputError, match=f"^{name}: .*accepted") as caught:
        foreground(labels, image, rule)
    if name == "rule":
        assert "auto, lesion, lungs" in str(caught.value)


@pytest.mark.parametrize(
    "scores",
    [
        np.zeros((2, 40, 51)),
        np.zeros((40, 50)),
        np.zeros((0, 40, 50)),
        np.full((2, 40, 50), np.nan),
        np.zeros((2, 40, 50), int),
    ],
    ids=["size", "2-D", "none", "NaN", "integers"],
)
def test_bad_scores(scores):
    with pytest.raises(InputError, match="^scores: .*accepted"):
        foreground(GOOD_LABELS, GOOD_IMAGE, scores=scores)


def test_no_run():
    with pytest.raises(InputError, match="^runs: .*accepted"):
        foreground_of_runs([], GOOD_IMAGE)
