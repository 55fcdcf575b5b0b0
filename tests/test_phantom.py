"""The phantoms: the same for a seed, in range, with a plausible mask darker than its surroundings."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from msformer_fast.errors import InputError
from msformer_fast.phantom import KINDS, chest, ct, lesion, make

SIZES = [(257, 257), (33, 33), (33, 90), (120, 70), (64, 200)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_image_and_mask(kind, size, seed):
    image, mask = make(kind, size, seed)
    assert image.shape == (*size, 3) and image.dtype == np.float32
    assert mask.shape == size and mask.dtype == np.bool_
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.1
    assert 0.04 < mask.mean() < 0.5

    ring = ndimage.binary_dilation(mask, iterations=max(2, min(size) // 20)) & ~mask
    assert image[mask].mean() < image[ring].mean() - 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_everything(kind):
    first, again, other = make(kind, (60, 80), 3), make(kind, (60, 80), 3), make(kind, (60, 80), 4)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


def test_names_lead_to_the_functions():
    assert set(KINDS) == {"lesion", "chest", "ct"}
    for kind, function in (("lesion", lesion), ("chest", chest), ("ct", ct)):
        for made, drawn in zip(make(kind, (40, 50), 1), function((40, 50), 1), strict=True):
            assert np.array_equal(made, drawn)


@pytest.mark.parametrize("seed", range(6))
def test_lesion_is_one_coloured_part_under_a_vignette(seed):
    image, mask = lesion((120, 140), seed)
    assert ndimage.label(mask)[1] == 1
    assert np.array_equal(mask, ndimage.binary_fill_holes(mask))
    assert np.ptp(image, axis=2).mean() > 0.1
    assert max(image[row, column].mean() for row in (0, -1) for column in (0, -1)) < 0.3


@pytest.mark.parametrize("seed", range(6))
def test_chest_is_grey_with_two_lungs_off_a_black_border(seed):
    image, mask = chest((150, 140), seed)
    assert np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2])
    assert ndimage.label(mask)[1] == 2
    assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    assert image[0, 0].mean() < 0.15 and image[0, -1].mean() < 0.15


@pytest.mark.parametrize("size", [(32, 257), (257, 32), (257,), (257, 257, 3), 257, (64.0, 64), "64", None])
@pytest.mark.parametrize("function", KINDS.values())
def test_bad_size(function, size):
    with pytest.raises(InputError, match="^size: .*at least 33"):
        function(size)


@pytest.mark.parametrize("seed", [-1, 0.5, None, "1", True])
@pytest.mark.parametrize("function", KINDS.values())
def test_bad_seed(function, seed):
    with pytest.raises(InputError, match="^seed: "):
        function((40, 40), seed)


@pytest.mark.parametrize("kind", ["heart", "", None, 3])
def test_bad_kind(kind):
    with pytest.raises(InputError, match="^kind: .*lesion, chest"):
        make(kind)
