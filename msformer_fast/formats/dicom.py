"""DICOM images, of one frame or many, as a viewer shows them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msformer_fast.errors import InputError
from msformer_fast.files import show
from msformer_fast.formats import codestream
from msformer_fast.formats.bounded_file import BoundedFile
from msformer_fast.formats.dicom_grey import WindowError, grey
from msformer_fast.formats.dicom_header import COLOUR, PALETTE, Header, guarded, known_name, read_header
from msformer_fast.formats.dicom_padding import find_padding
from msformer_fast.formats.grey import LUNG_NOTE, LUNG_WINDOW, between
from msformer_fast.formats.image_file import ImageFile
from msformer_fast.formats.lookup_table import apply_palette

Array = NDArray[Any]

# What the transfer syntaxes of JPEG, JPEG-LS and JPEG 2000 begin with.
_JPEG = "1.2.840.10008.1.2.4."
# JPEG by the cosine transform, of 8 bits and of up to 12.
_BASELINE, _EXTENDED = f"{_JPEG}50", f"{_JPEG}51"


class DicomFile(ImageFile):
    """A DICOM image.

    Grey frames go through the modality table or the rescale, then through the first VOI table or window, of the
    frame's own functional groups where it has them. Without a window (or with one that has no width) they go from the
    frame's least value to its largest. What cannot be read of window or rescale is left out, with a note. What is
    declared as padding is black, and MONOCHROME1 is inverted. Palettes and YBR become RGB. Overlays,
    ICC profiles and presentation states are not applied.

    Args:
        path: of the file.
        window: (centre, width) in units after the rescale, in place of the file's own.
        lungs: without a window, show Hounsfield units through :data:`msformer_fast.formats.grey.LUNG_WINDOW`, and say
            so in the notes.
        max_pixels: that a frame may have.

    Raises:
        InputError: not an image, one that cannot be read, or a decoder is missing; the message holds no value of the
            header but sizes.

    Source:
        DICOM PS3.3, C.7.6.3, C.11.1 and C.11.2.
    """

    def __init__(
        self,
        path: Path,
        *,
        window: tuple[float, float] | None = None,
        lungs: bool = False,
        max_pixels: int = 200_000_000,
    ) -> None:
        name = show(path)
        with guarded(name):
            self._header = read_header(path, max_pixels)
            _check_decoder(self._header, name)
            _check_precision(path, self._header, name)
        self.path = path
        self.kind = "dicom"
        self.frames = self._header.frames
        self.is_volume = self.frames > 1
        self._window = window
        self._notes: dict[str, None] = {}
        if lungs and window is None and self._header.in_hounsfield_units:
            self._window = LUNG_WINDOW
            self._notes[LUNG_NOTE] = None

    @property
    def notes(self) -> tuple[str, ...]:
        """See :attr:`ImageFile.notes`."""
        return tuple(self._notes)

    @property
    def modality(self) -> str | None:
        """See :attr:`ImageFile.modality`."""
        return self._header.modality

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of every frame."""
        return self._header.shape

    def read(self, index: int) -> NDArray[np.float32]:
        """See :meth:`ImageFile.read`: (H, W, 1) of grey, (H, W, 3) of colour; only this frame is decoded."""
        self._check_index(index)
        name = show(self.path)
        with guarded(name):
            stored, bits = self._decode(index)
            if self._header.colours in COLOUR:
                frame = between(stored, 0, 2**bits - 1)
            elif self._header.colours == PALETTE:
                frame = self._through_palette(stored, name)
            else:
                frame = self._grey(stored, index, name)
        return self._checked(frame)

    def _grey(self, stored: Array, index: int, name: str) -> NDArray[np.float32]:
        header = self._header
        padding = find_padding(
            stored, header.dataset, header.options, lambda: self._decode(index, correct_unused_bits=False)[0]
        )
        try:
            return grey(stored, header, index, self._window, padding, name, self._notes)[:, :, None]
        except WindowError:
            if not self.is_volume:
                raise InputError(
                    f"{name}: all pixels are equal, since the window lies beyond all of the image's values; give "
                    "another with --window"
                ) from None
            self._notes["a window lies beyond all values of a frame, which has no contrast then"] = None
            return np.zeros((*stored.shape, 1), np.float32)

    def _through_palette(self, stored: Array, name: str) -> NDArray[np.float32]:
        keyword = "RedPaletteColorLookupTableData"
        if keyword not in self._header.dataset and f"Segmented{keyword}" not in self._header.dataset:
            raise InputError(f"{name}: damaged or truncated DICOM file: it lacks the tables of its palette")
        return apply_palette(stored, self._header.dataset)

    def _decode(self, index: int, **more: Any) -> tuple[Array, int]:
        """Stored values, (H, W) or (H, W, 3) in RGB, and how many bits of each are used."""
        from pydicom.pixels.decoders.base import get_decoder

        header = self._header
        options = header.options | more
        decoder = get_decoder(header.syntax)
        with BoundedFile(self.path) as file:
            if header.syntax.startswith(_JPEG):
                stream = _codestream(file, header, index)
                _check_codestream(stream, header, show(self.path))
                if header.syntax in (_BASELINE, _EXTENDED) and codestream.precision(stream) == 8:
                    if header.colours in COLOUR and codestream.names_its_colours(stream):
                        return _by_pillow(stream), 8
                    # The stream's own depth counts (PS3.5, 8.2.1).
                    options |= {"bits_allocated": 8, "bits_stored": 8}
            file.seek(header.offset)
            try:
                stored, after = decoder.as_array(file, index=index, **options)
            except RuntimeError:  # of all decoders that are there
                if not (header.syntax.is_encapsulated and decoder.missing_dependencies):
                    raise
                raise InputError(
                    f"{show(self.path)}: damaged or truncated DICOM file, or {_named(header)} of a kind that needs "
                    f"another of the packages: {'; '.join(decoder.missing_dependencies)}"
                ) from None
        colours = after["photometric_interpretation"]
        if header.colours in COLOUR and colours not in ("RGB", "YBR_ICT", "YBR_RCT"):  # those two are of a codestream
            raise ValueError("not RGB")
        if stored.shape != ((*self.shape, 3) if header.colours in COLOUR else self.shape):
            raise ValueError("another shape")
        return np.asarray(stored), int(options.get("bits_stored", options["bits_allocated"]))


def _by_pillow(stream: bytes) -> Array:
    """(H, W, 3) of a JPEG whose colours are as it says; pydicom would convert them by the header, once more."""
    with Image.open(io.BytesIO(stream), formats=["JPEG"]) as picture:
        if picture.mode != "RGB":
            raise ValueError("not RGB")
        return np.asarray(picture)


def _named(header: Header) -> str:
    return known_name(str(header.syntax), "its transfer syntax")


def _check_decoder(header: Header, name: str) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(header.syntax)
    except NotImplementedError:
        raise InputError(f"{name}: {_named(header)} is not read; save it uncompressed") from None
    if not decoder.is_available:
        plugins = "; ".join(decoder.missing_dependencies)
        raise InputError(f"{name}: {_named(header)} needs one of the packages: {plugins}; or save it uncompressed")


def _check_precision(path: Path, header: Header, name: str) -> None:
    """Raises InputError where JPEG of 12 bits meets Pillow alone, which reads 8."""
    from pydicom.pixels.decoders.base import get_decoder

    if header.syntax != _EXTENDED:
        return
    decoder = get_decoder(header.syntax)
    with BoundedFile(path) as file:
        depth = codestream.precision(_codestream(file, header, 0))
    if depth is not None and depth > 8 and decoder.available_plugins == ("pillow",):
        plugins = "; ".join(decoder.missing_dependencies)
        raise InputError(
            f"{name}: {_named(header)} of {depth} bits needs one of the packages: {plugins}; or save it uncompressed"
        )


def _codestream(file: BoundedFile, header: Header, index: int) -> bytes:
    """The compressed bytes of a frame."""
    from pydicom.encaps import get_frame

    file.seek(header.offset)
    offsets = header.options.get("extended_offsets")
    return get_frame(file, index, number_of_frames=header.frames, extended_offsets=offsets)


def _check_codestream(stream: bytes, header: Header, name: str) -> None:
    """A codestream says its own size, and decoders reserve memory for it."""
    if codestream.stated_size(stream) != header.shape:
        raise ValueError("another size")
    samples, stated = int(header.options["samples_per_pixel"]), codestream.components(stream)
    if stated not in (None, samples):
        raise InputError(
            f"{name}: its compressed pixels have {stated} samples each and its header says {samples}; save it again"
        )
