"""How a DICOM file is encoded, and how it says that it is: where the two differ, what is there counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msformer_fast.errors import InputError
from msformer_fast.formats.bounded_file import BoundedFile

DEFLATED = "1.2.840.10008.1.2.1.99"
#: Elements that hold pixels.
PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
UNDEFINED = 0xFFFFFFFF
# VRs that pixel data is found in; in explicit encoding a length of four bytes follows two reserved ones.
_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")
_NATIVE = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
    (True, False): "1.2.840.10008.1.2.2",  # of no syntax; its pixels are as those of explicit big endian
}
_REMEDY = "export it again as Explicit VR Little Endian"


@dataclass(frozen=True)
class PixelElement:
    """The head of the element that holds the pixels.

    Attributes:
        keyword: ``"PixelData"`` or one of the two of floats.
        vr: as the file has it; ``"OW"`` where the encoding is implicit.
        offset: byte at which its value begins.
        length: of the value in bytes, or :data:`UNDEFINED`.
        items: whether the value begins with an item, as that of compressed pixels does.
    """

    keyword: str
    vr: str
    offset: int
    length: int
    items: bool


def read_meta(file: BoundedFile, name: str) -> tuple[str | None, str]:
    """The transfer syntax and the class ("" if none) that a file declares; the file stands at its data set after.

    Raises:
        InputError: no DICOM file.
    """
    from pydicom.filereader import read_dataset

    if file.read(132)[128:] != b"DICM":
        raise InputError(f"{name}: is not a DICOM file (the mark DICM is missing); export it again as DICOM")
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax, sop_class = (
        str(meta.get(keyword) or "").strip("\0 ") for keyword in ("TransferSyntaxUID", "MediaStorageSOPClassUID")
    )
    return syntax or None, sop_class


def found_encoding(file: BoundedFile, declared: str | None) -> tuple[bool, bool]:
    """(implicit VR, little endian) of the data set at which the file stands, by its first element.

    Source:
        DICOM PS3.5, 7.1: a VR is two capital letters, where implicit encoding has the low bytes of a length; groups up
        to 00FF begin a data set, and read in the other order they are above that.
    """
    head = _ahead(file)
    if len(head) < 6:
        return declared in (None, _NATIVE[True, True]), True
    implicit = not all(ord("A") <= each <= ord("Z") for each in head[4:6])
    little, big = (int.from_bytes(head[:2], order) for order in ("little", "big"))
    if min(little, big) < 0x100 <= max(little, big):
        return implicit, little < big
    return implicit, declared != _NATIVE[False, False]


def looks_like_elements(file: BoundedFile) -> bool:
    """Whether explicit elements follow, and not a stream of deflate."""
    head = _ahead(file)
    return len(head) == 6 and head[1] == 0 and all(ord("A") <= each <= ord("Z") for each in head[4:6])


def read_pixel_head(file: BoundedFile, name: str, implicit: bool, little: bool) -> PixelElement | None:
    """What the element at which the file stands says of itself; ``None`` if it holds no pixels.

    The element counts, not the data set: some have been put together from parts of either encoding.

    Raises:
        InputError: a VR that pixels are not found in.
    """
    order: Any = "little" if little else "big"
    head = file.read(8)
    if len(head) < 8:
        return None
    keyword = PIXELS.get(int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order))
    if keyword is None:
        return None
    # Read as a length the letters give an odd number, which no length is.
    if head[4:6] in _VRS and (not implicit or head[6:] == b"\0\0"):
        vr, length = head[4:6].decode("ascii"), int.from_bytes(file.read(4), order)
    else:
        vr, length = "OW", int.from_bytes(head[4:], order)
        if not implicit and length != UNDEFINED and length > file.size - file.tell():
            raise InputError(f"{name}: its pixel data is of a kind (VR) that pixels are not found in; {_REMEDY}")
    offset = file.tell()
    items = file.read(4) == (b"\xfe\xff\x00\xe0" if little else b"\xff\xfe\xe0\x00")
    return PixelElement(keyword, vr, offset, length, items)


def syntax_of_pixels(
    name: str, declared: str | None, encoding: tuple[bool, bool], element: PixelElement, native_bytes: int
) -> Any:
    """The transfer syntax, a ``pydicom.uid.UID``, with which the pixels are to be decoded.

    Args:
        name: for messages.
        declared: by the file.
        encoding: see :func:`found_encoding`.
        element: of the pixels.
        native_bytes: that the pixels would take uncompressed.

    Raises:
        InputError: a syntax that nobody but its maker knows, none where one is needed, or one that the pixels
            contradict.
    """
    from pydicom.uid import UID

    native = UID(_NATIVE[encoding])
    if declared is None or declared == DEFLATED:
        if element.length == UNDEFINED:
            raise InputError(f"{name}: lacks its transfer syntax, and its pixels are compressed; {_REMEDY}")
        return native
    syntax = UID(declared)
    if syntax.is_private or not syntax.is_transfer_syntax:
        which = "is private" if syntax.is_private else "is none of the standard's"
        raise InputError(f"{name}: its transfer syntax {which} and is not read; {_REMEDY}")
    if not syntax.is_encapsulated:
        if element.length == UNDEFINED:
            raise InputError(
                f"{name}: its pixels are compressed, but its transfer syntax ({syntax.name}) says that they are not; "
                f"{_REMEDY}"
            )
        return native
    if element.length == UNDEFINED or element.items:
        return syntax
    if element.length - native_bytes in (0, 1):  # decompressed, and the syntax was left as it was
        return native
    raise InputError(f"{name}: its pixels are not compressed as its transfer syntax ({syntax.name}) says; {_REMEDY}")


def _ahead(file: BoundedFile) -> bytes:
    """Tag and VR of the next element; the file stands where it stood."""
    at = file.tell()
    head = file.read(6)
    file.seek(at)
    return head
