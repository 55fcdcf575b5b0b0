"""The header of a NIfTI file, checked before a voxel is read."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.decode import refuse_small
from msformer_fast.errors import InputError
from msformer_fast.files import reason, show
from msformer_fast.images import MIN_SIDE

# Voxels of a volume, in slices of the largest size.
_SLICES = 10
# Most bytes that one byte of deflate becomes.
_DEFLATE_RATIO = 1032


def damaged(name: str, exc: Exception) -> InputError:
    why = f" ({reason(exc)})" if isinstance(exc, OSError) and exc.strerror else ""
    return InputError(f"{name}: damaged or truncated NIfTI file, or cannot be read{why}; copy or export it again")


def read_header(path: Path, zipped: bool) -> Any:
    """A nibabel header; its extensions are not read."""
    import nibabel

    kinds: tuple[Any, ...] = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    name = show(path)
    try:
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            block = file.read(kinds[1].sizeof_hdr)
    except (OSError, EOFError, ValueError, zlib.error) as exc:
        raise damaged(name, exc) from None
    for kind, magic in zip(kinds, (block[344:348], block[4:8]), strict=True):
        if magic[:3] != b"n+1" and magic[:3] != b"n+2":
            continue
        if len(block) < kind.sizeof_hdr:
            break
        try:
            return kind(block[: kind.sizeof_hdr], check=False)
        except Exception:  # nibabel raises errors of several types, which may quote the header
            break
    raise InputError(
        f"{name}: is no NIfTI-1 or -2 file of one piece; accepted are .nii and .nii.gz that hold header and voxels"
    )


def check(
    header: Any, name: str, max_pixels: int, axis: int
) -> tuple[tuple[int, ...], tuple[int, int, int], np.dtype[Any]]:
    """Its shape as stored, as a volume, and the dtype of its voxels."""
    try:
        shape = tuple(int(side) for side in header.get_data_shape())
        dtype = header.get_data_dtype()
    except Exception:
        raise InputError(f"{name}: damaged NIfTI header; copy or export it again") from None
    if dtype.fields is not None or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(
            f"{name}: its voxels are colours, complex or of more than 64 bits; accepted are integers and floats"
        )
    if len(shape) < 2 or min(shape) < 1 or any(side != 1 for side in shape[3:]):
        raise InputError(
            f"{name}: holds {' x '.join(map(str, shape)) or 'no'} voxels; accepted is one volume of three axes"
        )
    x, y, z = (*shape[:3], 1)[:3]
    height, width = (side for number, side in enumerate((x, y, z)) if number != axis)
    refuse_small(height, width, MIN_SIDE, name)
    if height * width > max_pixels:
        raise InputError(f"{name}: {height} x {width} is more than {max_pixels} pixels; crop it or reduce it")
    if x * y * z > _SLICES * max_pixels:
        raise InputError(f"{name}: {x} x {y} x {z} is more than {_SLICES * max_pixels} voxels; crop it or reduce it")
    return shape, (x, y, z), dtype


def offset(header: Any, name: str) -> int:
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset < 2**40:
        raise InputError(f"{name}: damaged NIfTI header: the voxels begin nowhere in it; copy or export it again")
    return int(offset)


def check_length(path: Path, name: str, promised: int, zipped: bool) -> None:
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise damaged(name, exc) from None
    if promised > (_DEFLATE_RATIO * size if zipped else size):
        raise InputError(f"{name}: truncated NIfTI file: its header promises more voxels than it holds; copy it again")


def scaling(header: Any) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):  # by the standard: no scaling
        return 1.0, 0.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def affine(header: Any) -> NDArray[np.float64]:
    """Voxel to patient; that of the sizes alone where what the header says is none."""
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
        if np.isfinite(affine).all():
            return affine
    except Exception:  # an impossible quaternion
        pass
    return np.eye(4)


def turn(affine: NDArray[np.float64], axis: int) -> tuple[bool, tuple[int, ...]]:
    """How a plane of voxels (the two other axes, in order) is shown: transposed or not, then which axes are flipped."""
    import nibabel.orientations

    io_orientation: Any = nibabel.orientations.io_orientation
    try:
        with np.errstate(all="ignore"):
            orientation = io_orientation(affine)
    except Exception:  # no decomposition of a matrix with huge entries
        orientation = np.full((3, 2), np.nan)
    if not np.isfinite(orientation).all():  # a volume without depth
        orientation = io_orientation(np.eye(4))
    first, second = (orientation[number] for number in range(3) if number != axis)
    # Rows run along the higher of x < y < z; both from + to -, so what runs from - to + is flipped.
    transposed = bool(first[0] < second[0])
    vertical, horizontal = (second, first) if transposed else (first, second)
    return transposed, tuple(number for number, each in enumerate((vertical, horizontal)) if each[1] > 0)
