"""Simple segmentations without learning, as a yardstick: what an unsupervised method has to beat.

Every method splits the smoothed colours into two classes and takes the darker one. The prior then chooses among the
connected parts of the dark class: one choice for all methods, so that their scores differ by the split alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.foreground.evidence import Image, Mask, border_values, centre_weight

# Lengths are given in pixels at this shorter side and grow in proportion to it.
_SIDE = 257
_SIGMA = 2.0
_RADIUS = 4.0
# The larger lung has at least this part of the image's area, the second this part of the area of the first.
_MIN_LUNG_AREA = 0.01
_MIN_LUNG_RATIO = 0.1
# Smoothing a constant image leaves differences by rounding; contrast starts above them.
_EPSILON = 1e-6
_RUNS = 4
_ITERATIONS = 30
_FITTED_PIXELS = 20_000
_SEGMENTS = 300
_COMPACTNESS = 10.0


def simple_mask(image: Any, method: str, prior: str, *, seed: int = 0) -> Mask:
    """Segment a dark target by a simple method.

    Sources: Otsu, IEEE Trans. SMC 9 (1979); k-means++, Arthur and Vassilvitskii, SODA 2007; SLIC superpixels,
    Achanta et al., IEEE TPAMI 34 (2012).

    Args:
        image: (H, W, C) floats in [0, 1], C >= 1.
        method: how the pixels are split into two classes, a name in :data:`METHODS`: "otsu" (a threshold on the mean
            of the channels), "2-means", "gaussian mixture" (two components, full covariance; needs scikit-learn), or
            "slic" (2-means on the mean colours of about 300 superpixels, weighted by their areas).
        prior: what is kept of the darker class: "lesion" (the most central part after an opening) or "lungs" (the
            two largest parts off the image border, or the two largest of all where none of at least a hundredth
            of the image is off it; the second only where it has a tenth of the first's area); holes are filled.
            Where the split finds no dark class (an image without contrast), what is not lighter than the median
            stands for it.
        seed: whole number of at least 0; the same seed gives the same mask. NumPy's global generator is left alone.

    Returns:
        The mask, (H, W) bool, never empty.

    Raises:
        InputError: the method or the prior is unknown, the image or the seed is not as above, or scikit-learn is
            missing and the method needs it.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"method: got {method!r}; accepted is one of {', '.join(METHODS)}")
    if not isinstance(prior, str) or prior not in _PRIORS:
        raise InputError(f"prior: got {prior!r}; accepted is one of {', '.join(_PRIORS)}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed: got {seed!r}; accepted is a whole number of at least 0")
    pixels = _checked(image)
    if method == "gaussian mixture":
        mixture_module()
    smooth = smoothed(pixels)
    dark = np.zeros(smooth.shape[:2], dtype=bool)
    if np.ptp(smooth, axis=(0, 1)).max() > _EPSILON:
        dark = _SPLITS[method](smooth, np.random.default_rng(int(seed)))
    if not dark.any():
        grey = pixels.mean(axis=2)
        dark = grey <= np.median(grey)
    return _PRIORS[prior](dark)


def _checked(image: Any) -> Image:
    pixels = np.asarray(image)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise InputError(f"image: got shape {pixels.shape}; accepted is (H, W, C), C >= 1, of at least one pixel")
    if not np.issubdtype(pixels.dtype, np.floating) or not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(f"image: got {pixels.dtype} values beyond [0, 1]; accepted are floats in [0, 1]")
    return pixels.astype(np.float64)


def smoothed(pixels: Image) -> Image:
    """The image (H, W, C) as every method sees it, and methods with a prompt too."""
    from scipy.ndimage import gaussian_filter

    sigma = max(0.5, _SIGMA * min(pixels.shape[:2]) / _SIDE)
    return np.asarray(gaussian_filter(pixels, (sigma, sigma, 0)))


def _otsu(smooth: Image, rng: np.random.Generator) -> Mask:
    from skimage.filters import threshold_otsu

    grey = smooth.mean(axis=2)
    if np.ptp(grey) <= _EPSILON:  # the colours differ, their mean does not
        return np.zeros(grey.shape, dtype=bool)
    threshold: Callable[[Image], float] = threshold_otsu
    return np.asarray(grey <= threshold(grey))


def _two_means(smooth: Image, rng: np.random.Generator) -> Mask:
    """The best of several runs of Lloyd's algorithm, each from two centres drawn as in k-means++."""
    from scipy.cluster.vq import kmeans2

    colours = smooth.reshape(-1, smooth.shape[2])
    best_error, best = np.inf, np.zeros(len(colours), dtype=np.intp)
    for _ in range(_RUNS):
        first = int(rng.integers(len(colours)))
        distances = ((colours - colours[first]) ** 2).sum(axis=1)
        second = int(rng.choice(len(colours), p=distances / distances.sum()))
        # Centres of its own drawing: the name of the seed's argument differs between versions of SciPy.
        centres, labels = kmeans2(colours, colours[[first, second]], iter=_ITERATIONS, minit="matrix")
        error = float(((colours - centres[labels]) ** 2).sum())
        if error < best_error:
            best_error, best = error, labels
    return _darker(best, smooth)


def _mixture(smooth: Image, rng: np.random.Generator) -> Mask:
    colours = smooth.reshape(-1, smooth.shape[2])
    return _darker(fitted_mixture(colours, rng, starts=_RUNS).predict(colours), smooth)


def fitted_mixture(
    colours: NDArray[np.float64], rng: np.random.Generator, *, starts: int, seed: int | None = None
) -> Any:
    """scikit-learn's mixture of two Gaussians, fitted to some of the colours (N, C).

    Args:
        rng: draws the colours, and the seed of the fit where none is given.
        starts: of the fit, of which the best is taken.

    Raises:
        InputError: scikit-learn is missing.
    """
    import warnings

    module = mixture_module()
    drawn = colours[rng.choice(len(colours), min(len(colours), _FITTED_PIXELS), replace=False)]
    if len(drawn) < 2:
        drawn = np.repeat(drawn, 2, axis=0)
    seed = int(rng.integers(2**31)) if seed is None else seed
    mixture = module.GaussianMixture(2, covariance_type="full", reg_covar=_EPSILON, n_init=starts, random_state=seed)
    with warnings.catch_warnings():
        # A fit that has not settled, or to fewer than two colours, is the method's result all the same.
        warnings.simplefilter("ignore", import_module("sklearn.exceptions").ConvergenceWarning)
        mixture.fit(drawn)
    return mixture


def mixture_module() -> Any:
    """scikit-learn's. Raises InputError where it is missing."""
    try:
        import_module("sklearn")
        return import_module("sklearn.mixture")
    except ImportError:
        raise InputError("method: 'gaussian mixture' needs scikit-learn; install msformer-fast[evaluate]") from None


def _slic(smooth: Image, rng: np.random.Generator) -> Mask:
    from skimage.segmentation import slic

    # The compactness is meant for Lab colours, which SLIC makes of three channels only.
    guide = smooth if smooth.shape[2] == 3 else np.repeat(smooth.mean(axis=2, keepdims=True), 3, axis=2)
    segments = slic(guide, n_segments=_SEGMENTS, compactness=_COMPACTNESS, channel_axis=-1)
    index = np.unique(segments, return_inverse=True)[1].ravel()
    areas = np.bincount(index)
    sums = [np.bincount(index, channel.ravel()) for channel in np.moveaxis(smooth, 2, 0)]
    # Every pixel with the mean colour of its superpixel: so a superpixel counts by its area.
    painted = (np.stack(sums, axis=1) / areas[:, None])[index].reshape(smooth.shape)
    if np.ptp(painted, axis=(0, 1)).max() <= _EPSILON:  # a single superpixel
        return np.zeros(smooth.shape[:2], dtype=bool)
    return _two_means(painted, rng)


def _darker(labels: NDArray[Any], smooth: Image) -> Mask:
    """The pixels of the darker of the classes 0 and 1; none where all pixels are in one class."""
    grey, second = smooth.mean(axis=2), labels.reshape(smooth.shape[:2]) == 1
    if second.all() or not second.any():
        return np.zeros(second.shape, dtype=bool)
    return np.asarray(second if grey[second].mean() < grey[~second].mean() else ~second)


def _lesion(dark: Mask) -> Mask:
    """The most central part: a vignette may be larger than the lesion, but lies far from the centre."""
    from scipy import ndimage

    radius = max(1, round(_RADIUS * min(dark.shape) / _SIDE))
    row, column = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    opened = ndimage.binary_opening(dark, row**2 + column**2 <= radius**2)
    parts, _ = ndimage.label(opened if opened.any() else dark)
    weights = np.bincount(parts.ravel(), centre_weight(dark.shape).ravel())
    return np.asarray(ndimage.binary_fill_holes(parts == weights[1:].argmax() + 1))


def _lungs(dark: Mask) -> Mask:
    """The two largest parts, the black frame around the body left out: it touches the image border.

    A lung that is as dark as the frame and joined to it touches the border too, and what is left off the border are
    specks: then the two largest parts of all are kept.
    """
    from scipy import ndimage

    parts, _ = ndimage.label(dark)
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    inner = areas.copy()
    inner[border_values(parts)] = 0
    areas = inner if inner.max() >= _MIN_LUNG_AREA * dark.size else areas
    pair = np.argsort(-areas, kind="stable")[:2]
    kept = pair[areas[pair] >= max(1.0, _MIN_LUNG_RATIO * areas[pair[0]])]
    return np.asarray(ndimage.binary_fill_holes(np.isin(parts, kept)))


_SPLITS: dict[str, Callable[[Image, np.random.Generator], Mask]] = {
    "otsu": _otsu,
    "2-means": _two_means,
    "gaussian mixture": _mixture,
    "slic": _slic,
}
_PRIORS: dict[str, Callable[[Mask], Mask]] = {"lesion": _lesion, "lungs": _lungs}

#: The names that :func:`simple_mask` accepts as a method.
METHODS: tuple[str, ...] = tuple(_SPLITS)


def missing_requirement(method: str) -> str | None:
    """Why a method of :data:`METHODS` cannot run here, as a sentence, or ``None``."""
    try:
        if method == "gaussian mixture":
            mixture_module()
    except InputError as error:
        return str(error)
    return None
