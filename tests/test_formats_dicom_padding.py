"""Padding of DICOM images: compared as the pixels' own type, whatever the VR that it is declared in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast.formats import open_image

from . import medical_samples as samples

pydicom = pytest.importorskip("pydicom")
from pydicom.pixels import get_decoder  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless  # noqa: E402

BODY = np.random.default_rng(5).integers(200, 1000, (40, 44))
VALUE, LIMIT = 0x00280120, 0x00280121
FLOAT, DOUBLE, FLOAT_LIMIT, DOUBLE_LIMIT = 0x00280122, 0x00280123, 0x00280124, 0x00280125

CASES: dict[str, tuple[type, float, list[tuple[int, str, Any]]]] = {
    "signed SS": (np.int16, -2000, [(VALUE, "SS", -2000)]),
    "signed US": (np.int16, -2000, [(VALUE, "US", 63536)]),
    "signed OW": (np.int16, -2000, [(VALUE, "OW", b"\x30\xf8")]),
    "signed UN": (np.int16, -2000, [(VALUE, "UN", b"\x30\xf8")]),
    "signed IS": (np.int16, -2000, [(VALUE, "IS", -2000)]),
    "signed least": (np.int16, -32768, [(VALUE, "US", 32768)]),
    "unsigned SS": (np.uint16, 65535, [(VALUE, "SS", -1)]),
    "unsigned US": (np.uint16, 63536, [(VALUE, "US", 63536)]),
    "unsigned SS negative": (np.uint16, 63536, [(VALUE, "SS", -2000)]),
    "8 bits": (np.uint8, 255, [(VALUE, "SS", -1)]),
    "8 bits US": (np.uint8, 255, [(VALUE, "US", 65535)]),
    "8 bits signed": (np.int8, -128, [(VALUE, "US", 128)]),
    "8 bits signed US": (np.int8, -128, [(VALUE, "US", 65408)]),
    "32 bits": (np.int32, -2000, [(VALUE, "SS", -2000)]),
    "32 bits US": (np.int32, -2000, [(VALUE, "US", 63536)]),
    "32 bits unsigned": (np.uint32, 2**32 - 1, [(VALUE, "SS", -1)]),
    "range SS US": (np.int16, -2000, [(VALUE, "SS", -3000), (LIMIT, "US", 63536)]),
    "range US SS": (np.int16, -2000, [(VALUE, "US", 62536), (LIMIT, "SS", -1900)]),
    "range downwards": (np.int16, -2000, [(VALUE, "SS", -1900), (LIMIT, "US", 62536)]),
    "range US US": (np.int16, -2000, [(VALUE, "US", 62536), (LIMIT, "US", 63636)]),
    "range unsigned": (np.uint16, 65000, [(VALUE, "SS", -1), (LIMIT, "SS", -1000)]),
    "float": (np.float32, -1e30, [(FLOAT, "FL", -1e30)]),
    "float FD": (np.float32, -1e30, [(FLOAT, "FD", -1e30)]),
    "float in the double's place": (np.float32, -1e30, [(DOUBLE, "FD", -1e30)]),
    "float range": (np.float32, -1e30, [(FLOAT, "FL", -2e30), (FLOAT_LIMIT, "FL", -1e30)]),
    "float range downwards": (np.float32, 3e30, [(FLOAT, "FL", 4e30), (FLOAT_LIMIT, "FL", 2e30)]),
    "float infinite": (np.float32, np.inf, [(FLOAT, "FL", np.inf)]),
    "float no number": (np.float32, np.nan, [(FLOAT, "FL", np.nan)]),
    "float by the integers' attribute": (np.float32, -2000, [(VALUE, "SS", -2000)]),
    "double": (np.float64, -1e300, [(DOUBLE, "FD", -1e300)]),
    "double FL": (np.float64, -1e30, [(DOUBLE, "FL", -1e30)]),
    "double in the float's place": (np.float64, -1e30, [(FLOAT, "FL", -1e30)]),
    "double range": (np.float64, -1e300, [(DOUBLE, "FD", -2e300), (DOUBLE_LIMIT, "FD", -1e299)]),
}


def padded(dtype: type, value: float, colours: str = "MONOCHROME2", **more: Any) -> tuple[Any, np.ndarray]:
    """An image whose first eight rows are padding, and what it should look like."""
    body = BODY if np.dtype(dtype).itemsize > 1 else BODY // 10
    pixels = body.astype(dtype)
    pixels[:8] = value
    inside = (body - body[8:].min()) / (body[8:].max() - body[8:].min())
    inside = inside if colours == "MONOCHROME2" else 1 - inside
    inside[:8] = 0
    return samples.image(pixels, colours, **more), inside[:, :, None]


def add(ds: Any, elements: list[tuple[int, str, Any]]) -> Any:
    for tag, vr, value in elements:
        ds[tag] = pydicom.DataElement(tag, vr, value)
    return ds


@pytest.mark.parametrize("colours", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("name", CASES)
def test_padding(tmp_path: Path, name: str, colours: str) -> None:
    dtype, value, elements = CASES[name]
    ds, expected = padded(dtype, value, colours)
    path = samples.write(tmp_path / "a.dcm", add(ds, elements))
    np.testing.assert_allclose(open_image(path).read(0), expected, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith(("UN", "OW", "IS"))])
def test_padding_in_big_endian(tmp_path: Path, name: str) -> None:
    dtype, value, elements = CASES[name]
    ds, expected = padded(dtype, value)
    width = np.dtype(dtype).itemsize
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword in ds and width > 1:
            ds[keyword].value = np.frombuffer(ds[keyword].value, f"<u{width}").byteswap().tobytes()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    ds.set_original_encoding(False, False)
    add(ds, elements).save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=False)
    np.testing.assert_allclose(open_image(tmp_path / "a.dcm").read(0), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_implicit_and_compressed(tmp_path: Path, dtype: type) -> None:
    ds, expected = padded(dtype, 63536 if dtype is np.uint16 else -2000)
    add(ds, [(VALUE, "US", 63536)])
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.save_as(tmp_path / "a.dcm", implicit_vr=True, little_endian=True)
    np.testing.assert_allclose(open_image(tmp_path / "a.dcm").read(0), expected, atol=1e-6)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.compress(RLELossless)
    np.testing.assert_allclose(open_image(samples.write(tmp_path / "b.dcm", ds)).read(0), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("signed", "raw", "declared"),
    [
        (True, 0xF830, 0xF830),  # the sign extended in both
        (True, 0x0830, 0x0830),  # in neither
        (True, 0xF830, 0x0830),
        (True, 0x0830, 0xF830),
        (False, 0x0830, 0x0830),
        (False, 0xF830, 0xF830),  # a value that 12 bits do not reach
    ],
)
def test_twelve_bits_in_sixteen(tmp_path: Path, signed: bool, raw: int, declared: int) -> None:
    pixels = BODY.astype(np.uint16)
    pixels[:8] = raw
    ds, expected = padded(np.uint16, 0)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, int(signed)
    ds.PixelData = pixels.tobytes()
    path = samples.write(tmp_path / "a.dcm", add(ds, [(VALUE, "US", declared)]))
    np.testing.assert_allclose(open_image(path).read(0), expected, atol=1e-6)


def test_a_value_that_twelve_bits_do_not_reach_hides_no_tissue(tmp_path: Path) -> None:
    pixels = np.where(BODY > 600, 0x0830, BODY).astype(np.uint16)
    ds = samples.image(pixels, bits=12)
    plain = open_image(samples.write(tmp_path / "a.dcm", ds)).read(0)
    path = samples.write(tmp_path / "b.dcm", add(ds, [(VALUE, "US", 0xF830)]))
    np.testing.assert_array_equal(open_image(path).read(0), plain)


def test_every_frame_and_one_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds, expected = padded(np.int16, -2000)
    frame = np.frombuffer(ds.PixelData, np.int16).reshape(40, 44)
    frames = samples.image(np.stack([frame, frame[::-1]]), NumberOfFrames=2)
    file = open_image(samples.write(tmp_path / "a.dcm", add(frames, [(VALUE, "US", 63536)])))
    decoder, asked = type(get_decoder(ExplicitVRLittleEndian)), []
    original = decoder.as_array
    monkeypatch.setattr(
        decoder, "as_array", lambda *args, **more: asked.append(more["index"]) or original(*args, **more)
    )
    np.testing.assert_allclose(file.read(1), expected[::-1], atol=1e-6)
    np.testing.assert_allclose(file.read(0), expected, atol=1e-6)
    assert asked == [1, 0]


def test_what_is_no_padding(tmp_path: Path) -> None:
    """Text, a value that no pixel has, one that all have, and colours."""
    plain = open_image(samples.write(tmp_path / "a.dcm", samples.image(BODY.astype(np.int16)))).read(0)
    for elements in ([(VALUE, "LO", "NONE")], [(VALUE, "SS", -5)], [(VALUE, "SS", 0), (LIMIT, "SS", 2000)]):
        path = samples.write(tmp_path / "a.dcm", add(samples.image(BODY.astype(np.int16)), elements))
        np.testing.assert_array_equal(open_image(path).read(0), plain)
    colour = open_image(samples.write(tmp_path / "b.dcm", add(samples.image(samples.RGB, "RGB"), [(VALUE, "US", 0)])))
    np.testing.assert_allclose(colour.read(0), samples.RGB / 255, atol=1e-6)
