"""Simple segmentations of what a click or a box means, without learning: what the prompt rule has to beat."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.foreground.evidence import Image, Mask
from msformer_fast.prompts.prompt import Box, Point
from msformer_fast.simple_methods import fitted_mixture, missing_requirement, smoothed

#: Methods that take a point, and those that take a box.
POINT_METHODS = ("flood fill", "gaussian mixture")
BOX_METHODS = ("gaussian mixture", "grabcut")

#: Of the flood fill: chosen on every other image, by name, of those that the documentation reports on, in its favour.
TOLERANCE = 0.3
_STARTS, _ITERATIONS = 2, 5


def simple_point(image: NDArray[Any], point: Point, method: str, *, tolerance: float = TOLERANCE) -> Mask:
    """What one click means to a simple method; holes are filled.

    Args:
        image: (H, W, C) floats in [0, 1].
        point: (x, y), a pixel.
        method: of :data:`POINT_METHODS`: "flood fill" (all that is joined to the pixel and differs from it by no more
            than ``tolerance`` in any channel, smoothed), or "gaussian mixture" (two components; the connected part
            of the pixel's own).
        tolerance: of the flood fill.

    Returns:
        (H, W) bool; it holds the pixel.

    Raises:
        InputError: another method, or scikit-learn is missing.
    """
    from scipy import ndimage

    if method not in POINT_METHODS:
        raise InputError(f"method: got {method!r}; accepted is one of {', '.join(POINT_METHODS)}")
    smooth = smoothed(image.astype(np.float64))
    row, column = int(point[1]), int(point[0])
    if method == "flood fill":
        like = np.abs(smooth - smooth[row, column]).max(axis=2) <= tolerance
    else:
        classes = _classes(smooth)
        like = classes == classes[row, column]
    parts, _ = ndimage.label(like)
    return np.asarray(ndimage.binary_fill_holes(parts == parts[row, column]))


def simple_box(image: NDArray[Any], box: Box, method: str) -> Mask:
    """What a box means to a simple method.

    Args:
        image: (H, W, C) floats in [0, 1].
        box: (x0, y0, x1, y1).
        method: of :data:`BOX_METHODS`: "gaussian mixture" (two components in the box, of which that is the object that
            is rarer along the box's sides; holes filled), or "grabcut" (Rother et al., SIGGRAPH 2004; needs OpenCV).

    Returns:
        (H, W) bool, empty outside of the box.

    Raises:
        InputError: another method, or what it needs is missing.
    """
    from scipy import ndimage

    if method not in BOX_METHODS:
        raise InputError(f"method: got {method!r}; accepted is one of {', '.join(BOX_METHODS)}")
    height, width = image.shape[:2]
    x0, y0 = (int(np.clip(each, 0, side - 1)) for each, side in ((box[0], width), (box[1], height)))
    x1, y1 = max(x0 + 1, min(width, round(box[2]))), max(y0 + 1, min(height, round(box[3])))
    mask = np.zeros((height, width), dtype=bool)
    if method == "grabcut":
        return _grabcut(image, (x0, y0, x1 - x0, y1 - y0))
    mask[y0:y1, x0:x1] = True
    smooth = smoothed(image.astype(np.float64))
    classes = _classes(smooth[y0:y1, x0:x1])
    sides = np.concatenate([classes[0], classes[-1], classes[:, 0], classes[:, -1]])
    mask[y0:y1, x0:x1] = ndimage.binary_fill_holes(classes == (0 if (sides == 1).mean() > 0.5 else 1))
    return mask


def missing_for_prompts(method: str) -> str | None:
    """Why a method cannot run here, as a sentence, or ``None``."""
    if method != "grabcut":
        return missing_requirement(method)
    try:
        import_module("cv2")
    except ImportError:
        return "method: 'grabcut' needs OpenCV; install opencv-python-headless"
    return None


def _classes(smooth: Image) -> NDArray[Any]:
    """The component (h, w), 0 or 1, that each pixel of (h, w, C) belongs to most likely."""
    colours = smooth.reshape(-1, smooth.shape[2])
    mixture = fitted_mixture(colours, np.random.default_rng(0), starts=_STARTS, seed=0)
    return np.asarray(mixture.predict(colours).reshape(smooth.shape[:2]))


def _grabcut(image: NDArray[Any], box: tuple[int, int, int, int]) -> Mask:
    why = missing_for_prompts("grabcut")
    if why is not None:
        raise InputError(why)
    cv2 = import_module("cv2")
    from msformer_fast.overlay import to_rgb

    picture = np.ascontiguousarray(np.rint(to_rgb(image.astype(np.float32))).astype(np.uint8))
    classes = np.zeros(image.shape[:2], dtype=np.uint8)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(picture, classes, box, *models, _ITERATIONS, cv2.GC_INIT_WITH_RECT)
    return np.asarray((classes == cv2.GC_FGD) | (classes == cv2.GC_PR_FGD))
