"""The size that a JPEG, JPEG-LS or JPEG 2000 codestream states of itself."""

from __future__ import annotations

_START_OF_JPEG = b"\xff\xd8"
_START_OF_JPEG_2000 = b"\xff\x4f\xff\x51"
# Start of frame: of every JPEG process, and of JPEG-LS.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment


def stated_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels, or ``None`` if the bytes are no such codestream.

    Source:
        ITU-T T.81, B.2.2 (also T.87, C.2.2), and T.800, A.5.1.
    """
    at = data.find(_START_OF_JPEG_2000, 0, 4096)  # behind the boxes of a JP2 file
    if at >= 0:
        fields = [int.from_bytes(data[at + place : at + place + 4], "big") for place in (8, 12, 16, 20)]
        return fields[1] - fields[3], fields[0] - fields[2]
    if not data.startswith(_START_OF_JPEG):
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        if marker == 0xFF:
            at += 1  # fill
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
