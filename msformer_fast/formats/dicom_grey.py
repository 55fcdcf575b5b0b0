"""Stored values of a DICOM frame to grey: modality, window or table, and what cannot be read of either left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.formats.dicom_header import Header
from msformer_fast.formats.dicom_numbers import described, numbers
from msformer_fast.formats.grey import between, extent, look_up, unit
from msformer_fast.formats.lookup_table import grey_table

Array = NDArray[Any]
Notes = dict[str, None]

_RESCALE = "Rescale Slope and Intercept"
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


class WindowError(ValueError):
    """The window leaves nothing of the values."""


def grey(
    stored: Array,
    header: Header,
    index: int,
    window: tuple[float, float] | None,
    padding: NDArray[np.bool_] | None,
    name: str,
    notes: Notes,
) -> NDArray[np.float32]:
    """(H, W) in [0, 1], 0 is black.

    Args:
        stored: (H, W).
        header, index: of the frame.
        window: (centre, width) in place of the file's.
        padding: (H, W), what is none of the image; black.
        name: for messages.
        notes: sentences about what was left out are added.

    Raises:
        InputError: a window is given, but the units that it is in are not known.
        WindowError: all values are beyond the window, the given one or the file's.
    """
    values, scaled = _modality(stored, header, index, notes)
    kept = values if padding is None else values[~padding]
    frame = None
    if window is not None:
        if not scaled:
            raise InputError(f"{name}: its {_RESCALE} are no numbers, so no window can be applied; leave it out")
        frame = between(values, window[0] - window[1] / 2, window[0] + window[1] / 2)
    elif scaled:
        frame = _voi(values, header, index, notes)
    if frame is None:
        frame = between(values, *extent(kept))
    elif _constant(frame if padding is None else frame[~padding]) and not _constant(kept):
        raise WindowError
    if header.colours == "MONOCHROME1" and frame.any():  # a frame without contrast stays black
        frame = 1 - frame
    if padding is not None:
        frame[padding] = 0
    return frame


def _constant(values: Array) -> bool:
    low, high = extent(values)
    return low == high


def _group(header: Header, index: int, sequence: str) -> Any:
    """The item of a functional group of this frame, of all frames, or the header itself."""
    frames = header.dataset.get("PerFrameFunctionalGroupsSequence")
    shared = header.dataset.get("SharedFunctionalGroupsSequence")
    for groups in ([frames[index]] if frames and index < len(frames) else [], shared or []):
        for group in groups:
            if group.get(sequence):
                return group[sequence].value[0]
    return header.dataset


def _modality(stored: Array, header: Header, index: int, notes: Notes) -> tuple[Array, bool]:
    """Values in the units of windows, and whether they are: not where the rescale cannot be read."""
    table = header.dataset.get("ModalityLUTSequence")
    if table:
        entries, first, _ = grey_table(table[0], 0)
        return look_up(stored, entries, first), True
    group = _group(header, index, "PixelValueTransformationSequence")
    slope, intercept = (numbers(group, keyword)[:1] for keyword in ("RescaleSlope", "RescaleIntercept"))
    if not slope or not intercept:
        return stored, True
    if not (math.isfinite(slope[0]) and math.isfinite(intercept[0])):
        notes[f"{_RESCALE} are no numbers: they were left out, and the window with them"] = None
        return stored, False
    with np.errstate(all="ignore"):
        return np.asarray(stored.astype(np.float64) * slope[0] + intercept[0]), True


def _voi(values: Array, header: Header, index: int, notes: Notes) -> NDArray[np.float32] | None:
    """Through the first VOI table or window; ``None`` where there is none."""
    from pydicom import Dataset
    from pydicom.pixels.processing import apply_windowing

    group = _group(header, index, "FrameVOILUTSequence")
    tables = group.get("VOILUTSequence")
    if tables:
        try:
            entries, first, white = grey_table(tables[0], extent(values)[0])
        except Exception:  # whatever a table can lack
            notes["VOI LUT Sequence holds no table: it was left out"] = None
        else:
            return between(look_up(values, entries, first), 0, white)
    function = _function(group, notes)
    found = _window(group, function, notes)
    if found is None:
        return None
    of_window = Dataset()
    of_window.PhotometricInterpretation = "MONOCHROME2"
    of_window.BitsStored, of_window.PixelRepresentation = 1, 0  # so that the range of its result is [0, 1]
    of_window.WindowCenter, of_window.WindowWidth = found
    of_window.VOILUTFunction = function
    with np.errstate(all="ignore"):
        return unit(apply_windowing(values, of_window))


def _function(group: Any, notes: Notes) -> str:
    """How the window is applied; linear where nothing, or nothing known, is said."""
    value = group.get("VOILUTFunction") or _FUNCTIONS[0]
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    function = "_".join(text.upper().replace("_", " ").strip("\0 ").split())
    if function in _FUNCTIONS:
        return function
    notes[f"{described('VOILUTFunction')} is none that is known: the window was taken as linear"] = None
    return _FUNCTIONS[0]


def _window(group: Any, function: str, notes: Notes) -> tuple[float, float] | None:
    """Centre and width of the first window that is one."""
    found = [numbers(group, keyword) for keyword in ("WindowCenter", "WindowWidth")]
    for keyword, values in zip(("WindowCenter", "WindowWidth"), found, strict=True):
        if any(map(math.isnan, values)):
            notes[f"{described(keyword)} is no number: it was left out"] = None
    for centre, width in zip(*found, strict=False):
        if math.isfinite(centre) and math.isfinite(width) and width > 0 and (function != "LINEAR" or width >= 1):
            return centre, width
    return None
