"""What a JPEG, JPEG-LS or JPEG 2000 codestream states of itself: size, samples, depth, colours."""

from __future__ import annotations

_START_OF_JPEG = b"\xff\xd8"
_START_OF_JPEG_2000 = b"\xff\x4f\xff\x51"
# Start of frame: of every JPEG process, and of JPEG-LS.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_ADOBE = 0xEE


def stated_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels, or ``None`` if the bytes are no such codestream.

    Source:
        ITU-T T.81, B.2.2 (also T.87, C.2.2), and T.800, A.5.1.
    """
    at = _jpeg_2000(data)
    if at is not None:
        fields = [int.from_bytes(data[at + place : at + place + 4], "big") for place in (8, 12, 16, 20)]
        return fields[1] - fields[3], fields[0] - fields[2]
    frame = _segments(data)[0]
    return (
        None
        if frame is None or len(frame) < 5
        else (int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"))
    )


def components(data: bytes) -> int | None:
    """Samples a pixel; ``None`` if the bytes are no such codestream."""
    at = _jpeg_2000(data)
    if at is not None:
        return int.from_bytes(data[at + 40 : at + 42], "big")
    frame = _segments(data)[0]
    return None if frame is None or len(frame) < 6 else frame[5]


def precision(data: bytes) -> int | None:
    """Bits a sample of JPEG or JPEG-LS; ``None`` if the bytes are neither."""
    frame = _segments(data)[0]
    return frame[0] if frame else None


def names_its_colours(data: bytes) -> bool:
    """Whether a colour JPEG says itself which colours it has: by the letters R, G, B, or by Adobe's marker for YCbCr.

    Decoders then give RGB, whatever a header says.
    """
    frame, adobe = _segments(data)
    if frame is None or len(frame) < 15 or frame[5] != 3:
        return False
    return adobe == 1 or bytes(frame[6:15:3]).upper() == b"RGB"


def _jpeg_2000(data: bytes) -> int | None:
    """Where a JPEG 2000 codestream begins."""
    at = data.find(_START_OF_JPEG_2000, 0, 4096)  # behind the boxes of a JP2 file
    return None if at < 0 else at


def _segments(data: bytes) -> tuple[bytes | None, int | None]:
    """What the frame's header says (depth, height, width, components), and the colour transform of Adobe's marker."""
    adobe = None
    if not data.startswith(_START_OF_JPEG):
        return None, adobe
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAMES:
            return data[at + 4 : at + 2 + length], adobe
        if marker == 0xFF:
            at += 1  # fill
        elif marker in _ALONE:
            at += 2
        else:
            if marker == _ADOBE and data[at + 4 : at + 9] == b"Adobe" and length >= 14:
                adobe = data[at + 15]
            at += 2 + length
    return None, adobe
