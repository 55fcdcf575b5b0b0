"""PNG, JPEG, TIFF and BMP: images and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.files import PathLike, show
from msformer_fast.formats.decode import decode, upright_size
from msformer_fast.formats.image_file import ImageFile
from msformer_fast.images import MIN_SIDE, refuse_constant, to_unit


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
    image = to_unit(array, show(path))
    refuse_constant(image, show(path))
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
    values = to_unit(array, show(path))
    values = values.max(axis=2) if values.ndim == 3 else values
    foreground = values > (0.5 if values.max() > 0.5 and not palette else 0.0)
    if not foreground.any():
        raise InputError(f"{show(path)}: the mask has no foreground pixel; metrics need at least one")
    return np.asarray(foreground)


class PlainImage(ImageFile):
    """One picture; see :func:`read_image`, whose errors :attr:`shape` raises too."""

    def __init__(self, path: Path, *, max_pixels: int = 200_000_000) -> None:
        self.path = path
        self.kind = "plain"
        self.frames = 1
        self.is_volume = False
        self._max_pixels = max_pixels
        self._shape: tuple[int, int] | None = None
        self._decoded: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W), from the header where that tells it; else the picture is decoded for it."""
        if self._shape is None:
            self._shape = upright_size(self.path)
        if self._shape is None:
            self._decoded = self.read(0)
        assert self._shape is not None
        return self._shape

    def read(self, index: int) -> NDArray[np.float32]:
        """See :meth:`ImageFile.read`: (H, W, 3); decoded once where :attr:`shape` had to decode it."""
        self._check_index(index)
        image, self._decoded = self._decoded, None
        if image is None:
            image = read_image(self.path, max_pixels=self._max_pixels)
        self._shape = image.shape[0], image.shape[1]
        return image
