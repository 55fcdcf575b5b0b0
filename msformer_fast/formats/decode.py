"""Image files to samples: PNG, JPEG, TIFF and BMP, checked before they are decoded."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msformer_fast.errors import InputError
from msformer_fast.files import PathLike, show
from msformer_fast.formats.bounded_file import open_regular
from msformer_fast.formats.picture_metadata import orientation, without_metadata
from msformer_fast.images import refuse_small

Array = NDArray[Any]

FORMATS = "PNG, JPEG, TIFF or BMP"
_MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
_TURNS: dict[int, Callable[[Array], Array]] = {  # EXIF orientation: what sets the picture upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 3),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
_LYING = (5, 6, 7, 8)  # orientations that exchange height and width
_WITH_METADATA = ("PNG", "JPEG")


def decode(path: PathLike, max_pixels: int, least: int) -> tuple[Array, bool]:
    """The samples of a file, (H, W) or (H, W, 3), upright, as stored; and whether they came through a palette."""
    name = show(path)
    file = open_regular(path, FORMATS)
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures; those too large are refused below
        head = file.read(8)
        kind = picture_kind(head)
        if kind is None:
            raise InputError(f"{name}: the content is not an image of a supported format; accepted are {FORMATS}")
        try:
            return (_decode_tiff if kind == "TIFF" else _decode_pillow)(file, kind, name, max_pixels, least)
        except InputError:
            raise
        except Image.DecompressionBombError as exc:
            raise InputError(
                f"{name}: more than Pillow's limit of {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; crop it or reduce it"
            ) from exc
        except Exception as exc:  # on damaged files Pillow and tifffile raise errors of a dozen types
            raise InputError(
                f"{name}: damaged or truncated {kind} file, or a variant that cannot be read; save it "
                "again as 8-bit PNG"
            ) from exc


def _check_header(name: str, height: int, width: int, pages: int, max_pixels: int, least: int) -> None:
    if pages != 1:
        raise InputError(f"{name}: has more than one page, frame or slice; save the wanted one as a file of its own")
    if height * width > max_pixels:
        raise InputError(f"{name}: {height} x {width} is more than {max_pixels} pixels; crop it or reduce it")
    refuse_small(height, width, least, name)


def upright_size(path: PathLike) -> tuple[int, int] | None:
    """(H, W) of a file as :func:`decode` will give it, without decoding it; ``None`` where it cannot be told."""
    try:
        with open_regular(path, FORMATS) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which are refused where they are read
            kind = picture_kind(file.read(8))
            file.seek(0)
            if kind == "TIFF":
                return _tiff_size(file)
            try:
                return _pillow_size(file)
            except Exception:
                if kind not in _WITH_METADATA:
                    raise
                return _pillow_size(without_metadata(file, kind))
    except (
        Exception
    ):  # on damaged files Pillow and tifffile raise errors of a dozen types; decoding tells what is wrong
        return None


def _pillow_size(file: IO[bytes]) -> tuple[int, int]:
    with Image.open(file) as picture:
        width, height = picture.size
        return (width, height) if orientation(picture) in _LYING else (height, width)


def _tiff_size(file: IO[bytes]) -> tuple[int, int]:
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[0]
        height, width = int(page.imagelength), int(page.imagewidth)
        return (width, height) if page.tags.valueof(274, 1) in _LYING else (height, width)


def picture_kind(head: bytes) -> str | None:
    """``"PNG"``, ``"JPEG"``, ``"TIFF"`` or ``"BMP"``, by the first bytes of a file; ``None`` for anything else."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _decode_pillow(file: IO[bytes], kind: str, name: str, max_pixels: int, least: int) -> tuple[Array, bool]:
    """As it is; where Pillow stumbles, without what is beside the picture."""
    try:
        return _decode_picture(file, kind, name, max_pixels, least)
    except (InputError, Image.DecompressionBombError):
        raise
    except Exception:
        if kind not in _WITH_METADATA:
            raise
        return _decode_picture(without_metadata(file, kind), kind, name, max_pixels, least)


def _decode_picture(file: IO[bytes], kind: str, name: str, max_pixels: int, least: int) -> tuple[Array, bool]:
    with Image.open(file, formats=[kind]) as picture:
        # A multi-picture JPEG is a photograph with its preview or depth map: the first is the picture.
        pages = 1 if kind == "JPEG" else getattr(picture, "n_frames", 1)
        _check_header(name, picture.height, picture.width, pages, max_pixels, least)
        mode, raw = picture.mode, picture.tile[0].args if kind == "PNG" else None
        if raw == "LA;16B":  # Pillow would keep 8 bits; its bytes are those of 8-bit RGBA
            picture.tile = [picture.tile[0]._replace(args="RGBA")]
        picture.load()
        array = np.asarray(picture.convert("RGB") if mode not in ("1", "L", "I;16", "I;16B", "RGBA") else picture)
        turn = _TURNS.get(orientation(picture), np.asarray)
    if mode == "LA":
        array = array[:, :, 0]
    if raw == "LA;16B":
        array = array[:, :, 0] * np.uint16(256) + array[:, :, 1]
    elif raw in _LOW_BYTES:  # Pillow keeps the high bytes of 16-bit colour: a second pass fetches the low ones
        file.seek(0)
        with Image.open(file, formats=[kind]) as picture:
            picture.tile = [picture.tile[0]._replace(args=_LOW_BYTES[raw])]
            array = array * np.uint16(256) + np.asarray(picture)
    array = array[:, :, :3] if array.ndim == 3 else array
    return turn(array), mode == "P"


def _decode_tiff(file: IO[bytes], kind: str, name: str, max_pixels: int, least: int) -> tuple[Array, bool]:
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else it prints about damaged files
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[0]
        single = len(tiff.pages) == 1 and page.imagedepth == 1 and not _is_stack(tiff, page)
        _check_header(name, page.imagelength, page.imagewidth, 1 if single else 2, max_pixels, least)
        extra = len(page.extrasamples)
        colours, bits = page.samplesperpixel - extra, page.bitspersample
        narrow = page.dtype is None or (page.dtype.kind in "bu" and bits <= 8)
        known = narrow or (bits in (16, 32, 64) and colours in (1, 3) and page.photometric in (0, 1, 2))
        if extra > 1 or not known:
            raise InputError(
                f"{name}: a TIFF of {page.samplesperpixel} channels, {page.dtype} ({bits} bits, photometric "
                f"{int(page.photometric)}) is not supported; save it as 8- or 16-bit grey or RGB"
            )
        # Pillow would make the rows black that no strip has.
        missing = len(page.dataoffsets) < math.prod(page.chunked)
        if narrow and not missing:
            file.seek(0)
            return _decode_pillow(file, kind, name, max_pixels, least)
        if missing or np.add(page.dataoffsets, page.databytecounts).max() > file.seek(0, os.SEEK_END):
            raise InputError(f"{name}: truncated TIFF file; copy or export it again")
        try:
            array = page.asarray()
        except ValueError as exc:
            if "imagecodecs" not in str(exc):
                raise
            if page.dtype == np.uint16 and page.samplesperpixel == 1 and page.photometric == 1:
                file.seek(0)
                return _decode_pillow(file, kind, name, max_pixels, least)
            raise InputError(
                f"{name}: {page.compression.name}-compressed {page.dtype} TIFF needs the package imagecodecs; "
                "install it, or save the file uncompressed"
            ) from exc
    array = np.moveaxis(array, 0, 2) if page.axes == "SYX" else array
    array = array[:, :, 0] if array.ndim == 3 and colours == 1 else array[:, :, :3] if array.ndim == 3 else array
    if page.photometric == 0:  # white is zero
        array = (65535 if array.dtype.kind == "u" else 1) - array
    return _TURNS.get(page.tags.valueof(274, 1), np.asarray)(array), False


def _is_stack(tiff: Any, page: Any) -> bool:
    """Whether a description says that more than the only page lies in the file, as ImageJ writes stacks."""
    try:
        return bool(tiff.series[0].size != page.size)
    except Exception:  # tifffile raises errors of a dozen types on descriptions that only look like one of a stack
        return False
