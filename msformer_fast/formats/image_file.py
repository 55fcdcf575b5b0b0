"""What every format gives: a file of one image, or of a volume's slices, each read when it is asked for."""

from __future__ import annotations

import abc
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.files import show
from msformer_fast.images import refuse_constant


class ImageFile(abc.ABC):
    """A file of one or more frames.

    Attributes:
        path: of the file.
        kind: ``"plain"``, ``"dicom"`` or ``"nifti"``.
        frames: how many there are, at least 1.
        is_volume: a NIfTI file, or a DICOM file of several frames.
    """

    path: Path
    kind: str
    frames: int
    is_volume: bool

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """(H, W) of every frame as :meth:`read` gives it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what could not be read of the header and was left out, or what was taken unasked, so far;
        without a value of the header."""
        return ()

    @property
    def modality(self) -> str | None:
        """What made the image: ``"ct"``, ``"xray"``, or ``None`` where the file does not say, or another thing."""
        return None

    @abc.abstractmethod
    def read(self, index: int) -> NDArray[np.float32]:
        """Frame ``index``, from 0 on: float32 (H, W, C) in [0, 1], C is 1 or 3.

        Of a volume, a frame without contrast comes as it is, all zeros.

        Raises:
            InputError: no such frame, it cannot be decoded, or it is the only one and all of its pixels are equal.
        """

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.frames:
            raise InputError(f"{show(self.path)}: has no frame {index}; accepted are 0 to {self.frames - 1}")

    def _checked(self, frame: NDArray[np.float32]) -> NDArray[np.float32]:
        """The frame, unless it is the only one and has no contrast."""
        if not self.is_volume:
            refuse_constant(frame, show(self.path))
        return frame
