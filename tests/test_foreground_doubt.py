"""Masks of images that no rule was made for are doubtful, however well the candidates agree."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from msformer_fast import phantom
from msformer_fast.foreground import foreground
from msformer_fast.foreground.doubt import misfit, strangeness
from msformer_fast.foreground.evidence import darkness_channel
from msformer_fast.foreground.kind import kind_of

ROW, COLUMN = np.mgrid[:129, :129]


def of(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.repeat(np.clip(grey, 0, 1)[..., None], 3, axis=2)


def lungs_drawn(inside: float, outside: float) -> NDArray[np.float64]:
    left, right = (((ROW - 62) / 40) ** 2 + ((COLUMN - middle) / 18) ** 2 < 1 for middle in (36, 93))
    return of(np.where(left | right, inside, outside))


def compressed(image: NDArray[np.float64]) -> NDArray[np.float64]:
    file = io.BytesIO()
    Image.fromarray((image * 255).astype(np.uint8)).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file)) / 255


def round_field() -> NDArray[np.float64]:
    """A picture in a circle on a white page: no margin that could be left out."""
    picture = phantom.lesion((129, 129), 0)[0].astype(np.float64)
    picture[np.hypot(ROW - 64, COLUMN - 64) > 62] = 1
    return picture


STRANGE = {
    "two tones": (lungs_drawn(0.1, 0.8), "two tones make up 100 %"),
    "two tones as JPEG": (compressed(lungs_drawn(0.1, 0.8)), "of one light colour, as of a page"),
    "noise": (np.random.default_rng(0).random((129, 129, 3)), "of the contrast is grain"),
    "grey noise": (of(np.random.default_rng(0).random((129, 129))), "of the contrast is grain"),
    "a round field on a page": (round_field(), "of the image border are of one light colour"),
    "a gradient": (of(COLUMN / 128.0), "unlike what the rule was made for"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_images_are_doubtful(kind: str) -> None:
    image, why = STRANGE[kind]
    levels = np.rint(darkness_channel(image) * 255).astype(np.uint8)
    result = foreground(levels, image)
    assert result.doubtful and result.confidence <= 0.5
    assert why in result.reason and "(doubtful: " in result.reason
    assert result.mask.any()


@pytest.mark.parametrize("kind", ["lesion", "chest"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(65, 65), (129, 129), (200, 257)])
def test_what_the_rules_were_made_for_is_not_strange(kind: str, seed: int, size: tuple[int, int]) -> None:
    image = phantom.make(kind, size, seed)[0].astype(np.float64)
    assert strangeness(image) == ""
    assert strangeness(image[..., :1]) == ""


def test_a_flat_image_and_a_black_border_are_not_strange_by_that() -> None:
    assert strangeness(of(np.full((40, 50), 0.5))) != ""  # one tone
    image = phantom.chest((129, 129), 0)[0].astype(np.float64)
    image[:12] = image[-12:] = image[:, :12] = image[:, -12:] = 0
    assert strangeness(image) == ""


@pytest.mark.parametrize("kind", ["lesion", "chest", "ct"])
@pytest.mark.parametrize("left", [0.06, 0.15])
def test_lost_contrast_is_not_strange_by_itself(kind: str, left: float) -> None:
    image = phantom.make(kind, (129, 129), 1)[0].astype(np.float64)
    faint = np.rint(255 * (0.5 + left * (image - 0.5))) / 255
    assert strangeness(faint) == ""
    rule = {"lesion": "lesion", "chest": "lungs-xray", "ct": "lungs-ct"}[kind]
    assert misfit(rule, kind_of(faint)) == ""


def test_drawings_pages_and_grey_images_are_strange_however_faint() -> None:
    for image in (lungs_drawn(0.1, 0.8), round_field()):
        assert strangeness(np.rint(255 * (0.5 + 0.1 * (image - 0.5))) / 255) != ""
    grey = phantom.chest((129, 129), 1)[0].astype(np.float64)
    assert misfit("lesion", kind_of(0.45 + 0.1 * grey)) != ""
