"""PNG and JPEG without what is beside the picture: texts, profiles and the like, which may be long or broken."""

from __future__ import annotations

import io
import zlib
from typing import IO

from PIL import Image

_PNG_HEAD = 8
# PNG chunks that make the picture. Animation control says that there are several.
_PICTURE, _ANIMATION, _EXIF, _TEXT = (b"IHDR", b"PLTE", b"IDAT", b"IEND"), b"acTL", b"eXIf", b"iTXt"
_XMP = b"XML:com.adobe.xmp\0\0\0"  # not compressed
_LONGEST_TEXT = 2**20  # bytes
_APPLICATION, _COMMENT, _SCAN = range(0xE0, 0xF0), 0xFE, 0xDA
_ALONE = {0x01, 0xFF, *range(0xD0, 0xD9)}  # markers without a segment, and fill
_ORIENTATION = 0x0112


def without_metadata(file: IO[bytes], kind: str) -> io.BytesIO:
    """The picture alone, with its orientation where that can be read.

    Args:
        file: from its beginning on.
        kind: ``"PNG"`` or ``"JPEG"``.
    """
    file.seek(0)
    data = file.read()
    return io.BytesIO(_bare_png(data) if kind == "PNG" else _bare_jpeg(data))


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or it cannot be read."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # on broken EXIF Pillow raises errors of a dozen types
        return 1


def _bare_png(data: bytes) -> bytes:
    out, at = [data[:_PNG_HEAD]], _PNG_HEAD
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if kind in _PICTURE or _is_whole_metadata(kind, data[at + 8 : end - 4], data[end - 4 : end]):
            out.append(data[at:end])
        at = end
    return b"".join(out)


def _is_whole_metadata(kind: bytes, body: bytes, checksum: bytes) -> bool:
    """Of what is kept beside the picture: that there are several, and how it is turned."""
    if kind == _ANIMATION:
        useful = len(body) == 8
    elif kind == _EXIF:
        useful = _is_exif(body)
    else:
        useful = kind == _TEXT and body.startswith(_XMP) and len(body) < _LONGEST_TEXT
    return useful and zlib.crc32(kind + body).to_bytes(4, "big") == checksum


def _bare_jpeg(data: bytes) -> bytes:
    out, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _ALONE:
            end = at + (1 if marker == 0xFF else 2)
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            break
        body = data[at + 4 : end]
        # JFIF and Adobe's marker say what the colours are.
        needed = (body.startswith(b"JFIF\0") and len(body) >= 14) or (body.startswith(b"Adobe") and len(body) >= 12)
        needed = needed or (body.startswith(b"Exif\0\0") and _is_exif(body))
        if needed or (marker not in _APPLICATION and marker != _COMMENT):
            out.append(data[at:end])
        at = end
    return b"".join([*out, data[at:]])


def _is_exif(body: bytes) -> bool:
    exif = Image.Exif()
    try:
        exif.load(body)
        return isinstance(exif.get(_ORIENTATION, 1), int)
    except Exception:
        return False
