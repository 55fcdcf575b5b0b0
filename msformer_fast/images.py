"""An image inside the package: float32 (H, W, C) in [0, 1]. What it must be, its sizes, and PNG files of it.

What cannot be used is refused with a one-line InputError.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msformer_fast.errors import InputError
from msformer_fast.files import PathLike, atomic, show

Array = NDArray[Any]

MIN_SIDE = 33  # pixels: one 32-pixel patch plus one


def refuse_small(height: int, width: int, least: int, name: str) -> None:
    """Refuse an image of which a side is under ``least`` pixels.

    Args:
        height, width: of the image, in pixels.
        least: that a side must have.
        name: of the image, for the message.

    Raises:
        InputError: a side is shorter.
    """
    if min(height, width) < least:
        raise InputError(f"{name}: {height} x {width} pixels (height x width); each side must be at least {least}")


def refuse_constant(image: Array, name: str) -> None:
    """Refuse an image in which there is nothing to tell apart.

    Args:
        image: (H, W) or (H, W, C), any dtype.
        name: of the image, for the message.

    Raises:
        InputError: all pixels are equal.
    """
    if (image == image[0, 0]).all():
        raise InputError(f"{name}: all pixels are equal, there is nothing to segment; give an image with contrast")


def to_unit(array: Array, name: str) -> NDArray[np.float32]:
    """Values of an image as numbers in [0, 1].

    Args:
        array: (H, W) or (H, W, C): bool, uint8, uint16, or float in [0, 1].
        name: of the image, for the message.

    Returns:
        A new float32 array of the same shape.

    Raises:
        InputError: another sample type; floats that are not finite or not in [0, 1].
    """
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())  # NaN if there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"{name}: has NaN or infinite values; replace them by numbers in [0, 1]")
        if low < -1e-6 or high > 1 + 1e-6:
            raise InputError(f"{name}: float values must be in [0, 1], found {low:.6g} to {high:.6g}; rescale them")
        return np.clip(array, 0, 1).astype(np.float32, order="C")
    dtype = array.dtype.newbyteorder("=")
    if dtype not in (np.bool_, np.uint8, np.uint16):
        raise InputError(
            f"{name}: sample type {array.dtype} is not supported; accepted are bool, uint8, uint16 and float in [0, 1]"
        )
    result = array.astype(np.float32, order="C")
    if dtype != np.bool_:
        result /= np.iinfo(dtype).max
    return result


def fit_size(height: int, width: int, size: int | None) -> tuple[int, int]:
    """The (height, width) in pixels at which the network sees an image: the longest side becomes ``size``.

    The aspect is kept, the short side rounded half up.

    Args:
        height, width: of the image, in pixels.
        size: in pixels; ``None`` keeps the size.

    Raises:
        InputError: ``size`` is not an integer of at least 33, or the short side would fall under 33.
    """
    if height < 1 or width < 1:
        raise InputError(f"image: {height} x {width} pixels; both sides must be at least 1")
    long, short = max(height, width), min(height, width)
    # Rounded half up, the short side reaches MIN_SIDE from MIN_SIDE - 1/2 on.
    smallest = math.ceil((2 * MIN_SIDE - 1) * long / (2 * short))
    remedy = f"the smallest size that works for this image is {smallest}"
    try:
        target = long if size is None else operator.index(size)
    except TypeError:
        raise InputError(f"size: {size!r} is not an integer; {remedy}") from None
    if target < MIN_SIDE:
        raise InputError(f"size: {target} is under the minimum of {MIN_SIDE} pixels; {remedy}")
    fitted = (2 * short * target + long) // (2 * long)
    if fitted < MIN_SIDE:
        raise InputError(
            f"size: at {target} the short side of {height} x {width} would be {fitted} pixels, under the "
            f"minimum of {MIN_SIDE}; {remedy}"
        )
    return (target, fitted) if height >= width else (fitted, target)


def resize_image(image: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Resize float32 (H, W, C) in [0, 1] to (h, w, C), bilinear, averaging over the area where it shrinks.

    Args:
        image: (H, W, C) float32; the same size returns it itself.
        shape: (h, w).

    Raises:
        InputError: a side of ``shape`` is under 1.
    """
    height, width = _positive(shape)
    if image.shape[:2] == (height, width):
        return image
    result = np.empty((height, width, image.shape[2]), np.float32)
    for channel in range(image.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(image[:, :, channel], dtype=np.float32))
        result[:, :, channel] = np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR))
    return np.clip(result, 0.0, 1.0, out=result)


def resize_nearest(labels: Array, shape: tuple[int, int]) -> Array:
    """Resize a label map or mask (H, W) of any dtype to a new (h, w) array, nearest neighbour, pixel centres aligned.

    Args:
        labels: (H, W), any dtype, which the result has too.
        shape: (h, w).

    Raises:
        InputError: a side of ``shape`` is under 1.
    """
    height, width = _positive(shape)
    rows = (2 * np.arange(height) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[1] // (2 * width)
    return np.asarray(labels[rows[:, None], columns])


def write_png(path: PathLike, array: Array, *, palette: NDArray[np.uint8] | None = None) -> None:
    """Write a PNG file, under a temporary name first.

    Args:
        path: of the file.
        array: bool (H, W): 8-bit grey, 0 and 255. uint8 (H, W, 3): RGB. Integers (H, W) in 0..65535: indexed with
            ``palette`` where all are under 256, else grey of 8 bits, or of 16 bits (palette unused) from 256 on.
        palette: (N, 3) uint8, the colour of each value.

    Raises:
        InputError: anything else, and if the file cannot be written.
    """
    name, array = show(path), np.asarray(array)
    if array.dtype == np.bool_ and array.ndim == 2:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.ndim == 2 and array.size and array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise InputError(f"{name}: labels from {low} to {high} do not fit a PNG; accepted are 0 to 65535")
        if (
            palette is not None
            and high < 256
            and (palette.shape[1:] != (3,) or palette.dtype != np.uint8 or len(palette) <= high)
        ):
            raise InputError(
                f"{name}: label {high} needs a uint8 palette ({high + 1} or more, 3), got "
                f"{palette.dtype} {palette.shape}"
            )
        array = array.astype(np.uint8 if high < 256 else np.uint16)
    elif array.dtype != np.uint8 or array.shape[2:] != (3,):
        raise InputError(
            f"{name}: cannot write {array.dtype} {array.shape} as PNG; accepted are bool or integer "
            "(H, W) and uint8 (H, W, 3)"
        )
    picture = Image.fromarray(array)
    if palette is not None and picture.mode == "L":
        picture.putpalette(palette[:256].tobytes())
    with atomic(path) as file:
        picture.save(file, format="PNG")


def _positive(shape: tuple[int, int]) -> tuple[int, int]:
    if min(shape) < 1:
        raise InputError(f"shape: {shape[0]} x {shape[1]}; both sides must be at least 1")
    return shape
