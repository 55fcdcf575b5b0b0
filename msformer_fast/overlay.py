"""Pictures for people: the mask drawn on the image, label maps in colour, both side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.colour_vision import distinct_colours
from msformer_fast.errors import InputError

_LINE = (255, 221, 0)
_EDGE = (20, 20, 20)


def overlay(
    image: NDArray[np.float32], mask: NDArray[np.bool_], *, labels: NDArray[Any] | None = None
) -> NDArray[np.uint8]:
    """Draw the outline of a mask on an image, with a light tint inside.

    image: float (H, W, C) in [0, 1]; one channel is grey, three are RGB, of any other number the mean is shown.
    mask: bool (H, W). labels: integer (H, W), optional; the borders between labels appear as faint lines.
    Returns uint8 (H, W, 3): a yellow line between two dark edges, visible on light and dark, its thickness in
    proportion to the image. Where the mask leaves the image there is no line.
    Raises InputError if the shapes do not agree.
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    _check_shapes(image, mask=mask, labels=labels)
    mask = np.asarray(mask, dtype=bool)
    picture = to_rgb(image)
    if labels is not None:
        borders = np.zeros(mask.shape, dtype=bool)
        borders[1:] |= labels[1:] != labels[:-1]
        borders[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        _blend(picture, borders, (255, 255, 255), 0.35)
    _blend(picture, mask, _LINE, 0.18)
    line = max(2, round(max(mask.shape) / 250))
    edge = max(1, line // 2)
    # Erosion must take the outside of the image for mask, else a mask cut off by the frame gets a line there.
    inside = binary_erosion(mask, iterations=line, border_value=1)
    core = binary_erosion(inside, iterations=edge, border_value=1)
    picture[binary_dilation(mask, iterations=edge) & ~core] = _EDGE
    picture[mask & ~inside] = _LINE
    return np.rint(picture).astype(np.uint8)


def label_palette(n: int) -> NDArray[np.uint8]:
    """The colours of labels 0 to n - 1: uint8 (n, 3), RGB. A label's colour does not depend on `n`.

    They are as far from each other as 256 can be, to colour-blind people too; from label 256 on they come again.
    Raises InputError if `n` is under 1.
    """
    if n < 1:
        raise InputError(f"n: {n} colours; at least 1 is needed")
    known = distinct_colours()
    return known[np.arange(n) % len(known)]


def panel(image: NDArray[np.float32], labels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """One picture, from left to right: the image, the labels in colour, the overlay; thin white gaps between.

    image: float (H, W, C) in [0, 1]. labels: integer (H, W), not negative. mask: bool (H, W).
    Returns uint8 (H, 3 W + 2 gap, 3), gap = max(2, W // 100) pixels.
    Raises InputError if the shapes do not agree or a label is negative.
    """
    _check_shapes(image, mask=mask, labels=labels)
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError(f"labels: {labels.dtype} from {labels.min()}; accepted are integers from 0 on")
    gap = np.full((image.shape[0], max(2, image.shape[1] // 100), 3), 255, np.uint8)
    plain = np.rint(to_rgb(image)).astype(np.uint8)
    coloured = label_palette(int(labels.max()) + 1)[labels]
    return np.concatenate([plain, gap, coloured, gap, overlay(image, mask)], axis=1)


def _check_shapes(image: NDArray[Any], **maps: NDArray[Any] | None) -> None:
    if image.ndim != 3 or 0 in image.shape:
        raise InputError(f"image: has shape {image.shape}; accepted is (H, W, C)")
    for name, array in maps.items():
        if array is not None and array.shape != image.shape[:2]:
            raise InputError(f"{name}: has shape {array.shape}; it must be that of the image, {image.shape[:2]}")


def to_rgb(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """A float image (H, W, C) in [0, 1] as a new float32 (H, W, 3) array in 0 to 255; channels as in `overlay`."""
    grey_or_rgb = image if image.shape[2] == 3 else image.mean(axis=2, keepdims=True)
    shown = np.broadcast_to(grey_or_rgb, (*image.shape[:2], 3))
    return np.asarray(np.clip(shown, 0.0, 1.0) * 255.0, dtype=np.float32)


def _blend(picture: NDArray[np.float32], where: NDArray[np.bool_], colour: tuple[int, ...], part: float) -> None:
    picture[where] = (1.0 - part) * picture[where] + part * np.array(colour, np.float32)
