"""DICOM numbers that are written badly, windows that are none, and palettes in segments: read, or left out and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast.formats import open_image
from msformer_fast.formats.lookup_table import expand_segments

from . import medical_samples as samples
from .image_samples import refused

pydicom = pytest.importorskip("pydicom")
from pydicom.dataelem import RawDataElement  # noqa: E402
from pydicom.pixels.processing import apply_color_lut  # noqa: E402
from pydicom.tag import Tag  # noqa: E402

SIGNED = samples.SIGNED


def raw(ds: Any, keyword: str, vr: str, value: bytes) -> Any:
    """Set an element to bytes as they stand."""
    tag = Tag(keyword)
    ds._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return ds


def windowed(**more: Any) -> Any:
    values = {"WindowCenter": 600, "WindowWidth": 801, "RescaleIntercept": 0, "RescaleSlope": 1}
    return samples.image(SIGNED, **(values | more))


def by_range(values: np.ndarray = SIGNED) -> np.ndarray:
    return ((values.astype(float) - values.min()) / (int(values.max()) - int(values.min())))[:, :, None]


def by_window(centre: float, width: float, values: np.ndarray = SIGNED) -> np.ndarray:
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)[:, :, None]


def close(file: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(file.read(0), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "expected"),
    [
        ("WindowCenter", "DS", b"600,5 ", by_window(600.5, 801)),
        ("WindowCenter", "DS", b"600,5\\1,5 ", by_window(600.5, 801)),
        ("WindowCenter", "DS", b"6,005E2 ", by_window(600.5, 801)),
        ("WindowCenter", "DS", b" +600 \0", by_window(600, 801)),
        ("WindowCenter", "LO", b"600,5 ", by_window(600.5, 801)),
        ("WindowCenter", "FD", np.array(600.5).tobytes(), by_window(600.5, 801)),
        ("WindowCenter", "SS", b"\x58\x02", by_window(600, 801)),
        ("WindowWidth", "DS", b"500,25", by_window(600, 500.25)),
        ("RescaleSlope", "DS", b"0,5 ", by_window(600, 801, SIGNED * 0.5)),
        ("RescaleIntercept", "DS", b"-100,5", by_window(600, 801, SIGNED - 100.5)),
        ("VOILUTFunction", "CS", b"linear\0", by_window(600, 801)),
        ("VOILUTFunction", "CS", b"LINEAR EXACT", np.clip((SIGNED - 600) / 801 + 0.5, 0, 1)[:, :, None]),
        ("VOILUTFunction", "CS", b"Sigmoid ", 1 / (1 + np.exp(-4 * (SIGNED[:, :, None] - 600.0) / 801))),
    ],
)
def test_mended_without_a_word(tmp_path: Path, keyword: str, vr: str, value: bytes, expected: np.ndarray) -> None:
    file = open_image(samples.write(tmp_path / "a.dcm", raw(windowed(), keyword, vr, value)))
    close(file, expected)
    assert file.notes == ()


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "expected", "note"),
    [
        ("WindowCenter", "DS", b"N/A ", by_range(), "Window Center is no number: it was left out"),
        ("WindowCenter", "DS", b"1.000,5 ", by_range(), "Window Center is no number"),
        ("WindowCenter", "DS", b"6,0,0 ", by_range(), "Window Center is no number"),
        ("WindowWidth", "DS", b"zebra ", by_range(), "Window Width is no number"),
        ("WindowWidth", "FD", np.array(np.nan).tobytes(), by_range(), "Window Width is no number"),
        ("WindowCenter", "DS", b"zebra\\700 ", by_window(700, 300), "Window Center is no number"),
        ("VOILUTFunction", "CS", b"OTHER ", by_window(600, 801), "VOI LUT Function is none that is known"),
        ("RescaleSlope", "DS", b"N/A ", by_range(), "Rescale Slope and Intercept are no numbers: they were left out"),
        ("RescaleIntercept", "DS", b"zebra ", by_range(), "Rescale Slope and Intercept are no numbers"),
    ],
)
def test_left_out_with_a_note(
    tmp_path: Path, keyword: str, vr: str, value: bytes, expected: np.ndarray, note: str
) -> None:
    ds = windowed(WindowWidth=[801, 300]) if b"\\" in value else windowed()
    file = open_image(samples.write(tmp_path / "a.dcm", raw(ds, keyword, vr, value)))
    close(file, expected)
    close(file, expected)
    assert len(file.notes) == 1, "once, however often it is read"
    assert note in file.notes[0] and not samples.leaks(file.notes[0])


def test_a_window_cannot_be_given_in_units_that_are_not_known(tmp_path: Path) -> None:
    path = samples.write(tmp_path / "a.dcm", raw(windowed(), "RescaleSlope", "DS", b"N/A "))
    refused(open_image(path, window=(1, 2)).read, 0, match="its Rescale Slope and Intercept are no numbers")


def test_a_voi_table_that_is_none(tmp_path: Path) -> None:
    for table in (samples.item(), samples.item(LUTDescriptor=[9, 0, 8], LUTData=[1, 2])):
        if "LUTData" in table:
            table["LUTData"].VR = "US"
        file = open_image(samples.write(tmp_path / "a.dcm", windowed(VOILUTSequence=[table])))
        close(file, by_window(600, 801))
        assert file.notes == ("VOI LUT Sequence holds no table: it was left out",)


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "match"),
    [
        ("NumberOfFrames", "IS", b"1A", "its Number of Frames is no whole number"),
        ("NumberOfFrames", "IS", b"1,5 ", "its Number of Frames is no whole number"),
        ("Rows", "LO", b"zebra ", "its Rows is no whole number"),
        ("BitsStored", "US", b"\x11\0", "17 bits stored do not fit 16 bits allocated"),
        ("BitsStored", "US", b"\0\0", "0 bits stored do not fit"),
        ("PixelRepresentation", "US", b"\x02\0", "its Pixel Representation is neither 0 nor 1"),
        ("BitsAllocated", "US", b"", "lacks Bits Allocated"),
        ("PixelRepresentation", None, b"", "lacks Pixel Representation"),
        ("BitsStored", None, b"", "lacks Bits Stored"),
    ],
)
def test_what_pixels_cannot_be_read_without(tmp_path: Path, keyword: str, vr: str, value: bytes, match: str) -> None:
    ds = windowed()
    if vr is None:
        ds.pop(keyword)
    else:
        raw(ds, keyword, vr, value)
    refused(open_image, samples.write(tmp_path / "a.dcm", ds), match=match)


@pytest.mark.parametrize(("vr", "value"), [("IS", b"1 "), ("IS", b"1.0 "), ("IS", b""), ("IS", b"0 "), ("US", b"\1\0")])
def test_one_frame_however_it_is_written(tmp_path: Path, vr: str, value: bytes) -> None:
    file = open_image(samples.write(tmp_path / "a.dcm", raw(windowed(), "NumberOfFrames", vr, value)))
    assert file.frames == 1
    close(file, by_window(600, 801))


def test_of_every_frame(tmp_path: Path) -> None:
    ds = samples.enhanced(np.stack([SIGNED, SIGNED]), [(600, 801), (0, 1001)])
    raw(ds.PerFrameFunctionalGroupsSequence[1].FrameVOILUTSequence[0], "WindowCenter", "DS", b"N/A ")
    file = open_image(samples.write(tmp_path / "a.dcm", ds))
    np.testing.assert_allclose(file.read(1), by_range(), atol=2e-6)
    close(file, by_window(600, 801))
    assert file.notes == ("Window Center is no number: it was left out",)


def test_a_window_beyond_all_values(tmp_path: Path) -> None:
    path = samples.write(tmp_path / "a.dcm", windowed(WindowCenter=9000, WindowWidth=10))
    refused(open_image(path).read, 0, match="all pixels are equal, since the window lies beyond all of the image's val")
    refused(open_image(path, window=(-9000, 10)).read, 0, match="the window lies beyond")
    assert open_image(path, window=(0, 10)).read(0).any()
    ds = samples.enhanced(np.stack([SIGNED, SIGNED, SIGNED * 0]), [(600, 801), (9000, 10), (0, 10)])
    file = open_image(samples.write(tmp_path / "b.dcm", ds))
    assert file.read(0).any() and not file.notes
    assert np.ptp(file.read(2)) == 0 and not file.notes, "a frame without contrast is another matter"
    assert not file.read(1).any()
    assert file.notes == ("a window lies beyond all values of a frame, which has no contrast then",)


# ---- palettes


RAMP = [0, 1, 0, 1, 255, 65280]  # one value, then a line of 255 more


def in_segments(words: Any, bits: int = 16, length: int = 256, first: int = 0, **more: Any) -> Any:
    table = np.asarray(words, "<u2" if bits == 16 else "u1").tobytes()
    values: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        values[f"{colour}PaletteColorLookupTableDescriptor"] = [length, first, bits]
        values[f"Segmented{colour}PaletteColorLookupTableData"] = table
    return samples.image(more.pop("pixels", samples.GREY8), "PALETTE COLOR", **values, **more)


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        (RAMP, 16),
        ([0, 3, 5, 60000, 9, 1, 253, 333], 16),
        ([0, 2, 0, 100, 1, 100, 65535, 0, 2, 7, 7, 1, 152, 20], 16),
        ([0, 1, 0, 1, 255, 255], 8),
        ([0, 2, 9, 200, 1, 100, 5, 1, 54, 250, 2, 1, 4, 0, 0, 0], 8),
    ],
)
def test_segments_as_pydicom_expands_them(tmp_path: Path, words: list[int], bits: int) -> None:
    ds = in_segments(words, bits)
    frame = open_image(samples.write(tmp_path / "a.dcm", ds)).read(0)
    expected = apply_color_lut(samples.GREY8, pydicom.dcmread(tmp_path / "a.dcm")).astype(float)
    np.testing.assert_allclose(frame, expected / (2**bits - 1), atol=1e-6)


def test_segments_that_are_used_once_more() -> None:
    """The line of two entries, at byte 6 of words of 16 bits and at byte 3 of those of 8, from where the table is."""
    for dtype, offset in ((np.uint16, [6, 0]), (np.uint8, [3, 0, 0, 0])):
        words = np.asarray([0, 1, 100, 1, 2, 120, 0, 1, 20, 2, 1, *offset], dtype)
        assert expand_segments(words, 6).tolist() == [100, 110, 120, 20, 70, 120]


@pytest.mark.parametrize("words", [[0, 1, 0], [1, 255, 9], [3, 1, 0], [2, 1, 0, 0], [0, 1, 0, 1, 65535, 5], [], [0, 0]])
def test_segments_that_are_damaged(tmp_path: Path, words: list[int]) -> None:
    path = samples.write(tmp_path / "a.dcm", in_segments(words))
    refused(open_image(path).read, 0, match="damaged or truncated DICOM")


def test_segments_do_not_grow_without_bounds() -> None:
    for words in ([0, 1, 0] + [1, 65535, 9] * 20000, [0, 1, 0, 1, 60000, 5] + [2, 2, 0, 0] * 30000):
        with pytest.raises(ValueError, match="another length"):
            expand_segments(np.asarray(words, np.uint16), 65536)


@pytest.mark.parametrize("first", [0, 100, -200])
def test_palettes_of_any_depth_and_length(tmp_path: Path, first: int) -> None:
    """Entries of 8 bits for values of 16, and in words of 16; values beyond the table take its ends."""
    pixels = np.random.default_rng(8).integers(-500, 4200, (40, 44), dtype=np.int16)
    table = np.random.default_rng(9).integers(0, 256, 4096)
    expected = table[np.clip(pixels.astype(int) - first, 0, 4095)][:, :, None].repeat(3, axis=2) / 255
    for dtype, bits in (("u1", 8), ("<u2", 8), ("<u2", 16)):
        data = samples.palette(*[table.astype(dtype).tobytes()] * 3)
        for colour in ("Red", "Green", "Blue"):
            data[f"{colour}PaletteColorLookupTableDescriptor"] = [4096, first, bits]
        ds = samples.image(pixels, "PALETTE COLOR", **data)
        np.testing.assert_allclose(open_image(samples.write(tmp_path / "a.dcm", ds)).read(0), expected, atol=1e-6)
