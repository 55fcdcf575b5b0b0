"""PNG, JPEG, TIFF and BMP as one frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msformer_fast.decode import upright_size
from msformer_fast.formats.image_file import ImageFile
from msformer_fast.images import read_image


class PlainImage(ImageFile):
    """One picture; see :func:`msformer_fast.images.read_image`, whose errors :attr:`shape` raises too."""

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
