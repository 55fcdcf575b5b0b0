"""What a caller gives as an image: an array, a tensor or a file."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.formats.plain import read_image
from msformer_fast.images import MIN_SIDE, refuse_constant, refuse_small, to_unit

MAX_CHANNELS = 64


def as_image(image: object, *, name: str = "image") -> NDArray[np.float32]:
    """Turn an array, a tensor or a file into a new float32 (H, W, C) array in [0, 1]; the input stays untouched.

    image: a path (see :func:`msformer_fast.formats.plain.read_image`), a NumPy array (H, W) or (H, W, C), or a torch
    tensor (H, W), (C, H, W) or (1, C, H, W) on any device, with 1 to 64 channels. uint8 and uint16 are divided by 255
    and 65535, bool becomes 0 and 1, floats must be in [0, 1] (excess up to 1e-6, which is rounding, is clipped). One
    channel stays one channel.

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
    result = to_unit(array, name)
    refuse_constant(result, name)
    return result


def _tensor_to_numpy(tensor: Any, name: str) -> NDArray[Any]:
    try:  # NumPy has no bfloat16
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True))
    except (RuntimeError, TypeError) as exc:  # sparse, quantised and meta tensors
        raise InputError(
            f"{name}: this tensor ({tensor.dtype}, {tensor.layout}) has no plain values; give a dense "
            "uint8, uint16, bool or float tensor"
        ) from exc
