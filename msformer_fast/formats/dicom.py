"""DICOM images, of one frame or many, as a viewer shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.bounded_file import BoundedFile
from msformer_fast.errors import InputError
from msformer_fast.files import show
from msformer_fast.formats.codestream import stated_size
from msformer_fast.formats.dicom_header import COLOUR, PALETTE, Header, guarded, known_name, read_header
from msformer_fast.formats.grey import between, extent, look_up, unit
from msformer_fast.formats.image_file import ImageFile

Array = NDArray[Any]

# What the transfer syntaxes of JPEG, JPEG-LS and JPEG 2000 begin with.
_JPEG = "1.2.840.10008.1.2.4."


class DicomFile(ImageFile):
    """A DICOM image.

    Grey frames go through the modality table or the rescale, then through the first VOI table or window, of the
    frame's own functional groups where it has them. Without a window (or with one that has no width) they go from the
    frame's least value to its largest. What is declared as padding is black, and MONOCHROME1 is inverted. Palettes
    and YBR become RGB. Overlays, ICC profiles and presentation states are not applied.

    Args:
        path: of the file.
        window: (centre, width) in units after the rescale, in place of the file's own.
        max_pixels: that a frame may have.

    Raises:
        InputError: not an image, or one that cannot be read; the message holds no value of the header but sizes.

    Source:
        DICOM PS3.3, C.7.6.3, C.11.1 and C.11.2.
    """

    def __init__(self, path: Path, *, window: tuple[float, float] | None = None, max_pixels: int = 200_000_000) -> None:
        name = show(path)
        with guarded(name):
            self._header = read_header(path, max_pixels)
            _check_decoder(self._header, name)
        self.path = path
        self.kind = "dicom"
        self.frames = self._header.frames
        self.is_volume = self.frames > 1
        self._window = window

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of every frame."""
        return self._header.shape

    def read(self, index: int) -> NDArray[np.float32]:
        """See :meth:`ImageFile.read`: (H, W, 1) of grey, (H, W, 3) of colour; only this frame is decoded."""
        self._check_index(index)
        with guarded(show(self.path)):
            stored = self._decode(index)
            if self._header.colours in COLOUR:
                frame = _colour(stored, int(self._header.options["bits_stored"]))
            elif self._header.colours == PALETTE:
                frame = _palette(stored, self._header.dataset)
            else:
                frame = _grey(stored, self._header, index, self._window)[:, :, None]
        return self._checked(frame)

    def _decode(self, index: int) -> Array:
        from pydicom.pixels.decoders.base import get_decoder

        header = self._header
        with BoundedFile(self.path) as file:
            if header.syntax.is_encapsulated:
                file.seek(header.offset)
                _check_codestream(file, header, index)
            file.seek(header.offset)
            stored, after = get_decoder(header.syntax).as_array(file, index=index, **header.options)
        colours = after["photometric_interpretation"]
        if header.colours in COLOUR and colours not in ("RGB", "YBR_ICT", "YBR_RCT"):  # those two are of a codestream
            raise ValueError("not RGB")
        if stored.shape != ((*self.shape, 3) if header.colours in COLOUR else self.shape):
            raise ValueError("another shape")
        return np.asarray(stored)


def _check_decoder(header: Header, name: str) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = known_name(str(header.syntax), "its transfer syntax")
    try:
        decoder = get_decoder(header.syntax)
    except NotImplementedError:
        raise InputError(f"{name}: {syntax} is not read; save it uncompressed") from None
    if not decoder.is_available:
        plugins = "; ".join(decoder.missing_dependencies)
        raise InputError(f"{name}: {syntax} needs one of the packages: {plugins}; or save it uncompressed")


def _check_codestream(file: BoundedFile, header: Header, index: int) -> None:
    """A codestream says its own size, and decoders reserve memory for it."""
    from pydicom.encaps import get_frame

    if not header.syntax.startswith(_JPEG):
        return
    offsets = header.options.get("extended_offsets")
    data = get_frame(file, index, number_of_frames=header.frames, extended_offsets=offsets)
    if stated_size(data) != header.shape:
        raise ValueError("another size")


def _colour(stored: Array, bits: int) -> NDArray[np.float32]:
    return between(stored, 0, 2**bits - 1)


def _palette(stored: Array, dataset: Any) -> NDArray[np.float32]:
    from pydicom.pixels.processing import apply_color_lut

    if "RedPaletteColorLookupTableData" not in dataset:
        raise ValueError("no table, or a segmented one")
    colours = apply_color_lut(stored, dataset)[:, :, :3]
    return between(colours, 0, np.iinfo(colours.dtype).max)


def _grey(stored: Array, header: Header, index: int, window: tuple[float, float] | None) -> NDArray[np.float32]:
    """(H, W) in [0, 1], 0 is black."""
    padding = _padding(stored, header.dataset)
    values = _modality(stored, header, index)
    frame = None
    if window is not None:
        frame = between(values, window[0] - window[1] / 2, window[0] + window[1] / 2)
    else:
        frame = _voi(values, header, index)
    if frame is None:
        frame = between(values, *extent(values if padding is None else values[~padding]))
    if header.colours == "MONOCHROME1" and frame.any():  # a frame without contrast stays black
        frame = 1 - frame
    if padding is not None:
        frame[padding] = 0
    return frame


def _padding(stored: Array, dataset: Any) -> NDArray[np.bool_] | None:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    value = int(value)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else int(limit)))
    inside = (stored >= low) & (stored <= high)
    return np.asarray(inside) if inside.any() and not inside.all() else None


def _group(header: Header, index: int, sequence: str) -> Any:
    """The item of a functional group of this frame, of all frames, or the header itself."""
    frames = header.dataset.get("PerFrameFunctionalGroupsSequence")
    shared = header.dataset.get("SharedFunctionalGroupsSequence")
    for groups in ([frames[index]] if frames and index < len(frames) else [], shared or []):
        for group in groups:
            if group.get(sequence):
                return group[sequence].value[0]
    return header.dataset


def _modality(stored: Array, header: Header, index: int) -> Array:
    table = header.dataset.get("ModalityLUTSequence")
    if table:
        entries, first, _ = _table(table[0], header, 0)
        return look_up(stored, entries, first)
    group = _group(header, index, "PixelValueTransformationSequence")
    slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    with np.errstate(all="ignore"):
        return np.asarray(stored.astype(np.float64) * float(slope) + float(intercept))


def _voi(values: Array, header: Header, index: int) -> NDArray[np.float32] | None:
    """Through the first VOI table or window; ``None`` where there is none."""
    from pydicom import Dataset
    from pydicom.pixels.processing import apply_windowing

    group = _group(header, index, "FrameVOILUTSequence")
    tables = group.get("VOILUTSequence")
    if tables:
        entries, first, white = _table(tables[0], header, extent(values)[0])
        return between(look_up(values, entries, first), 0, white)
    centre, width = _first(group.get("WindowCenter")), _first(group.get("WindowWidth"))
    function = str(group.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    of_window = Dataset()
    of_window.PhotometricInterpretation = "MONOCHROME2"
    of_window.BitsStored, of_window.PixelRepresentation = 1, 0  # so that the range of its result is [0, 1]
    of_window.WindowCenter, of_window.WindowWidth, of_window.VOILUTFunction = centre, width, function
    with np.errstate(all="ignore"):
        return unit(apply_windowing(values, of_window))


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    number = float(value if isinstance(value, (str, float, int)) else value[0])
    return number if np.isfinite(number) else None


def _table(item: Any, header: Header, least: float) -> tuple[Array, int, int]:
    """Entries of a lookup table, the value of its first one, and its white; ``least`` of the values it maps."""
    length, first, bits = (int(each) for each in item.LUTDescriptor)
    length = length or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        little = header.dataset.original_encoding[1]
        entries = np.frombuffer(data, np.uint8 if len(data) < 2 * length else "<u2" if little else ">u2")[:length]
    else:
        entries = np.atleast_1d(np.asarray(data, np.int64))[:length]
    if len(entries) < length or not 1 <= bits <= 16:
        raise ValueError("a table of another length or depth")
    if first >= 2**15 and least < 0:  # written as signed, read as unsigned
        first -= 2**16
    return entries, first, 2**bits - 1
