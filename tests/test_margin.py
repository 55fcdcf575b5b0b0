"""A uniform margin around a picture: found to the line, left out, said; and nothing else taken for one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from msformer_fast import phantom, segment
from msformer_fast.margin import Margin, find_margin
from msformer_fast.metrics import dice

FAST: dict[str, Any] = {"size": 65, "channels": 8, "clusters": 8, "depth": 1, "max_iterations": 3, "device": "cpu"}
COLOURS = {"white": (255,) * 3, "grey": (128,) * 3, "dark grey": (60,) * 3, "yellow": (200, 180, 40)}


def padded(
    picture: NDArray[np.float32], colour: Any, top: int, bottom: int, left: int, right: int
) -> NDArray[np.uint8]:
    pixels = np.rint(picture * 255).astype(np.uint8)
    whole = np.empty((pixels.shape[0] + top + bottom, pixels.shape[1] + left + right, 3), np.uint8)
    whole[:] = colour
    whole[top : whole.shape[0] - bottom, left : whole.shape[1] - right] = pixels
    return whole


def unit(pixels: Any) -> NDArray[np.float32]:
    return np.asarray(pixels).astype(np.float32) / 255


def found(pixels: Any) -> tuple[int, int, int, int]:
    margin = find_margin(unit(pixels))
    return (0, 0, 0, 0) if margin is None else (margin.top, margin.bottom, margin.left, margin.right)


@pytest.mark.parametrize(
    "widths", [(9, 9, 9, 9), (40, 3, 12, 25), (0, 0, 14, 14), (20, 0, 0, 0), (0, 7, 0, 11), (2,) * 4]
)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", ["lesion", "chest"])
def test_a_margin_is_found_to_the_line(kind: str, colour: str, widths: tuple[int, int, int, int]) -> None:
    picture, _ = phantom.make(kind, (90, 110), 1)
    assert found(padded(picture, COLOURS[colour], *widths)) == widths
    assert found(np.rint(picture * 255)) == (0, 0, 0, 0)


def test_a_black_margin_around_a_coloured_picture() -> None:
    picture, _ = phantom.lesion((90, 110), 1)
    picture = np.clip(picture, 0.3, 1)
    assert found(padded(picture, 0, 9, 9, 9, 9)) == (9, 9, 9, 9)
    assert found(padded(picture, 0, 0, 0, 12, 12)) == (0, 0, 12, 12)
    # On one side alone it may be a radiograph's own; of two that differ the rest is.
    assert found(padded(picture, 0, 0, 30, 0, 0)) == (0, 0, 0, 0)
    assert found(padded(picture, 0, 9, 60, 9, 9)) == (9, 12, 9, 9)


def test_sides_of_different_colours_and_margins_in_margins() -> None:
    picture, _ = phantom.lesion((90, 110), 2)
    grey = padded(picture, 128, 6, 6, 6, 6)
    assert found(padded(unit(grey), 255, 10, 10, 10, 10)) == (16, 16, 16, 16)
    assert found(padded(unit(padded(picture, 255, 10, 0, 0, 0)), 90, 0, 12, 8, 8)) == (10, 12, 8, 8)


def _jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


RNG = np.random.default_rng(0)
WORN = {
    "JPEG of quality 75": lambda picture: _jpeg(picture, 75),
    "JPEG of quality 40": lambda picture: _jpeg(picture, 40),
    "noise": lambda picture: np.clip(
        np.asarray(picture) + np.random.default_rng(0).normal(0, 2.5, (130, 150, 3)), 0, 255
    ),
    "blurred": lambda picture: picture.filter(ImageFilter.GaussianBlur(1.2)),
    "resized and back": lambda picture: picture.resize((100, 87)).resize((150, 130)),
}


@pytest.mark.parametrize("colour", ["white", "grey"])
@pytest.mark.parametrize("kind", ["lesion", "chest"])
@pytest.mark.parametrize("how", WORN)
def test_a_worn_margin_is_found_nearly_to_the_line(how: str, kind: str, colour: str) -> None:
    picture, _ = phantom.make(kind, (90, 110), 1)
    whole = Image.fromarray(padded(picture, COLOURS[colour], 20, 20, 20, 20))
    assert found(WORN[how](whole)) == pytest.approx((20,) * 4, abs=4)


@pytest.mark.parametrize("background", [0.0, 0.5, 1.0])
def test_a_background_of_one_colour_is_no_margin(background: float) -> None:
    """A body, a round field: they end in no straight line."""
    row, column = np.mgrid[:120, :150]
    inside = ((row - 60) / 40) ** 2 + ((column - 75) / 60) ** 2 < 1
    rng = np.random.default_rng(0)
    image = np.where(inside[..., None], 0.75 - 0.3 * rng.random((120, 150, 3)), background).astype(np.float32)
    assert find_margin(image) is None


def test_drawings_have_no_margin() -> None:
    image = np.ones((100, 100, 3), np.float32)
    image[20:80, 30:70] = 0.1  # a plain square on a plain page
    assert find_margin(image) is None
    assert find_margin(np.full((50, 50, 3), 0.5, np.float32)) is None


def test_one_line_at_one_side_is_no_margin() -> None:
    picture, _ = phantom.lesion((90, 110), 1)
    assert found(padded(picture, 255, 1, 0, 0, 0)) == (0, 0, 0, 0)


def test_too_little_would_be_left() -> None:
    picture, _ = phantom.lesion((40, 40), 1)
    whole = padded(picture, 255, 10, 10, 10, 10)
    assert found(whole) == (10, 10, 10, 10)
    result = segment(whole, **FAST)
    assert result.mask.shape == (60, 60)
    narrow = padded(phantom.lesion((40, 33 * 12), 1)[0], 255, 100, 100, 0, 0)
    assert segment(narrow, **FAST).margin is None  # at 65 pixels wide what is inside would be too low


@pytest.mark.parametrize("kind", ["lesion", "chest"])
@pytest.mark.parametrize("colour", [255, *(pytest.param(c, marks=pytest.mark.slow) for c in (128, (200, 180, 40)))])
def test_the_margin_is_left_out_of_everything(kind: str, colour: Any) -> None:
    """The mask is that of the picture alone, at the size of the whole."""
    picture, truth = phantom.make(kind, (65, 65), 0)
    pixels = np.rint(picture * 255).astype(np.uint8)
    alone = segment(pixels, **FAST)
    whole = segment(padded(picture, colour, 8, 6, 10, 4), **FAST)
    assert alone.margin is None and whole.margin == Margin(8, 6, 10, 4)
    inside = whole.margin.inside(whole.mask.shape)
    assert np.array_equal(whole.mask[inside], alone.mask) and whole.mask.sum() == alone.mask.sum()
    assert np.array_equal(whole.labels[inside], alone.labels)
    outside = np.ones(whole.mask.shape, bool)
    outside[inside] = False
    assert set(np.unique(whole.labels[outside])) == {8} and whole.labels.dtype == np.uint8
    assert dice(whole.mask[inside], truth) > 0.85
    assert whole.foreground.confidence == alone.foreground.confidence
    record = whole.as_dict()
    assert record["margin"] == {"top": 8, "bottom": 6, "left": 10, "right": 4}
    assert "Left out: a uniform margin of 8 at the top, 6 at the bottom" in record["foreground"]["reason"]
    assert alone.as_dict()["margin"] is None


def test_several_runs_and_their_vote() -> None:
    picture, _ = phantom.lesion((60, 60), 0)
    result = segment(padded(picture, 255, 5, 5, 5, 5), seeds=2, **FAST)
    assert result.agreement is not None
    assert result.agreement.shape == result.labels.shape == result.mask.shape == (70, 70)
    assert result.agreement[0, 0] == 1


def test_the_network_sees_no_more_pixels_than_planned() -> None:
    picture, _ = phantom.lesion((90, 90), 0)
    result = segment(padded(picture, 255, 0, 0, 30, 30), **FAST)
    height, width = result.network_size
    assert result.margin is not None
    assert height == width and height * width <= 65 * 39
