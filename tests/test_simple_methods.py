"""The simple methods on images drawn here, whose answer is known."""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from scipy import ndimage

from msformer_fast.errors import InputError
from msformer_fast.metrics import dice
from msformer_fast.simple_methods import METHODS, simple_mask

SKIN, LESION, BLACK = (0.85, 0.65, 0.55), (0.35, 0.2, 0.15), (0.05, 0.05, 0.05)
PRIORS = ("lesion", "lungs")
needs_sklearn = pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn")
MIXTURE = pytest.param("gaussian mixture", marks=needs_sklearn)
every_method = pytest.mark.parametrize("method", ["otsu", "2-means", MIXTURE, "slic"])


def grid(shape):
    """Row and column of every pixel's centre in units of the sides, 0 to 1."""
    return np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij")


def ellipse(shape, row, column, height, width):
    rows, columns = grid(shape)
    return ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 1


def noisy(image):
    """With noise, and with the uneven light without which the edges of a region differ more than its pixels."""
    rows, columns = grid(image.shape[:2])
    light = 0.06 * np.sin(9 * rows + 1) * np.cos(7 * columns)
    noise = np.random.default_rng(5).normal(0, 0.03, image.shape)
    return np.clip(image + light[:, :, None] + noise, 0, 1).astype(np.float32)


def skin(shape=(129, 161)):
    """A lesion with a pale spot, off the middle; the dark corners are joined to one part that is larger than it."""
    truth = ellipse(shape, 0.45, 0.52, 0.2, 0.17)
    image = np.full((*shape, 3), SKIN)
    image[truth] = LESION
    image[ellipse(shape, 0.45, 0.52, 0.05, 0.05)] = SKIN
    image[~ellipse(shape, 0.5, 0.5, 0.44, 0.44)] = BLACK
    return noisy(image), truth


def chest(shape=(129, 161), gap=True):
    """Two lungs in a body, a vessel in one of them, a small dark bubble, a black frame; no gap: the lungs meet it."""
    left, right = ellipse(shape, 0.5, 0.3, 0.3, 0.13), ellipse(shape, 0.5, 0.7, 0.28, 0.12)
    truth, rows, columns = left | right, *grid(shape)
    image = np.full((*shape, 1), 0.7)
    image[truth | ellipse(shape, 0.88, 0.5, 0.03, 0.03)] = 0.2
    image[ellipse(shape, 0.5, 0.3, 0.05, 0.03)] = 0.7
    to_border = [columns, 1 - columns, *([rows, 1 - rows] if gap else [])]
    image[np.minimum.reduce(to_border) < 0.06] = 0.05
    if not gap:
        image[(np.abs(rows - 0.5) < 0.05) & ((columns < 0.3) | (columns > 0.7))] = 0.2
    return noisy(image), truth


@every_method
@pytest.mark.parametrize("shape", [(129, 161), (257, 200), (65, 91)])
def test_lesion_under_dark_corners(method, shape):
    image, truth = skin(shape)
    mask = simple_mask(image, method, "lesion")
    assert mask.dtype == np.bool_ and mask.shape == shape
    assert dice(mask, truth) > 0.95


@every_method
@pytest.mark.parametrize("shape", [(129, 161), (200, 257), (65, 91)])
def test_lungs_inside_a_black_frame(method, shape):
    image, truth = chest(shape)
    mask = simple_mask(image, method, "lungs")
    assert dice(mask, truth) > 0.9
    assert ndimage.label(mask)[1] == 2


@every_method
def test_strong_noise_is_smoothed(method):
    image, truth = skin((257, 257))
    image = np.clip(image + np.random.default_rng(8).normal(0, 0.25, image.shape), 0, 1)
    assert dice(simple_mask(image, method, "lesion"), truth) > 0.95


@every_method
def test_one_channel_lesion(method):
    image, truth = skin((65, 91))
    assert dice(simple_mask(image.mean(axis=2, keepdims=True), method, "lesion"), truth) > 0.95


@every_method
@pytest.mark.parametrize("channels", [2, 5])
def test_any_number_of_channels(method, channels):
    image, truth = chest()
    assert dice(simple_mask(np.repeat(image, channels, axis=2), method, "lungs"), truth) > 0.9


@pytest.mark.parametrize("method", ["2-means", MIXTURE, "slic"])
def test_colour_counts_where_brightness_hardly_differs(method):
    truth = ellipse((97, 97), 0.5, 0.5, 0.25, 0.25)
    image = np.where(truth[:, :, None], (0.2, 0.6, 0.25), (0.6, 0.2, 0.4))
    assert dice(simple_mask(noisy(image), method, "lesion"), truth) > 0.95


@every_method
def test_lungs_joined_to_the_frame_are_kept(method):
    # All that is left off the border is the bubble, far too small for a lung. Frames left and right alone, since the
    # hole of a closed one is the whole body.
    image, truth = chest(gap=False)
    mask = simple_mask(image, method, "lungs")
    assert mask[truth].mean() > 0.9 and mask.mean() < 0.5


def test_a_small_second_part_is_no_lung():
    image, _ = chest()
    rows, columns = grid(image.shape[:2])
    image[(columns > 0.5) & (rows < 0.82) & (image[:, :, 0] > 0.1) & (image[:, :, 0] < 0.4)] = 0.7
    mask = simple_mask(image, "otsu", "lungs")
    assert ndimage.label(mask)[1] == 1 and dice(mask, ellipse(mask.shape, 0.5, 0.3, 0.3, 0.13)) > 0.9


def test_opening_removes_a_hair():
    image, truth = skin((257, 257))
    image[128:131, 40:220] = 0.1
    mask = simple_mask(image, "otsu", "lesion")
    assert dice(mask, truth) > 0.95
    assert not mask[:, :60].any() and not mask[:, 200:].any()


def test_a_target_as_thin_as_a_hair_is_not_opened_away():
    image = np.full((129, 129, 3), 0.9)
    image[64, 20:110] = 0.0
    assert simple_mask(image, "otsu", "lesion")[64, 30:100].all()


@every_method
@pytest.mark.parametrize("prior", PRIORS)
def test_a_seed_repeats_and_the_global_generator_stays(method, prior):
    image = np.random.default_rng(3).random((40, 50, 3))
    np.random.seed(11)  # noqa: NPY002
    before = np.random.get_state()  # noqa: NPY002
    first = simple_mask(image, method, prior, seed=4)
    after = np.random.get_state()  # noqa: NPY002
    assert before[2] == after[2] and np.array_equal(before[1], after[1])
    np.random.seed(12)  # noqa: NPY002
    assert np.array_equal(simple_mask(image, method, prior, seed=4), first)


@every_method
def test_the_image_stays_untouched(method):
    image, _ = skin()
    copy = image.copy()
    image.flags.writeable = False
    simple_mask(image, method, "lesion")
    assert np.array_equal(image, copy)


@every_method
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(40, 50, 3), (33, 34, 1), (1, 1, 1)])
def test_constant_image(method, prior, value, shape):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = simple_mask(np.full(shape, value), method, prior)
    # The opening rounds the corners off, nothing else is missing.
    assert mask.shape == shape[:2] and mask.mean() > 0.95


@every_method
@pytest.mark.parametrize("prior", PRIORS)
def test_hard_images_give_a_mask_without_warnings(method, prior):
    row, column = np.mgrid[:40, :50]
    one_dark_pixel, two_colours = np.ones((40, 50, 1)), np.zeros((40, 50, 3))
    one_dark_pixel[20, 25] = 0
    two_colours[:, 25:] = 1
    ramp, checks = (row + column)[:, :, None] / 100, ((row + column) % 2)[:, :, None].astype(float)
    faint = 0.5 + 1e-7 * ramp
    isoluminant = np.where((row < 20)[:, :, None], (1.0, 0.0), (0.0, 1.0))
    tiny = [np.random.default_rng(1).random((*sides, 3)) for sides in ((1, 2), (2, 1), (1, 9), (3, 3))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (one_dark_pixel, two_colours, ramp, checks, faint, isoluminant, *tiny):
            mask = simple_mask(image, method, prior)
            assert mask.shape == image.shape[:2] and mask.dtype == np.bool_ and mask.any()


@needs_sklearn
def test_a_fit_that_does_not_settle_does_not_warn(monkeypatch):
    from sklearn import mixture

    class OneStep(mixture.GaussianMixture):
        def __init__(self, n_components, **settings):
            super().__init__(n_components, max_iter=1, tol=1e-12, **settings)

    image, _ = skin()
    monkeypatch.setattr(mixture, "GaussianMixture", OneStep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert simple_mask(image, "gaussian mixture", "lesion").any()


@needs_sklearn
@pytest.mark.parametrize("label", [0, 1])
def test_a_split_into_one_class_falls_back_to_the_median(monkeypatch, label):
    from sklearn import mixture

    image = np.zeros((40, 50, 1))
    image[:, 25:] = 1
    monkeypatch.setattr(mixture.GaussianMixture, "predict", lambda self, colours: np.full(len(colours), label))
    assert np.array_equal(simple_mask(image, "gaussian mixture", "lungs"), image[:, :, 0] == 0)


def test_mixture_without_scikit_learn(monkeypatch):
    for name in ("sklearn", "sklearn.mixture"):
        monkeypatch.setitem(sys.modules, name, None)
    image, truth = skin()
    for given in (image, np.zeros_like(image)):  # also where the answer would need no mixture
        with pytest.raises(InputError, match=r"needs scikit-learn; install msformer-fast\[evaluate\]$"):
            simple_mask(given, "gaussian mixture", "lesion")
    for method in set(METHODS) - {"gaussian mixture"}:
        assert dice(simple_mask(image, method, "lesion"), truth) > 0.95


GOOD = np.zeros((8, 9, 3))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"method": "k-means"}, "method"),
        ({"method": ["otsu"]}, "method"),
        ({"prior": "auto"}, "prior"),
        ({"prior": None}, "prior"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"image": GOOD[:, :, 0]}, "image"),
        ({"image": GOOD[:, :, :0]}, "image"),
        ({"image": GOOD[:0]}, "image"),
        ({"image": GOOD.astype(np.uint8)}, "image"),
        ({"image": GOOD - 0.1}, "image"),
        ({"image": GOOD + 1.5}, "image"),
        ({"image": GOOD * np.nan}, "image"),
    ],
)
def test_bad_input(arguments, name):
    with pytest.raises(InputError, match=rf"^{name}: .*accepted"):
        simple_mask(**{"image": GOOD, "method": "otsu", "prior": "lesion"} | arguments)


def test_the_names_are_those_of_the_table():
    assert METHODS == ("otsu", "2-means", "gaussian mixture", "slic")
