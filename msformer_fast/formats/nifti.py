"""NIfTI volumes: sliced along an axis, each slice turned as a radiologist sees it, and masks turned back."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.files import atomic, show
from msformer_fast.formats.grey import LUNG_NOTE, LUNG_WINDOW, between, extent, looks_like_hounsfield
from msformer_fast.formats.image_file import ImageFile
from msformer_fast.formats.nifti_header import (
    check,
    check_length,
    damaged,
    is_zipped,
    offset,
    read_header,
    scaling,
    turn,
)

Array = NDArray[Any]

# Voxels from which the grey levels are taken, and the part of them that is left out at either end, in per cent.
_SAMPLE = 10_000_000
_TAIL = 0.5
_CHUNK = 2**22
# Where the voxels are; all that a mask takes over. Descriptions and names are not.
_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units"),
)


class NiftiFile(ImageFile):
    """A NIfTI-1 or -2 file, compressed or not by its content, of one volume: 3-D, 4-D with a last axis of 1, or 2-D.

    Slice ``i`` holds the voxels of index ``i`` along ``axis``. Its rows run from superior to inferior, or from
    anterior to posterior in axial slices; its columns from the patient's right to left, or from anterior to posterior
    in sagittal slices, by the nearest axes of the affine. One scale of grey for the whole volume: from the 0.5th to
    the 99.5th percentile of its finite values, or the window. NaN is black.

    Args:
        path: of the file.
        axis: voxel axis along which it is sliced, 0, 1 or 2.
        window: (centre, width) in scaled units.
        lungs: without a window, show values that are spread as Hounsfield units through
            :data:`msformer_fast.formats.grey.LUNG_WINDOW`, and say so in the notes.
        max_pixels: that a slice may have; a volume may have ten times as many voxels.

    Raises:
        InputError: not such a file, or more than it holds is promised; nothing is quoted of the header but sizes.

    Source:
        The NIfTI-1 standard (Cox and others, 2004), nifti1.h.
    """

    def __init__(
        self,
        path: Path,
        *,
        axis: int = 2,
        window: tuple[float, float] | None = None,
        lungs: bool = False,
        max_pixels: int = 200_000_000,
    ) -> None:
        name = show(path)
        try:
            import nibabel  # noqa: F401
        except ImportError:
            raise InputError(f"{name}: reading NIfTI needs nibabel; install msformer-fast[nifti]") from None
        self.path = path
        self.kind = "nifti"
        self.is_volume = True
        self._window = window
        self._axis = axis
        self._zipped = is_zipped(path)
        self._header = read_header(path, self._zipped)
        self._stored_shape, self._volume_shape, self._dtype = check(self._header, name, max_pixels, axis)
        self._offset = offset(self._header, name)
        self._slope, self._intercept = scaling(self._header)
        self._transposed, self._flips = turn(self._header, name, axis)
        self._bytes = math.prod(self._volume_shape) * self._dtype.itemsize
        check_length(path, name, self._offset + self._bytes, self._zipped)
        self._flat: Array | None = None
        self._levels: tuple[float, float] | None = None
        self._lungs = lungs
        self._hounsfield: bool | None = None
        self.frames = self._volume_shape[axis]
        plane = [side for number, side in enumerate(self._volume_shape) if number != axis]
        self._shape = (plane[1], plane[0]) if self._transposed else (plane[0], plane[1])

    @property
    def modality(self) -> str | None:
        """``"ct"`` where the values are spread as Hounsfield units of a body are; all voxels are read for it."""
        if self._hounsfield is None:
            self._hounsfield = looks_like_hounsfield(self._sample(self._voxels()))
        return "ct" if self._hounsfield else None

    @property
    def notes(self) -> tuple[str, ...]:
        """See :attr:`ImageFile.notes`."""
        return (LUNG_NOTE,) if self._through_lung_window else ()

    @property
    def _through_lung_window(self) -> bool:
        return self._lungs and self._window is None and self.modality == "ct"

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of every slice as it is shown."""
        return self._shape

    def read(self, index: int) -> NDArray[np.float32]:
        """See :meth:`ImageFile.read`: (H, W, 1). The voxels of a compressed file stay in memory once read."""
        self._check_index(index)
        voxels = self._voxels()
        if self._levels is None:
            self._levels = self._find_levels(voxels)
        plane = np.moveaxis(voxels.reshape(self._volume_shape, order="F"), self._axis, 0)[index]  # take() copies all
        return between(self._scaled(self._shown(plane)), *self._levels)[:, :, None]

    def save(self, volume: Array, path: Path) -> None:
        """Write slices as :meth:`read` gives them on the voxels they came from, atomically.

        The shape, the affine and the units are those of this file; its descriptions, names and extensions are left
        out, since they may hold a patient's. The same volume gives the same bytes.

        Args:
            volume: (frames, H, W) bool or unsigned integer up to 65535: written as uint8, or uint16 from 256 on.
            path: ``.nii.gz`` to compress, else ``.nii``.

        Raises:
            InputError: another shape or dtype, or greater values.
            OutputError: the file cannot be written.
        """
        if volume.shape != (self.frames, *self.shape) or volume.dtype.kind not in "bu":
            raise InputError(
                f"volume: got {volume.dtype} {volume.shape}; accepted is bool or unsigned integer "
                f"{(self.frames, *self.shape)}"
            )
        highest = int(volume.max(initial=0))
        if highest > 65535:
            raise InputError(f"volume: values up to {highest} do not fit; accepted are 0 to 65535")
        dtype = np.dtype(np.uint8 if highest < 256 else np.uint16).newbyteorder("<")
        planes = np.flip(volume, tuple(1 + number for number in self._flips))
        planes = planes.swapaxes(1, 2) if self._transposed else planes
        voxels = np.moveaxis(planes, 0, self._axis)
        header = type(self._header)(endianness="<")
        header.set_data_dtype(dtype)
        header.set_data_shape(self._stored_shape)
        for field in _GEOMETRY:
            header[field] = self._header[field]
        header["vox_offset"] = header.single_vox_offset
        header["scl_slope"], header["scl_inter"] = 1, 0
        head = header.binaryblock + bytes(4)  # no extension follows
        with atomic(path) as file:
            if path.name.lower().endswith(".gz"):
                # Without its time and name, so that the bytes depend on the volume alone.
                with gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped:
                    _write(zipped, head, voxels, dtype)
            else:
                _write(file, head, voxels, dtype)

    def _shown(self, plane: Array) -> Array:
        return np.flip(plane.T if self._transposed else plane, self._flips)

    def _scaled(self, values: Array) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):  # a file may hold any float
            return values.astype(np.float64) * self._slope + self._intercept

    def _find_levels(self, voxels: Array) -> tuple[float, float]:
        if self._window is not None:
            return self._windowed(voxels, *self._window)
        sample = self._sample(voxels)
        if self._through_lung_window:
            return self._windowed(voxels, *LUNG_WINDOW)
        if not sample.size:
            return 0.0, 0.0
        with np.errstate(all="ignore"):
            low, high = (float(each) for each in np.percentile(sample, [_TAIL, 100 - _TAIL]))
        return (low, high) if high > low else extent(sample)

    def _sample(self, voxels: Array) -> NDArray[np.float64]:
        """Finite values of voxels spread over the volume."""
        step = max(1, -(-voxels.size // _SAMPLE))
        # Every so many voxels; of a step that shares a factor with a side, whole rows would be left out.
        while step > 1 and any(math.gcd(step, side) > 1 for side in self._volume_shape):
            step += 1
        sample = self._scaled(voxels[::step])
        return np.asarray(sample[np.isfinite(sample)])

    def _windowed(self, voxels: Array, centre: float, width: float) -> tuple[float, float]:
        low, high = centre - width / 2, centre + width / 2
        chunks = (self._scaled(voxels[at : at + _CHUNK]) for at in range(0, voxels.size, _CHUNK))
        ends = [extent(chunk) for chunk in chunks if np.isfinite(chunk).any()]
        least, most = (min(each[0] for each in ends), max(each[1] for each in ends)) if ends else (0.0, 0.0)
        if least < most and (most <= low or least >= high):
            raise InputError(
                f"{show(self.path)}: all pixels are equal, since the window lies beyond all of the volume's values; "
                "give another with --window"
            )
        return low, high

    def _voxels(self) -> Array:
        """All stored values, in the file's order."""
        if self._flat is not None:
            return self._flat
        name = show(self.path)
        try:
            if self._zipped:
                self._flat = np.frombuffer(self._inflate(), self._dtype)
            else:
                size = self._bytes // self._dtype.itemsize
                self._flat = np.memmap(self.path, self._dtype, "r", self._offset, (size,))
        except MemoryError:
            raise InputError(f"{name}: does not fit into memory; crop it or reduce it") from None
        except (OSError, EOFError, ValueError, zlib.error) as exc:
            raise damaged(name, exc) from None
        return self._flat

    def _inflate(self) -> bytearray:
        """Grows with what is there, not with what the header promises."""
        data = bytearray()
        with gzip.open(self.path, "rb") as file:
            file.seek(self._offset)
            while len(data) < self._bytes:
                chunk = file.read(min(_CHUNK, self._bytes - len(data)))
                if not chunk:
                    raise EOFError
                data += chunk
            file.read(1)  # its checksum is compared where the file ends
        return data


def _write(file: Any, head: bytes, voxels: Array, dtype: np.dtype[Any]) -> None:
    file.write(head)
    for index in range(voxels.shape[-1]):  # slice by slice: no second volume in memory
        file.write(np.asarray(voxels[..., index], dtype).tobytes(order="F"))
