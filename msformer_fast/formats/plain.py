"""PNG, JPEG, TIFF and BMP as one frame."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msformer_fast.bounded_file import BoundedFile
from msformer_fast.formats.image_file import ImageFile
from msformer_fast.images import read_image

_ORIENTATION = 0x0112  # EXIF


class PlainImage(ImageFile):
    """One picture; see :func:`msformer_fast.images.read_image`, whose errors :attr:`shape` raises too."""

    def __init__(self, path: Path, *, max_pixels: int = 200_000_000) -> None:
        self.path = path
        self.kind = "plain"
        self.frames = 1
        self.is_volume = False
        self._max_pixels = max_pixels
        self._shape: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W), from the header where Pillow knows it; else the picture is decoded for it."""
        if self._shape is None:
            self._shape = _upright_size(self.path)
        if self._shape is None:
            self.read(0)
        assert self._shape is not None
        return self._shape

    def read(self, index: int) -> NDArray[np.float32]:
        """See :meth:`ImageFile.read`: (H, W, 3)."""
        self._check_index(index)
        image = read_image(self.path, max_pixels=self._max_pixels)
        self._shape = image.shape[0], image.shape[1]
        return image


def _upright_size(path: Path) -> tuple[int, int] | None:
    """(H, W) as it will be read, without decoding; ``None`` where the header does not tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which read_image refuses
            with BoundedFile(path) as file, Image.open(file) as picture:
                turned = picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
                width, height = picture.size
    except Exception:  # on damaged files Pillow raises errors of a dozen types; reading tells what is wrong
        return None
    return (width, height) if turned else (height, width)
