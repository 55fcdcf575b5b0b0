"""Lungs on CT slices drawn here: what is found, what is left out, and what an image is taken for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from msformer_fast import phantom
from msformer_fast.errors import InputError
from msformer_fast.evaluate import find_pairs, split_pairs
from msformer_fast.foreground import RULES, Foreground, foreground
from msformer_fast.foreground.calibration import DOUBTFUL, WEIGHTS, Raw, calibrated
from msformer_fast.foreground.kind import CT_SLICE, ct_likeness
from msformer_fast.formats.plain import read_image, read_mask
from msformer_fast.metrics import dice

from .conftest import DATA

SIDE = 129
ROW, COLUMN = np.mgrid[:SIDE, :SIDE]
AIR, FAT, LUNG, TISSUE, BONE = -1000.0, -90.0, -830.0, 40.0, 400.0


def ellipse(row: float, column: float, half_height: float, half_width: float) -> NDArray[np.bool_]:
    return np.asarray(((ROW - row) / half_height) ** 2 + ((COLUMN - column) / half_width) ** 2 < 1)


def slice_of(*regions: tuple[float, NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Hounsfield units (SIDE, SIDE): a body on air, and what is drawn over it in turn."""
    units = np.full((SIDE, SIDE), AIR)
    units[ellipse(64, 64, 44, 56)] = FAT
    units[ellipse(64, 64, 41, 52)] = TISSUE
    for value, mask in regions:
        units[mask] = value
    return units


def shown(units: NDArray[np.float64], low: float = -1000, high: float = 400) -> NDArray[np.float64]:
    """Three channels (SIDE, SIDE, 3) through a window, blurred and noisy as a scan is."""
    noise = np.random.default_rng(3).normal(0, 12, units.shape)
    grey = np.clip((ndimage.gaussian_filter(units, 0.6) + noise - low) / (high - low), 0, 1)
    return np.repeat(grey[..., None], 3, axis=2)


def found(image: NDArray[np.float64], rule: str = "auto", **options: Any) -> Foreground:
    """The rule on grey levels in the place of clusters."""
    return foreground(np.rint(image.mean(axis=2) * 255).astype(np.uint8), image, rule, **options)


LUNGS = ellipse(64, 38, 28, 17) | ellipse(64, 90, 28, 17)
VESSELS = ellipse(60, 36, 2, 3) | ellipse(72, 92, 3, 2)


@pytest.mark.parametrize("size", [(129, 129), (257, 257), (200, 257)])
@pytest.mark.parametrize("seed", range(3))
def test_the_phantom(size: tuple[int, int], seed: int) -> None:
    image, truth = phantom.make("ct", size, seed)
    result = found(image.astype(np.float64))
    assert dice(result.mask, truth) > 0.96
    assert result.rule == "lungs-ct" and not result.doubtful and result.confidence > 0.85
    assert "as in CT" in result.reason and "Air inside of the body in" in result.reason


def test_what_is_left_out_and_what_is_filled() -> None:
    bronchus, gas = ellipse(66, 63, 4, 4), ellipse(30, 66, 4, 8)
    table = (np.abs(ROW - 112 - (COLUMN - 64.0) ** 2 / 900) < 2) & (np.abs(COLUMN - 64) < 60)
    image = shown(slice_of((LUNG, LUNGS), (TISSUE, VESSELS), (AIR, bronchus), (AIR, gas), (BONE, table)))
    result = found(image)
    assert dice(result.mask, LUNGS) > 0.97
    assert result.mask[VESSELS].all(), "vessels within a lung belong to it"
    assert not result.mask[bronchus].any() and not result.mask[gas].any() and not result.mask[105:].any()


def test_air_that_the_table_closes_off_is_no_lung() -> None:
    table = (np.abs(ROW - 118) < 2) | ((np.abs(np.abs(COLUMN - 64) - 50) < 2) & (ROW > 84) & (ROW < 118))
    result = found(shown(slice_of((LUNG, LUNGS), (150.0, table & ~ellipse(64, 64, 44, 56)))))
    assert dice(result.mask, LUNGS) > 0.97


def test_a_round_field_with_padding_and_the_whole_range() -> None:
    """Black is what the scanner did not see, air is grey, and lungs are as grey as the air around the body."""
    units = slice_of((LUNG, LUNGS), (TISSUE, VESSELS))
    units[np.hypot(ROW - 64, COLUMN - 64) > 63] = -2000
    result = found(shown(units, low=-2000, high=1200))
    assert dice(result.mask, LUNGS) > 0.96 and result.rule == "lungs-ct"


def test_a_body_cut_out_with_lungs_clipped_to_black() -> None:
    result = found(shown(slice_of((LUNG, LUNGS)), low=-500, high=600))
    assert dice(result.mask, LUNGS) > 0.97 and not result.doubtful


PARTS = {
    "one lung": ellipse(64, 38, 28, 17),
    "four parts at the base": (ellipse(88, 40, 6, 12) | ellipse(88, 88, 6, 12))
    | (ellipse(50, 22, 9, 3) | ellipse(50, 106, 9, 3)),
    "small apices": ellipse(66, 48, 7, 6) | ellipse(66, 80, 7, 6),
    "one cut short by the other side's heart": ellipse(64, 38, 28, 17) | ellipse(80, 95, 11, 12),
}  # fmt: skip


@pytest.mark.parametrize("which", PARTS)
def test_any_number_of_parts(which: str) -> None:
    truth = PARTS[which]
    windpipe = ellipse(66, 64, 4, 4)
    result = found(shown(slice_of((LUNG, truth), (AIR, windpipe))), "lungs-ct")
    assert dice(result.mask, truth) > 0.92
    assert ndimage.label(result.mask)[1] == ndimage.label(truth)[1]


def test_lungs_that_meet_in_front_of_the_heart_do_not_take_it() -> None:
    heart = ellipse(62, 64, 22, 22)
    ring = (ellipse(64, 64, 30, 42) & ~heart) & ~ellipse(90, 64, 14, 10)
    result = found(shown(slice_of((LUNG, ring))), "lungs-ct")
    assert not result.mask[heart].mean() > 0.1 and dice(result.mask, ring) > 0.9


def test_bowel_gas_at_the_base() -> None:
    """In front, off the chest wall; the lungs of such a slice lie behind."""
    lungs = ellipse(86, 38, 9, 15) | ellipse(86, 90, 9, 15)
    gas = ellipse(46, 76, 6, 10)
    result = found(shown(slice_of((LUNG, lungs), (AIR, gas))), "lungs-ct")
    assert dice(result.mask, lungs) > 0.92 and not result.mask[gas].any()


def test_what_an_image_is_taken_for() -> None:
    ct, xray = (phantom.make(kind, (129, 129), 1)[0].astype(np.float64) for kind in ("ct", "chest"))
    skin = phantom.make("lesion", (129, 129), 1)[0].astype(np.float64)
    assert ct_likeness(ct.mean(axis=2)) > CT_SLICE + 0.05 > CT_SLICE - 0.04 > ct_likeness(xray.mean(axis=2))
    assert [found(each).rule for each in (ct, xray, skin)] == ["lungs-ct", "lungs-xray", "lesion"]
    assert [found(each, "lungs").rule for each in (ct, xray)] == ["lungs-ct", "lungs-xray"]
    assert ct_likeness(np.full((50, 60), 0.4)) == 0
    told = found(xray, modality="ct")
    assert told.rule == "lungs-ct" and "the file says that it is CT" in told.reason
    assert told.doubtful, "a file may say that it is CT and show something else"
    assert found(ct, modality="xray").rule == "lungs-xray"
    assert found(ct, "lungs-ct", modality="xray").rule == "lungs-ct", "a rule that is named is taken"


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        *(("ct", "lungs-xray"), ("ct", "lesion"), ("chest", "lungs-ct"), ("chest", "lesion")),
        *(("lesion", "lungs"), ("lesion", "lungs-ct")),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_rule_that_meets_another_kind_of_image_doubts(kind: str, rule: str, seed: int) -> None:
    image = phantom.make(kind, (129, 129), seed)[0].astype(np.float64)
    result = found(image, rule)
    assert result.doubtful and result.confidence <= 0.5
    assert "(doubtful: the rule was made for" in result.reason


def test_names_that_are_not_known() -> None:
    image = phantom.make("ct", (65, 65), 0)[0].astype(np.float64)
    with pytest.raises(
        InputError, match="rule: got 'lung'; accepted is one of auto, lesion, lungs, lungs-xray, lungs-ct"
    ):
        found(image, "lung")
    with pytest.raises(InputError, match="modality: got 'MR'; accepted is one of ct, xray, or None"):
        found(image, modality="MR")


def test_the_calibration() -> None:
    """More agreement and a better score never make a mask less sure, and no mask is sure of more than all."""
    rules = set(RULES) - {"auto", "lungs"}
    prompted = {f"{prompt} {rule}" for rule in rules for prompt in ("prompt", "clicks", "box")}
    assert set(WEIGHTS) == set(DOUBTFUL) == rules | prompted
    for rule in WEIGHTS:
        by_agreement = [calibrated(rule, Raw(each, 3.0)) for each in np.linspace(0, 1, 21)]
        by_score = [calibrated(rule, Raw(0.9, each)) for each in np.linspace(-20, 20, 21)]
        for values in (by_agreement, by_score):
            assert (np.diff(values) >= 0).all() and values[0] >= 0 and values[-1] <= 1


@pytest.mark.skipif(not (DATA / "data" / "lung_ct").is_dir(), reason="no research images here")
@pytest.mark.parametrize(
    ("folder", "every", "floor", "mean"), [("lung_ct", 4, 0.83, 0.92), ("lung_ct_64", 16, 0.94, 0.97)]
)
def test_real_slices(folder: str, every: int, floor: float, mean: float) -> None:
    """Grey levels of slices that the rule was chosen on; what a network adds is in the documentation."""
    scores = []
    for image, mask in split_pairs(
        find_pairs(DATA / "data" / folder / "images", DATA / "data" / folder / "masks"), "odd"
    )[::every]:
        pixels = read_image(image).astype(np.float64)
        result = found(pixels)
        assert result.rule == "lungs-ct", image.name
        scores.append(dice(result.mask, read_mask(mask, pixels.shape[:2])))
    assert min(scores) > floor and np.mean(scores) > mean
