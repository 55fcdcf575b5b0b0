"""Files of images: PNG, JPEG, TIFF and BMP, DICOM, and NIfTI, opened by one call and read slice by slice."""

from __future__ import annotations

import math
import os
from pathlib import Path

from msformer_fast.bounded_file import open_regular
from msformer_fast.errors import InputError
from msformer_fast.files import PathLike
from msformer_fast.formats.image_file import ImageFile

__all__ = ["IMAGE_SUFFIXES", "ImageFile", "is_image_file", "open_image", "stem"]

_PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_DICOM_SUFFIXES = (".dcm", ".dicom")
_NIFTI_SUFFIXES = (".nii", ".nii.gz")
#: Suffixes by which a folder's images are known, in lower case; a DICOM file may have any other or none.
IMAGE_SUFFIXES = (*_PLAIN_SUFFIXES, *_DICOM_SUFFIXES, *_NIFTI_SUFFIXES)
_FORMATS = "PNG, JPEG, TIFF, BMP, DICOM or NIfTI"
_MARK = 128  # bytes before "DICM"


def open_image(
    path: PathLike,
    *,
    axis: int = 2,
    window: tuple[float, float] | None = None,
    max_pixels: int = 200_000_000,
) -> ImageFile:
    """Open a file of one image or of a volume; what it promises is checked before anything is decoded.

    NIfTI is known by its suffix, DICOM by its content or suffix, all else is left to
    :func:`msformer_fast.images.read_image`.

    Args:
        path: of the file.
        axis: voxel axis along which a NIfTI volume is sliced: 0, 1 or 2.
        window: (centre, width) of the grey levels of a DICOM or NIfTI file, in its units (Hounsfield units in CT),
            in place of the file's own.
        max_pixels: that one slice may have.

    Raises:
        InputError: no readable regular file, nothing that can be read as an image, an optional package is missing, or
            another axis or window. No message holds a value out of a DICOM or NIfTI file, which could be a name.
    """
    if axis not in (0, 1, 2):
        raise InputError(f"axis: got {axis!r}; accepted are 0, 1 and 2")
    if window is not None and not (math.isfinite(window[0]) and math.isfinite(window[1]) and window[1] > 0):
        raise InputError(f"window: got {window[0]:g}, {window[1]:g}; accepted are a centre and a width above 0")
    with open_regular(path, _FORMATS) as file:
        head = file.read(_MARK + 4)
    path = Path(os.fsdecode(path))
    lower = path.name.lower()
    if lower.endswith(_NIFTI_SUFFIXES):
        from msformer_fast.formats.nifti import NiftiFile

        return NiftiFile(path, axis=axis, window=window, max_pixels=max_pixels)
    if _is_dicom(head) or lower.endswith(_DICOM_SUFFIXES):
        from msformer_fast.formats.dicom import DicomFile

        return DicomFile(path, window=window, max_pixels=max_pixels)
    from msformer_fast.formats.plain import PlainImage

    return PlainImage(path, max_pixels=max_pixels)


def is_image_file(path: Path) -> bool:
    """Whether a file of a folder is to be taken for an image: by its suffix, without opening it.

    Files of any other suffix, or of none, are images if they are DICOM files by their content.
    """
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    try:
        with open_regular(path, _FORMATS) as file:
            return _is_dicom(file.read(_MARK + 4))
    except InputError:
        return False


def stem(path: PathLike) -> str:
    """The file's name without its suffix: ``.nii.gz`` is one, and digits (as in ``1.2.840.113``) are none."""
    name = os.path.basename(os.fsdecode(path))
    if name.lower().endswith(".nii.gz"):
        return name[: -len(".nii.gz")] or name
    root, suffix = os.path.splitext(name)
    return name if suffix[1:].isdigit() else root


def _is_dicom(head: bytes) -> bool:
    return head[_MARK : _MARK + 4] == b"DICM"
