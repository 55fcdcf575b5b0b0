"""The header of a DICOM file: read within bounds, without a word of what it says, and checked before decoding."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msformer_fast.bounded_file import BoundedFile
from msformer_fast.decode import refuse_small
from msformer_fast.errors import InputError
from msformer_fast.files import reason, show
from msformer_fast.images import MIN_SIDE

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_LOGGERS = ("pydicom", "highdicom", "pylibjpeg", "libjpeg", "openjpeg")
_DEFLATED = "1.2.840.10008.1.2.1.99"
# Most bytes that one compressed byte becomes: two bytes of RLE are up to 128; of the others a blank picture's are few.
_RLE_RATIO = 64
_RATIO = 5000
# All that reading an image needs: nothing else of the header, such as who it shows, is kept.
_NEEDED = [
    *("SOPClassUID", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("ModalityLUTSequence", "VOILUTSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}


@dataclass(frozen=True, eq=False)
class Header:
    """What is known of a DICOM image before it is decoded.

    Attributes:
        dataset: the elements that reading needs, of a ``pydicom.Dataset``.
        syntax: the transfer syntax, a ``pydicom.uid.UID``.
        offset: byte at which the value of the pixel data begins.
        options: of pydicom's decoder.
    """

    dataset: Any
    syntax: Any
    offset: int
    options: dict[str, Any]

    @property
    def colours(self) -> str:
        return str(self.options["photometric_interpretation"])

    @property
    def frames(self) -> int:
        return int(self.options["number_of_frames"])

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.options["rows"]), int(self.options["columns"])


@contextmanager
def guarded(name: str, *, package: str = "pydicom", doing: str = "reading DICOM") -> Iterator[None]:
    """Silence pydicom, and turn whatever it raises into an InputError that quotes nothing of the file.

    Its warnings, log lines and errors hold values of the header.
    """
    loggers = [logging.getLogger(each) for each in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        except InputError:
            raise
        except ImportError:
            raise InputError(f"{name}: {doing} needs {package}; install msformer-fast[dicom]") from None
        except OSError as exc:
            raise InputError(f"{name}: cannot be read ({reason(exc)}); check the file and its disk") from None
        except MemoryError:
            raise InputError(f"{name}: does not fit into memory; reduce it") from None
        except Exception:  # on damaged files pydicom raises errors of a dozen types
            raise InputError(
                f"{name}: damaged or truncated DICOM file, or a variant that cannot be read; copy or export it again"
            ) from None
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def read_header(path: Path, max_pixels: int) -> Header:
    """Read and check what a file promises; to be called inside :func:`guarded`.

    Raises:
        InputError: not DICOM, not an image, of a size that is not accepted, or more than the file can hold.
    """
    import pydicom
    from pydicom.pixels.utils import as_pixel_options

    name = show(path)
    with BoundedFile(path) as file:
        _refuse_foreign(file, name)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_NEEDED))
        element = file.read(8)
        implicit, little = dataset.original_encoding
        if len(element) < 8 or "Rows" not in dataset or "Columns" not in dataset:
            raise InputError(f"{name}: {_what(dataset)} holds no picture; give a DICOM image")
        if str(dataset.get("SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.66"):
            raise InputError(
                f"{name}: {_what(dataset)} is no picture to segment; give the DICOM image it was made from"
            )
        order: Any = "little" if little else "big"
        tag = int.from_bytes(element[:2], order) << 16 | int.from_bytes(element[2:4], order)
        length = int.from_bytes(element[4:] if implicit else file.read(4), order)
        offset = file.tell()
        left = file.size - offset
    syntax = dataset.file_meta.TransferSyntaxUID
    options = as_pixel_options(dataset, transfer_syntax_uid=syntax, pixel_keyword=_KEYWORDS[tag])
    options["photometric_interpretation"] = str(options.get("photometric_interpretation", "MONOCHROME2"))
    options.setdefault("samples_per_pixel", 1)
    if tag == 0x7FE00010:
        options["pixel_vr"] = "OW" if implicit else element[4:6].decode("ascii")
    _check(name, options, syntax, left if length == 0xFFFFFFFF else min(length, left), max_pixels)
    return Header(dataset, syntax, offset, options)


def known_name(uid: Any, otherwise: str) -> str:
    """The name of a UID that the standard defines; any other may be of somebody's own making."""
    from pydicom.uid import UID

    name = UID(uid).name
    return otherwise if name == uid else name


def _what(dataset: Any) -> str:
    return f"a DICOM object of the class {known_name(str(dataset.get('SOPClassUID', '')), 'unknown')}"


def _refuse_foreign(file: BoundedFile, name: str) -> None:
    """Raises InputError for what is no DICOM file, and for one that is deflated, which pydicom inflates as a whole."""
    from pydicom.filereader import read_dataset

    if file.read(132)[128:] != b"DICM":
        raise InputError(f"{name}: is not a DICOM file (the mark DICM is missing); export it again as DICOM")
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if str(meta.get("TransferSyntaxUID", "")).strip("\0 ") == _DEFLATED:
        raise InputError(f"{name}: {known_name(_DEFLATED, '')} is not read; save it uncompressed")
    file.seek(0)


def _check(name: str, options: dict[str, Any], syntax: Any, left: int, max_pixels: int) -> None:
    """``left``: bytes of pixel data that are there."""
    rows, columns, samples = (int(options[key]) for key in ("rows", "columns", "samples_per_pixel"))
    frames, bits = int(options["number_of_frames"]), int(options["bits_allocated"])
    colours = options["photometric_interpretation"]
    if rows * columns > max_pixels:
        raise InputError(f"{name}: {rows} x {columns} is more than {max_pixels} pixels; crop it or reduce it")
    refuse_small(rows, columns, MIN_SIDE, name)
    accepted = (*GREY, PALETTE, *COLOUR)
    if colours not in accepted or samples != (3 if colours in COLOUR else 1):
        raise InputError(
            f"{name}: its photometric interpretation, with its samples per pixel, is not supported; accepted are "
            f"{', '.join(accepted)}, of 1 or 3 samples"
        )
    if bits not in (1, 8, 16, 32, 64):
        raise InputError(f"{name}: {bits} bits allocated per sample are not supported; accepted are 1, 8, 16, 32, 64")
    if frames < 1:
        raise InputError(f"{name}: its number of frames is no number of at least 1; export it again")
    size = rows * columns * samples * bits / 8
    if not syntax.is_encapsulated:
        # Two pixels of 4:2:2 share their colour.
        promised = math.ceil(size * frames * (2 / 3 if colours == "YBR_FULL_422" else 1))
        short = promised > left
    else:
        ratio = _RLE_RATIO if syntax == "1.2.840.10008.1.2.5" else _RATIO
        short = 8 * frames > left or size > ratio * left  # every frame is an item, whose head is 8 bytes
    if short:
        raise InputError(
            f"{name}: damaged or truncated DICOM file: it promises {frames} x {rows} x {columns} pixels, more than it "
            "holds; copy or export it again"
        )
