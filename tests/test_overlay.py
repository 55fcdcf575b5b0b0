"""The pictures for people."""

from __future__ import annotations

import numpy as np
import pytest

from msformer_fast.errors import InputError
from msformer_fast.overlay import label_palette, overlay, panel

YELLOW = np.array([255, 221, 0])


def disc(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - 30) ** 2 + (x - 40) ** 2 < 15**2


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_overlay_marks_only_the_mask_and_its_edge(channels, level):
    image = np.full((60, 80, channels), level, np.float32)
    mask = disc()
    before = image.copy(), mask.copy()
    picture = overlay(image, mask)
    assert picture.dtype == np.uint8
    assert picture.shape == (60, 80, 3)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])
    changed = (picture != round(level * 255)).any(axis=2)
    assert changed[mask].all()  # line or tint
    far = np.ones_like(mask)
    far[10:50, 20:60] = False
    assert not changed[far].any()
    line = (picture == YELLOW).all(axis=2)
    assert 100 < line.sum() < 300
    assert not line[~mask].any()
    assert (picture[30, 40] != YELLOW).any()  # a tint in the middle, not the line


def test_overlay_of_a_full_and_an_empty_mask_has_no_line():
    image = np.full((40, 40, 1), 0.5, np.float32)
    full = overlay(image, np.ones((40, 40), bool))
    assert (full == full[0, 0]).all()
    assert (overlay(image, np.zeros((40, 40), bool)) == 128).all()


def test_overlay_line_follows_the_image_size_and_stops_at_the_frame():
    image = np.zeros((1000, 1000, 1), np.float32)
    mask = np.zeros((1000, 1000), bool)
    mask[:500] = True
    picture = overlay(image, mask)
    line = (picture == YELLOW).all(axis=2)
    assert set(np.flatnonzero(line.all(axis=1))) == {496, 497, 498, 499}
    assert line.sum() == 4 * 1000


def test_overlay_shows_label_borders_when_given():
    image = np.zeros((40, 40, 3), np.float32)
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 1
    picture = overlay(image, np.zeros((40, 40), bool), labels=labels)
    assert np.flatnonzero(picture.any(axis=(0, 2))).tolist() == [20]


def test_palette_is_stable_distinct_and_of_full_length():
    palette = label_palette(256)
    assert palette.dtype == np.uint8
    assert palette.shape == (256, 3)
    np.testing.assert_array_equal(label_palette(7), palette[:7])
    assert len(np.unique(palette, axis=0)) == 256
    first = palette[:16].astype(int)
    distance = np.abs(first[:, None] - first[None]).sum(axis=2) + 1000 * np.eye(16, dtype=int)
    assert distance.min() > 40
    with pytest.raises(InputError, match="at least 1"):
        label_palette(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_panel_is_image_labels_overlay(dtype):
    image = np.random.default_rng(0).random((60, 80, 3), dtype=np.float32)
    labels = disc().astype(dtype) * 5
    picture = panel(image, labels, disc())
    assert picture.dtype == np.uint8
    assert picture.shape == (60, 3 * 80 + 4, 3)
    np.testing.assert_array_equal(picture[:, :80], np.rint(image * 255))
    assert (picture[:, 80:82] == 255).all()
    np.testing.assert_array_equal(picture[:, 82:162], label_palette(6)[labels])
    np.testing.assert_array_equal(picture[:, 164:], overlay(image, disc()))


def test_shapes_that_do_not_agree_are_refused():
    image = np.zeros((60, 80, 3), np.float32)
    with pytest.raises(InputError, match=r"mask: has shape \(80, 60\)"):
        overlay(image, disc().T)
    with pytest.raises(InputError, match="labels: has shape"):
        panel(image, np.zeros((3, 3), int), disc())
    with pytest.raises(InputError, match="image: has shape"):
        overlay(image[:, :, 0], disc())
    with pytest.raises(InputError, match="from -1"):
        panel(image, -disc().astype(int), disc())
    with pytest.raises(InputError, match="accepted are integers"):
        panel(image, disc().astype(float), disc())
