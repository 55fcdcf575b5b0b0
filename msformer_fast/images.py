"""Files in and out: images and masks are read, checked and resized here, results are written here.

Inside the package an image is float32 (H, W, C) in [0, 1]. What cannot be used is refused with a one-line InputError.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msformer_fast.decode import decode, refuse_small
from msformer_fast.errors import InputError
from msformer_fast.files import PathLike, atomic, show

Array = NDArray[Any]

MIN_SIDE = 33  # pixels: one 32-pixel patch plus one
MAX_CHANNELS = 64


def read_image(path: PathLike, *, max_pixels: int = 200_000_000) -> NDArray[np.float32]:
    """Read one image file as float32 (H, W, 3), RGB, in [0, 1].

    PNG, JPEG, TIFF and BMP, recognised by content: 1 to 8 bit and palette (divided by 255), 16 bit grey or RGB
    (divided by 65535, at full precision), float TIFF in [0, 1], CMYK JPEG. Grey gives three equal channels; alpha and
    transparency are dropped, not composited (as OpenCV does); the EXIF orientation is applied. Of a multi-picture
    JPEG (MPO) the primary picture is read. A 16-bit RGB TIFF must be uncompressed or deflated unless imagecodecs is
    installed.

    Raises InputError: no readable regular file; not of these formats; damaged; more than one page or frame; more than
    `max_pixels` (or about 179 million, Pillow's own limit), which is checked before decoding; a side under 33 pixels;
    another sample type; all pixels equal.
    """
    array, _ = decode(path, max_pixels, MIN_SIDE)
    image = _to_unit(array, show(path))
    _refuse_constant(image, show(path))
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def read_mask(path: PathLike, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Read one mask file as bool (H, W), True for the foreground. The same files as `read_image`, of any size.

    Where some value is above half of the full scale (0/255 masks, soft edges, JPEG), the foreground is what is above
    half; otherwise (0/1 masks, class numbers) all that is not zero. Colour counts by its largest channel; with a
    palette all that is not black is foreground. Alpha is ignored.

    Raises InputError as `read_image` does, and for a mask without foreground, or not of `shape` (H, W) if given.
    """
    array, palette = decode(path, 200_000_000, 1)
    if shape is not None and array.shape[:2] != tuple(shape):
        height, width = array.shape[:2]
        raise InputError(
            f"{show(path)}: the mask is {height} x {width} (height x width) but the image is "
            f"{shape[0]} x {shape[1]}; give the mask at the image's size"
        )
    values = _to_unit(array, show(path))
    values = values.max(axis=2) if values.ndim == 3 else values
    foreground = values > (0.5 if values.max() > 0.5 and not palette else 0.0)
    if not foreground.any():
        raise InputError(f"{show(path)}: the mask has no foreground pixel; metrics need at least one")
    return np.asarray(foreground)


def as_image(image: object, *, name: str = "image") -> NDArray[np.float32]:
    """Turn an array, a tensor or a file into a new float32 (H, W, C) array in [0, 1]; the input stays untouched.

    image: a path (see `read_image`), a NumPy array (H, W) or (H, W, C), or a torch tensor (H, W), (C, H, W) or
    (1, C, H, W) on any device, with 1 to 64 channels. uint8 and uint16 are divided by 255 and 65535, bool becomes 0
    and 1, floats must be in [0, 1] (excess up to 1e-6, which is rounding, is clipped). One channel stays one channel.

    Raises InputError, which names `name`: another type, dtype or shape (also one that looks channel-first in NumPy or
    channel-last in torch), NaN or infinite values, values outside [0, 1], a side under 33, all pixels equal.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    tensor = getattr(sys.modules.get("torch"), "Tensor", ())  # a tensor exists only if its caller imported torch
    if isinstance(image, tensor):
        accepted, array = "(H, W), (C, H, W) or (1, C, H, W)", _tensor_to_numpy(image, name)
    elif isinstance(image, np.ndarray):
        accepted, array = "(H, W) or (H, W, C)", image
    else:
        raise InputError(
            f"{name}: is of type {type(image).__name__}; accepted are a file path, a NumPy array "
            "(H, W) or (H, W, C), and a torch tensor (H, W), (C, H, W) or (1, C, H, W)"
        )
    shape, first = array.shape, array is not image
    if first and array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise InputError(f"{name}: has shape {shape}; accepted is one image of shape {accepted}")
    if array.ndim == 2:
        array = array[:, :, None]
    elif first:
        if array.shape[2] < MIN_SIDE <= min(array.shape[:2]):
            raise InputError(f"{name}: shape {shape} looks channel-last; a tensor is (C, H, W): use permute(2, 0, 1)")
        array = array.transpose(1, 2, 0)
    elif shape[0] < MIN_SIDE <= min(shape[1:]):
        raise InputError(
            f"{name}: shape {shape} looks channel-first; an array is (H, W, C): use transpose(1, 2, 0) "
            "or give a torch tensor"
        )
    if not 1 <= array.shape[2] <= MAX_CHANNELS:
        raise InputError(f"{name}: shape {shape} has {array.shape[2]} channels; accepted are 1 to {MAX_CHANNELS}")
    refuse_small(array.shape[0], array.shape[1], MIN_SIDE, name)
    result = _to_unit(array, name)
    _refuse_constant(result, name)
    return result


def fit_size(height: int, width: int, size: int | None) -> tuple[int, int]:
    """The (height, width) in pixels at which the network sees an image: the longest side becomes `size`.

    The aspect is kept, the short side rounded half up. `size=None` keeps the size.
    Raises InputError if `size` is not an integer of at least 33, or the short side would fall under 33.
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

    The same size returns the input itself. Raises InputError if a side of `shape` is under 1.
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

    Raises InputError if a side of `shape` is under 1.
    """
    height, width = _positive(shape)
    rows = (2 * np.arange(height) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[1] // (2 * width)
    return np.asarray(labels[rows[:, None], columns])


def write_png(path: PathLike, array: Array, *, palette: NDArray[np.uint8] | None = None) -> None:
    """Write a PNG file, atomically (see `write_text`).

    bool (H, W): 8-bit grey, 0 and 255. uint8 (H, W, 3): RGB. Integers (H, W) in 0..65535: indexed with `palette`
    (uint8, (N, 3)) where all are under 256, else grey of 8 bits, or 16 bits (palette unused) from a value of 256 on.
    Raises InputError for anything else, and if the file cannot be written.
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


def _refuse_constant(image: Array, name: str) -> None:
    if (image == image[0, 0]).all():
        raise InputError(f"{name}: all pixels are equal, there is nothing to segment; give an image with contrast")


def _to_unit(array: Array, name: str) -> NDArray[np.float32]:
    """A new float32 array in [0, 1] from bool, uint8, uint16 or float values."""
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


def _tensor_to_numpy(tensor: Any, name: str) -> Array:
    try:  # NumPy has no bfloat16
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True))
    except (RuntimeError, TypeError) as exc:  # sparse, quantised and meta tensors
        raise InputError(
            f"{name}: this tensor ({tensor.dtype}, {tensor.layout}) has no plain values; give a dense "
            "uint8, uint16, bool or float tensor"
        ) from exc
