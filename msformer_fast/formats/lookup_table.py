"""Lookup tables of DICOM: of grey levels, and palettes, whole or in segments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.formats.dicom_numbers import numbers
from msformer_fast.formats.grey import between, look_up

Array = NDArray[Any]
_MOST_ENTRIES = 2**16
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


def grey_table(item: Any, least: float) -> tuple[Array, int, int]:
    """Entries of a table, the value of its first one, and its white; ``least`` of the values it maps."""
    length, first, bits = _descriptor(item, "LUTDescriptor")
    if not 1 <= bits <= 16:
        raise ValueError("a table of another depth")
    entries = _whole(_words(item, "LUTData", length), length)
    if first >= 2**15 and least < 0:  # written as signed, read as unsigned
        first -= 2**16
    return entries, first, 2**bits - 1


def apply_palette(stored: Array, dataset: Any) -> NDArray[np.float32]:
    """Colours (H, W, 3) in [0, 1] of stored values (H, W).

    Source:
        DICOM PS3.3, C.7.6.3.1.5, C.7.6.3.1.6 and C.7.9.2.
    """
    length, first, bits = _descriptor(dataset, "RedPaletteColorLookupTableDescriptor")
    if first >= 2**15 and stored.dtype.kind == "i":
        first -= 2**16
    tables = []
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTableData"
        if keyword in dataset:
            table = _words(dataset, keyword, length)
        else:
            segments = dataset[f"Segmented{keyword}"].value
            wide = bits > 8
            table = expand_segments(np.frombuffer(segments, _order(dataset) if wide else np.uint8), length)
        tables.append(_whole(table, length))
    # Entries of 8 bits are found in words of 16, whatever the descriptor says.
    white = 255 if max(int(table.max()) for table in tables) < 256 else 65535
    return np.stack([between(look_up(stored, table, first), 0, white) for table in tables], axis=2)


def expand_segments(words: Array, length: int) -> Array:
    """The table (length,) that segments describe: values, lines to a value, and segments to be used once more.

    Raises:
        ValueError: anything else, or another length.
    """
    out: list[int] = []
    _expand([int(each) for each in words], words.dtype.itemsize, out, 0, len(words), length, False)
    return np.asarray(out, np.int64)


def _expand(words: list[int], size: int, out: list[int], at: int, segments: int, length: int, repeated: bool) -> None:
    """Append up to so many segments from word ``at`` on; ``size``: bytes a word."""
    while at + 1 < len(words) and segments:
        opcode, count = words[at], words[at + 1]
        if opcode == _INDIRECT and not repeated:
            places = 4 // size  # words of the offset, which is of 32 bits, low one first, and counts bytes
            offset = sum(words[at + 2 + place] << (8 * size * place) for place in range(places))
            _expand(words, size, out, offset // size, count, length, True)
            at += 2 + places
            segments -= 1
            continue
        if opcode == _DISCRETE:
            values = words[at + 2 : at + 2 + count]
            at += 2 + count
        elif opcode == _LINEAR:
            last = words[at + 2]
            values = np.rint(np.linspace(out[-1] + (last - out[-1]) / count, last, count)).astype(int).tolist()
            at += 3
        else:
            raise ValueError("another segment")
        if not len(values) == count > 0 or len(out) + count > length:
            raise ValueError("another length")
        out += values
        segments -= 1


def _descriptor(dataset: Any, keyword: str) -> tuple[int, int, int]:
    """Number of entries, first value that is mapped, bits of an entry."""
    length, first, bits = (int(each) for each in numbers(dataset, keyword))
    return length % _MOST_ENTRIES or _MOST_ENTRIES, first, bits


def _words(dataset: Any, keyword: str, length: int) -> Array:
    """Entries as they are written: in words of 16 bits, or of 8 where there are too few bytes for those."""
    data = dataset[keyword].value
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data, np.int64))
    narrow = len(data) < 2 * length
    return np.frombuffer(data[: len(data) // 2 * 2 if not narrow else None], np.uint8 if narrow else _order(dataset))


def _whole(table: Array, length: int) -> Array:
    if len(table) < length:
        raise ValueError("a table of another length")
    return table[:length]


def _order(dataset: Any) -> np.dtype[Any]:
    return np.dtype("<u2" if dataset.original_encoding[1] in (True, None) else ">u2")
