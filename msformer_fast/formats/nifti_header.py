"""The header of a NIfTI file, checked before a voxel is read."""

from __future__ import annotations

import gzip
import logging
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.files import reason, show
from msformer_fast.images import MIN_SIDE, refuse_small

# Voxels of a volume, in slices of the largest size.
_SLICES = 10
# Most bytes that one byte of deflate becomes.
_DEFLATE_RATIO = 1032
_QUATERNION = ("quatern_b", "quatern_c", "quatern_d")
_LONGEST_QUATERNION = 1.01


def damaged(name: str, exc: Exception) -> InputError:
    why = f" ({reason(exc)})" if isinstance(exc, OSError) and exc.strerror else ""
    return InputError(f"{name}: damaged or truncated NIfTI file, or cannot be read{why}; copy or export it again")


def is_zipped(path: Path) -> bool:
    """Whether a file is compressed, by its content: names say otherwise often enough."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError as exc:
        raise damaged(show(path), exc) from None


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
    if zipped and block.startswith(b"\x1f\x8b"):
        raise InputError(f"{name}: is compressed twice; unpack it once")
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


def turn(header: Any, name: str, axis: int) -> tuple[bool, tuple[int, ...]]:
    """How a plane of voxels (the two other axes, in order) is shown: transposed or not, then which axes are flipped.

    Raises:
        InputError: the header says how the volume lies, and what it says is none.
    """
    plane = [number for number in range(3) if number != axis]
    found = (_orientation(each) for each in _affines(header))
    usable = [each for each in found if each is not None and np.isfinite(each[plane]).all()]
    if not usable:
        raise InputError(
            f"{name}: its header does not say how the volume lies: its sform or qform is no orientation (zeros, or no "
            "numbers); set one, or both codes to 0"
        )
    first, second = (usable[0][number] for number in plane)
    # Rows run along the higher of x < y < z; both from + to -, so what runs from - to + is flipped.
    transposed = bool(first[0] < second[0])
    vertical, horizontal = (second, first) if transposed else (first, second)
    return transposed, tuple(number for number, each in enumerate((vertical, horizontal)) if each[1] > 0)


def _affines(header: Any) -> list[NDArray[np.float64]]:
    """Voxel to patient, the matrices that the header offers, best first; that of the sizes where it offers none."""
    header = _mended(header)
    offered = []
    if int(header["sform_code"]):
        offered.append(header.get_sform())
    if int(header["qform_code"]) and _length_of_quaternion(header) <= 1:  # nor is NaN
        offered.append(header.get_qform())
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        offered.append(header.get_base_affine())
    return [np.asarray(each, np.float64)[:3, :3] for each in offered]


def _mended(header: Any) -> Any:
    """A copy in which qfac, voxel sizes, codes and quaternion are such as can be used.

    As nibabel does when it loads a file (another qfac than -1 is 1, sizes count without their sign, unknown codes are
    0), and beyond that as niftilib does: sizes that are no numbers are 1, a quaternion that is a little too long is
    shortened. One that is much too long has lost its fourth number, and is left as it is.
    """
    silent = logging.Logger("nifti header")
    silent.addHandler(logging.NullHandler())
    header = header.copy()
    header.check_fix(logger=silent, error_level=sys.maxsize)
    sizes = header["pixdim"][1:4]
    header["pixdim"][1:4] = np.where(np.isfinite(sizes), sizes, 1)
    length = _length_of_quaternion(header)
    if 1 < length < _LONGEST_QUATERNION:
        for field in _QUATERNION:  # below 1 in single precision too
            header[field] = float(header[field]) / length * (1 - 1e-7)
    return header


def _length_of_quaternion(header: Any) -> float:
    return float(np.linalg.norm([float(header[field]) for field in _QUATERNION]))


def _orientation(matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """nibabel's (3, 2): patient axis and direction of each voxel axis; NaN for an axis without length."""
    import nibabel.orientations

    io_orientation: Any = nibabel.orientations.io_orientation
    if not np.isfinite(matrix).all():
        return None
    affine = np.eye(4)
    affine[:3, :3] = matrix
    try:
        with np.errstate(all="ignore"):
            return np.asarray(io_orientation(affine), np.float64)
    except Exception:  # no decomposition of a matrix with huge entries
        return None
