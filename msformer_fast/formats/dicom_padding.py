"""Which pixels of a DICOM image are declared to be padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.formats.dicom_numbers import numbers, value_representation

Array = NDArray[Any]

# The value, and the other end of its range, of integers, of floats and of doubles.
_PAIRS = (
    ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
)
#: Keywords of all attributes that declare padding.
PADDING = tuple(keyword for pair in _PAIRS for keyword in pair)


def find_padding(
    stored: Array, dataset: Any, options: dict[str, Any], uncorrected: Callable[[], Array]
) -> NDArray[np.bool_] | None:
    """The mask (H, W) of pixels that are padding; ``None`` where there are none, or nothing else.

    What is declared is compared as the pixels' own type, whatever the VR it was written in.

    Args:
        stored: (H, W), as decoded.
        dataset: the header.
        options: of the decoder.
        uncorrected: decodes the frame once more, (H, W) with the bits above those stored as they are.

    Source:
        DICOM PS3.3, C.7.5.1.1.2, and C.7.6.24 for floats.
    """
    for keyword, limit in _PAIRS:
        found = numbers(dataset, keyword)[:1]
        if not found:
            continue
        ends = [*found, *(numbers(dataset, limit)[:1] or found)]
        if stored.dtype.kind == "f":
            narrow = value_representation(dataset, keyword) == "FL"
            inside = _floats(stored.astype(np.float32) if narrow else stored, ends)
        else:
            inside = _integers(stored, ends, options, uncorrected)
        return inside if inside.any() and not inside.all() else None
    return None


def _floats(stored: Array, ends: list[float]) -> NDArray[np.bool_]:
    with np.errstate(all="ignore"):
        low, high = np.sort(np.asarray(ends).astype(stored.dtype))
        inside = (stored >= low) & (stored <= high)
    return np.asarray(inside | np.isnan(stored) if np.isnan(ends).any() else inside)


def _integers(
    stored: Array, ends: list[float], options: dict[str, Any], uncorrected: Callable[[], Array]
) -> NDArray[np.bool_]:
    none = np.zeros(stored.shape, np.bool_)
    if not all(end.is_integer() for end in ends):
        return none
    signed = stored.dtype.kind == "i"
    bits_stored, bits = int(options["bits_stored"]), int(options["bits_allocated"])
    for low, high in _readings([int(end) for end in ends], bits, bits_stored, signed):
        values = stored
        if not -(2 ** (bits_stored - 1)) * signed <= low <= high < 2 ** (bits_stored - signed):
            values = uncorrected()  # a value that the stored bits do not reach is found in all of them
        inside = (values >= low) & (values <= high)
        if inside.any():
            return np.asarray(inside)
    return none


def _readings(ends: list[int], bits: int, bits_stored: int, signed: bool) -> Iterator[tuple[int, int]]:
    """Ranges that may be meant by two values of 16 bits, the likeliest first."""
    # As numbers of the pixels' type; of pixels of 8 bits only what their bits, extended either way, can be.
    if all(-(2 ** (bits - 1)) <= end < 2**bits or end - 2**16 >= -(2 ** (bits - 1)) for end in ends):
        yield _sorted([_wrapped(end, bits, signed) for end in ends])
    if bits > 16:  # of 16 bits, of the pixels' sign
        yield _sorted([_wrapped(end, 16, signed) for end in ends])
    if signed and bits_stored < bits and all(0 <= end < 2**bits_stored for end in ends):
        yield _sorted([_wrapped(end, bits_stored, signed) for end in ends])  # without what extends the sign


def _wrapped(value: int, bits: int, signed: bool) -> int:
    value %= 2**bits
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


def _sorted(ends: list[int]) -> tuple[int, int]:
    return min(ends), max(ends)
