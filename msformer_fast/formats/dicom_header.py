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

from msformer_fast.errors import InputError
from msformer_fast.files import reason, show
from msformer_fast.formats.bounded_file import BoundedFile
from msformer_fast.formats.dicom_encoding import (
    DEFLATED,
    PIXELS,
    UNDEFINED,
    PixelElement,
    found_encoding,
    looks_like_elements,
    read_meta,
    read_pixel_head,
    syntax_of_pixels,
)
from msformer_fast.formats.dicom_numbers import described, whole
from msformer_fast.formats.dicom_padding import PADDING
from msformer_fast.images import MIN_SIDE, refuse_small

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_LOGGERS = ("pydicom", "highdicom", "pylibjpeg", "libjpeg", "openjpeg")
# Most bytes that one compressed byte becomes: two bytes of RLE are up to 128; of the others a blank picture's are few.
_RLE_RATIO = 64
_RATIO = 5000
_COLOURS = ("Red", "Green", "Blue")
_MODALITIES = {"CT": "ct", "CR": "xray", "DX": "xray", "RG": "xray", "RF": "xray", "XA": "xray"}
# All that reading an image needs: nothing else of the header, such as who it shows, is kept.
_NEEDED = (
    *(
        "SOPClassUID",
        "Modality",
        "RescaleType",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "SamplesPerPixel",
        "PhotometricInterpretation",
    ),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *PADDING,
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("ModalityLUTSequence", "VOILUTSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *(f"{colour}PaletteColorLookupTable{part}" for colour in _COLOURS for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)


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
    def modality(self) -> str | None:
        """``"ct"`` or ``"xray"``, or ``None`` for all else."""
        return _MODALITIES.get(_text(self.dataset, "Modality").upper())

    @property
    def in_hounsfield_units(self) -> bool:
        """Of CT, unless the header says that the values are in other units (PS3.3, C.8.2.1.1.2)."""
        rescaled = "RescaleSlope" in self.dataset and "RescaleIntercept" in self.dataset
        shared = "SharedFunctionalGroupsSequence" in self.dataset
        units = _text(self.dataset, "RescaleType").upper()
        return self.modality == "ct" and (rescaled or shared) and units in ("", "HU")

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
    import pydicom  # noqa: F401
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_dataset

    name = show(path)
    with BoundedFile(path) as file:
        declared, sop_class = read_meta(file, name)
        if declared == DEFLATED and not looks_like_elements(file):  # pydicom inflates it as a whole
            raise InputError(f"{name}: {known_name(DEFLATED, '')} is not read; save it uncompressed")
        implicit, little = encoding = found_encoding(file, declared)
        tags: Any = [tag_for_keyword(keyword) for keyword in _NEEDED]
        dataset = read_dataset(
            file, implicit, little, stop_when=lambda tag, vr, length: tag in PIXELS, specific_tags=tags
        )
        element = read_pixel_head(file, name, implicit, little)
        if element is None or "Rows" not in dataset or "Columns" not in dataset:
            raise InputError(f"{name}: {_what(dataset, sop_class)} holds no picture; give a DICOM image")
        if str(dataset.get("SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.66"):
            raise InputError(
                f"{name}: {_what(dataset, sop_class)} is no picture to segment; give the DICOM image it was made from"
            )
        left = file.size - element.offset
    options = _options(dataset, name, element)
    _check(name, options, max_pixels)
    size = _native_bytes(options)
    syntax = syntax_of_pixels(name, declared, encoding, element, size)
    options["transfer_syntax_uid"] = syntax
    if options["samples_per_pixel"] == 3:
        # Compressed colours lie as their own stream says (PS3.5, 8.2), whatever the header does.
        options["planar_configuration"] = 0 if syntax.is_encapsulated else _planar(dataset, name)
    _check_length(name, options, size, left if element.length == UNDEFINED else min(element.length, left))
    return Header(dataset, syntax, element.offset, options)


def _options(dataset: Any, name: str, element: PixelElement) -> dict[str, Any]:
    """Those of pydicom's decoder, but for the transfer syntax and the layout of colours."""
    options: dict[str, Any] = {
        "pixel_keyword": element.keyword,
        "photometric_interpretation": _text(dataset, "PhotometricInterpretation") or "MONOCHROME2",
        "samples_per_pixel": whole(dataset, "SamplesPerPixel", name, 1),
        "number_of_frames": whole(dataset, "NumberOfFrames", name, 1) or 1,
        "rows": whole(dataset, "Rows", name),
        "columns": whole(dataset, "Columns", name),
        "bits_allocated": whole(dataset, "BitsAllocated", name),
    }
    if element.keyword == "PixelData":
        options |= {
            "pixel_vr": element.vr,
            "bits_stored": whole(dataset, "BitsStored", name),
            "pixel_representation": whole(dataset, "PixelRepresentation", name),
        }
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        options["extended_offsets"] = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    return options


def _planar(dataset: Any, name: str) -> int:
    planar = whole(dataset, "PlanarConfiguration", name, 0)  # most files that lack it have pixel after pixel
    if planar not in (0, 1):
        raise InputError(f"{name}: its {described('PlanarConfiguration')} is neither 0 nor 1; export it again")
    return planar


def _text(dataset: Any, keyword: str) -> str:
    """The first value of an element of text, without what it is padded with."""
    value = dataset.get(keyword)
    value = value.decode("latin-1") if isinstance(value, bytes) else value
    return str(value[0] if isinstance(value, (list, tuple)) and value else value or "").strip(" \0")


def known_name(uid: Any, otherwise: str) -> str:
    """The name of a UID that the standard defines; any other may be of somebody's own making."""
    from pydicom.uid import UID

    name = UID(uid).name
    return otherwise if name == uid else name


def _what(dataset: Any, declared: str) -> str:
    """A DICOMDIR has its class in the file meta information alone."""
    return f"a DICOM object of the class {known_name(str(dataset.get('SOPClassUID') or declared), 'unknown')}"


def _check(name: str, options: dict[str, Any], max_pixels: int) -> None:
    rows, columns, samples = (options[key] for key in ("rows", "columns", "samples_per_pixel"))
    bits, colours = options["bits_allocated"], options["photometric_interpretation"]
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
    if not 1 <= options.get("bits_stored", bits) <= bits:
        raise InputError(f"{name}: {options['bits_stored']} bits stored do not fit {bits} bits allocated per sample")
    if options.get("pixel_representation", 0) not in (0, 1):
        raise InputError(f"{name}: its {described('PixelRepresentation')} is neither 0 nor 1; export it again")
    if options["number_of_frames"] < 1:
        raise InputError(f"{name}: its number of frames is no number of at least 1; export it again")


def _native_bytes(options: dict[str, Any]) -> int:
    """That the pixels take uncompressed."""
    size = math.prod(options[key] for key in ("rows", "columns", "samples_per_pixel", "number_of_frames"))
    # Two pixels of 4:2:2 share their colour.
    shared = 2 / 3 if options["photometric_interpretation"] == "YBR_FULL_422" else 1
    return math.ceil(size * options["bits_allocated"] / 8 * shared)


def _check_length(name: str, options: dict[str, Any], size: int, left: int) -> None:
    """``size``: see :func:`_native_bytes`; ``left``: bytes of pixel data that are there."""
    syntax, frames = options["transfer_syntax_uid"], options["number_of_frames"]
    if not syntax.is_encapsulated:
        short = size > left
    else:
        ratio = _RLE_RATIO if syntax == "1.2.840.10008.1.2.5" else _RATIO
        short = 8 * frames > left or size / frames > ratio * left  # every frame is an item, whose head is 8 bytes
    if short:
        raise InputError(
            f"{name}: damaged or truncated DICOM file: it promises {frames} x {options['rows']} x "
            f"{options['columns']} pixels, more than it holds; copy or export it again"
        )
