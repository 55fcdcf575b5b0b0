"""The rules that turn clusters into a mask, on label maps drawn here."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from msformer_fast.errors import InputError
from msformer_fast.foreground import RULES, foreground
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
    assert dice(result.mask, truth) > 0.95
    assert result.mask[70, 70], "the pale spot is a hole and must be filled"
    assert set(result.labels) <= {DARK, HAIR} and DARK in result.labels
    assert ndimage.label(result.mask)[1] == 1
    assert result.rule == "lesion" and "darker" in result.reason


def test_auto_takes_lesion_for_colour_and_lungs_for_grey():
    labels, image, _ = lesion_case(CORNERS)
    coloured = foreground(labels, image)
    grey = foreground(labels, np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2))
    one_channel = foreground(labels, image[..., :1])
    assert (coloured.rule, grey.rule, one_channel.rule) == ("lesion", "lungs", "lungs")
    assert "coloured" in coloured.reason and "grey" in grey.reason
    assert np.array_equal(coloured.mask, foreground(labels, image, "lesion").mask)


def test_lesion_as_thin_as_a_hair_is_kept():
    labels, image = drawn(
        [(SKIN, None), (DARK, (ROW == 60) & (np.abs(COLUMN - 80) < 9))],
        {SKIN: (0.9, 0.7, 0.6), DARK: (0.3, 0.2, 0.1)},
    )
    result = foreground(labels, image, "lesion")
    assert np.array_equal(result.mask, labels == DARK) and "not removed" in result.reason


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
    result = foreground(labels, image, "lungs")
    assert dice(result.mask, truth) > 0.93
    assert result.mask[50, 55], "a rib is a hole and must be filled"
    assert not result.mask[0].any() and not result.mask[:, 0].any()
    assert lung_label in result.labels and result.rule == "lungs" and "two largest" in result.reason


def test_lungs_drop_small_parts_and_report_a_single_one():
    truth = ellipse(60, 50, 30, 15)
    labels, image = drawn(
        [(BODY, None), (LUNG, truth), (LUNG, ellipse(60, 110, 4, 4))],
        {BODY: (0.8,) * 3, LUNG: (0.3,) * 3},
    )
    result = foreground(labels, image, "lungs")
    assert np.array_equal(result.mask, truth) and "only" in result.reason


def test_lungs_fall_back_to_parts_on_the_border():
    labels, image = drawn([(BODY, None), (LUNG, COLUMN < 40)], {BODY: (0.8,) * 3, LUNG: (0.3,) * 3})
    result = foreground(labels, image, "lungs")
    assert np.array_equal(result.mask, COLUMN < 40)
    assert result.labels == (LUNG,) and "touch" in result.reason


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
    assert result.rule == ("lesion" if kind == "lesion" else "lungs")
    assert dice(result.mask, truth) > 0.7
    assert set(result.labels) <= set(shuffled.tolist()) and list(result.labels) == sorted(result.labels)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", RULES)
def test_never_empty_and_free_of_side_effects(rule, seed):
    print("seed", seed)
    rng = np.random.default_rng(seed)
    labels, image = rng.integers(-2, 100, (35, 47)), rng.random((35, 47, 3)).astype(np.float32)
    before = labels.copy(), image.copy()
    result, again = foreground(labels, image, rule), foreground(labels, image, rule)
    assert result.mask.any() and result.mask.dtype == np.bool_ and result.mask.shape == labels.shape
    assert result.labels and result.reason.endswith(".") and result.rule in RULES and result.rule != "auto"
    assert np.array_equal(result.mask, again.mask) and result.labels == again.labels
    assert np.array_equal(labels, before[0]) and np.array_equal(image, before[1])


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
