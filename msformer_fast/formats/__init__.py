"""Files of images: PNG, JPEG, TIFF and BMP, DICOM, and NIfTI, opened by one call and read slice by slice."""

from __future__ import annotations

import math
import os
from pathlib import Path

from msformer_fast.errors import InputError
from msformer_fast.files import PathLike, show
from msformer_fast.formats.bounded_file import open_regular
from msformer_fast.formats.decode import picture_kind
from msformer_fast.formats.image_file import ImageFile

__all__ = ["IMAGE_SUFFIXES", "ImageFile", "is_image_file", "open_image", "stem"]

_PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_DICOM_SUFFIXES = (".dcm", ".dicom")
_NIFTI_SUFFIXES = (".nii", ".nii.gz")
#: Suffixes by which a folder's images are known, in lower case; a DICOM file may have any other or none.
IMAGE_SUFFIXES = (*_PLAIN_SUFFIXES, *_DICOM_SUFFIXES, *_NIFTI_SUFFIXES)
# What is often given and not read, by suffixes.
_OTHERS = {
    (".hdr", ".img", ".hdr.gz", ".img.gz"): "one half of an Analyze or NIfTI pair",
    (".mgz", ".mgh"): "a volume of FreeSurfer",
    (".nrrd", ".nhdr"): "an NRRD volume",
    (".mha", ".mhd"): "a MetaImage volume",
    (".mnc",): "a MINC volume",
    (".head", ".brik", ".brik.gz"): "one half of an AFNI volume",
    (".par", ".rec"): "one half of a Philips PAR/REC volume",
}
_FORMATS = "PNG, JPEG, TIFF, BMP, DICOM or NIfTI"
_SUFFIXES_OF_OTHERS = {suffix: what for suffixes, what in _OTHERS.items() for suffix in suffixes}
_MARK = 128  # bytes before "DICM"


def open_image(
    path: PathLike,
    *,
    axis: int = 2,
    window: tuple[float, float] | None = None,
    lungs: bool = False,
    max_pixels: int = 200_000_000,
) -> ImageFile:
    """Open a file of one image or of a volume; what it promises is checked before anything is decoded.

    NIfTI is known by its suffix, DICOM by its content or suffix, all else is left to
    :func:`msformer_fast.formats.plain.read_image`.

    Args:
        path: of the file.
        axis: voxel axis along which a NIfTI volume is sliced: 0, 1 or 2.
        window: (centre, width) of the grey levels of a DICOM or NIfTI file, in its units (Hounsfield units in CT),
            in place of the file's own.
        lungs: show CT in Hounsfield units through the window :data:`msformer_fast.formats.grey.LUNG_WINDOW`, unless
            another is given; the file's notes say so.
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

        return NiftiFile(path, axis=axis, window=window, lungs=lungs, max_pixels=max_pixels)
    if head.startswith(b"\x1f\x8b") and not lower.endswith(tuple(_SUFFIXES_OF_OTHERS)):
        raise InputError(f"{show(path)}: is compressed with gzip; unpack it")
    if _is_dicom(head) or lower.endswith(_DICOM_SUFFIXES):
        from msformer_fast.formats.dicom import DicomFile

        return DicomFile(path, window=window, lungs=lungs, max_pixels=max_pixels)
    _refuse_others(path, head)
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


def _refuse_others(path: Path, head: bytes) -> None:
    """Raises InputError for volumes of formats that are not read, unless the content is a picture all the same."""
    what = next((_SUFFIXES_OF_OTHERS[each] for each in _SUFFIXES_OF_OTHERS if path.name.lower().endswith(each)), None)
    if what is not None and picture_kind(head) is None:
        raise InputError(
            f"{show(path)}: is {what}, which is not read; accepted are {_FORMATS} in one file: convert it to .nii.gz"
        )


def _is_dicom(head: bytes) -> bool:
    return head[_MARK : _MARK + 4] == b"DICM"
