"""Sheets of many segmentations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from msformer_fast.contact_sheet import MASK_COLOUR, TRUTH_COLOUR, Tile, contact_sheet
from msformer_fast.errors import InputError


def tile(name: str = "a", shape: tuple[int, int] = (60, 60), grey: float = 0.5, channels: int = 3, **options) -> Tile:
    mask, truth = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    mask[shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = True
    truth[shape[0] // 2 : -2, shape[1] // 2 : -2] = True
    options = {"truth": truth, "captions": ("Dice 0.5", "sure"), **options}
    return Tile(name, np.full((*shape, channels), grey, np.float32), mask, **options)


def where(sheet: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    return (sheet == np.array(colour)).all(axis=2)


def test_outlines_are_where_the_masks_are() -> None:
    sheet = contact_sheet([tile()], side=120)
    assert sheet.dtype == np.uint8 and sheet.flags.writeable
    rows, columns = np.nonzero(where(sheet, MASK_COLOUR)[30:150])
    truth_rows, truth_columns = np.nonzero(where(sheet, TRUTH_COLOUR)[30:150])
    assert truth_rows.min() > rows.min() and truth_columns.min() > columns.min()
    assert np.ptp(columns) == pytest.approx(30, abs=2) and np.ptp(truth_columns) == pytest.approx(56, abs=3)
    assert not where(contact_sheet([tile(truth=None)], side=120), TRUTH_COLOUR).any()


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_both_outlines_are_seen_where_the_masks_agree(grey: float) -> None:
    mask = np.zeros((128, 128), dtype=bool)
    mask[32:96, 32:96] = True
    sheet = contact_sheet([Tile("a", np.full((128, 128, 3), grey, np.float32), mask, mask)], side=128)
    top = np.argwhere(where(sheet, MASK_COLOUR)[30:]).min(axis=0)[0] + 30 - 32
    picture = sheet[top : top + 128, 6 : 6 + 128]
    inner = np.zeros_like(mask)
    inner[33:95, 33:95] = True
    outer = np.zeros_like(mask)
    outer[31:97, 31:97] = True
    outer[[31, 31, 96, 96], [31, 96, 31, 96]] = False
    np.testing.assert_array_equal(where(picture, MASK_COLOUR), mask & ~inner)
    np.testing.assert_array_equal(where(picture, TRUTH_COLOUR), outer & ~mask)
    assert (picture[30, 40:90] == 20).all() and (picture[33, 40:90] == 20).all(), "dark edges on both sides"
    untouched = np.ones_like(mask)
    untouched[30:98, 30:98] = False
    untouched[40:88, 40:88] = True
    assert (picture[untouched] == round(grey * 255)).all()


def test_a_mask_of_the_whole_image_is_seen() -> None:
    whole = np.ones((64, 64), dtype=bool)
    sheet = contact_sheet([Tile("a", np.zeros((64, 64, 3), np.float32), whole)], side=128)
    assert where(sheet, MASK_COLOUR)[30:].sum() == 4 * 127


@pytest.mark.parametrize("side", [32, 256])
def test_the_legend_is_whole_at_any_width(side: int) -> None:
    empty = np.zeros((60, 60), dtype=bool)
    legend = contact_sheet([tile(truth=empty, captions=())], side=side)[:26]
    columns = [np.flatnonzero(where(legend, colour).any(axis=0)) for colour in (TRUTH_COLOUR, MASK_COLOUR)]
    assert columns[0].size and columns[0].max() < columns[1].min()
    grey = (np.ptp(legend, axis=2) == 0) & (legend[..., 0] > 100)
    text = np.flatnonzero(grey.any(axis=0))
    assert columns[1].max() < text.max() < legend.shape[1] - 1
    assert not where(contact_sheet([tile(truth=None)], side=side), TRUTH_COLOUR).any()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(40, 90), (200, 50), (33, 33)])
def test_any_image_fits_its_square(shape: tuple[int, int], channels: int) -> None:
    wide, square = contact_sheet([tile(shape=shape, channels=channels)], side=120), contact_sheet([tile()], side=120)
    assert wide.shape == square.shape and where(wide, MASK_COLOUR).any() and where(wide, TRUTH_COLOUR).any()


def test_tiles_stand_in_their_order() -> None:
    greys = [0.1, 0.3, 0.5, 0.7, 0.9]
    sheet = contact_sheet([tile(grey=grey) for grey in greys], columns=2, side=64)
    levels = [np.argwhere((sheet == round(grey * 255)).all(axis=2)).mean(axis=0) for grey in greys]
    for earlier, later in itertools.pairwise(levels):
        same_row = abs(earlier[0] - later[0]) < 20
        assert later[1] > earlier[1] + 50 if same_row else later[0] > earlier[0] + 50
    assert levels[0][1] == pytest.approx(levels[2][1], abs=3) == pytest.approx(levels[4][1], abs=3)
    assert contact_sheet([tile()] * 2, columns=9, side=128).shape[1] == 2 * 134 + 6


def test_long_and_odd_names_stay_in_their_column() -> None:
    plain = contact_sheet([tile("x"), tile("y")], side=100)
    long = contact_sheet([tile("n" * 300 + "\n\t"), tile("y")], side=100)
    assert plain.shape == long.shape
    column = slice(6 + 100, 6 + 106)
    assert np.array_equal(plain[40:, column], long[40:, column]), "nothing is written into the gap"


@pytest.mark.parametrize(
    ("tiles", "options", "match"),
    [
        ([], {}, "^tiles: there is none"),
        ([tile()], {"columns": 0}, "^columns"),
        ([tile()], {"side": 31}, "^side"),
        ([tile(truth=np.zeros((3, 3), bool))], {}, "truth of 'a'"),
        ([Tile("b", np.zeros((9, 9, 3), np.float32), np.zeros((9, 8), bool))], {}, "mask of 'b'"),
        ([Tile("c", np.zeros((9, 9), np.float32), np.zeros((9, 9), bool))], {}, "image of 'c'"),
    ],
)
def test_bad_input(tiles: list, options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        contact_sheet(tiles, **options)
