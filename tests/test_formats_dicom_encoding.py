"""DICOM whose data are encoded otherwise than declared, and compressed colour: read as they are, or refused by name."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msformer_fast.formats import open_image

from . import medical_samples as samples
from .image_samples import refused

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.filebase import DicomBytesIO  # noqa: E402
from pydicom.filewriter import write_dataset, write_file_meta_info  # noqa: E402
from pydicom.pixels.processing import convert_color_space  # noqa: E402

SYNTAXES = {
    "implicit": (uid.ImplicitVRLittleEndian, True, True),
    "explicit": (uid.ExplicitVRLittleEndian, False, True),
    "big": (uid.ExplicitVRBigEndian, False, False),
}


def write_as(path: Path, ds: Any, declared: str | None, implicit: bool, little: bool) -> Path:
    """A file whose data set is encoded in one way, and says what it is told to."""
    head, body = DicomBytesIO(), DicomBytesIO()
    head.is_little_endian, head.is_implicit_VR = True, False
    body.is_little_endian, body.is_implicit_VR = little, implicit
    if declared is None:
        del ds.file_meta.TransferSyntaxUID
    else:
        ds.file_meta.TransferSyntaxUID = declared
    write_file_meta_info(head, ds.file_meta, enforce_standard=False)
    data = pydicom.Dataset(ds)
    data.set_original_encoding(implicit, little)
    write_dataset(body, data)
    path.write_bytes(bytes(128) + b"DICM" + head.getvalue() + body.getvalue())
    return path


@pytest.mark.parametrize("there", SYNTAXES)
@pytest.mark.parametrize("declared", [*SYNTAXES, None, "deflated"])
@pytest.mark.parametrize("kind", ["ct", "8 bits", "float", "frames"])
def test_what_is_there_counts(tmp_path: Path, kind: str, declared: str | None, there: str) -> None:
    _, implicit, little = SYNTAXES[there]
    ds = {
        "ct": lambda: samples.ct(),
        "8 bits": lambda: samples.image(samples.GREY8),
        "float": lambda: samples.image(samples.SIGNED.astype(np.float32)),
        "frames": lambda: samples.enhanced(np.stack([samples.SIGNED] * 2), [(40, 400), (0, 1000)]),
    }[kind]()
    expected = open_image(samples.write(tmp_path / "right.dcm", ds)).read(0)
    for keyword in ("PixelData", "FloatPixelData"):
        if keyword in ds and not little and kind != "8 bits":
            width = 4 if kind == "float" else 2
            ds[keyword].value = np.frombuffer(ds[keyword].value, f"<u{width}").byteswap().tobytes()
    says = {None: None, "deflated": uid.DeflatedExplicitVRLittleEndian}.get(declared) or (
        None if declared is None else SYNTAXES[declared][0]
    )
    path = write_as(tmp_path / "a.dcm", ds, says, implicit, little)
    if declared == "deflated" and there != "explicit":
        refused(open_image, path, match="Deflated .* is not read")
        return
    np.testing.assert_array_equal(open_image(path).read(0), expected)


def test_an_element_of_pixels_in_the_other_encoding(tmp_path: Path) -> None:
    """As of files that were put together: explicit up to the pixels, which are implicit, and the reverse."""
    expected = open_image(samples.write(tmp_path / "a.dcm", samples.ct())).read(0)
    length = samples.SIGNED.nbytes.to_bytes(4, "little")
    explicit, implicit = b"\xe0\x7f\x10\x00OW\0\0" + length, b"\xe0\x7f\x10\x00" + length
    data = (tmp_path / "a.dcm").read_bytes()
    assert data.count(explicit) == 1
    (tmp_path / "b.dcm").write_bytes(data.replace(explicit, implicit))
    np.testing.assert_array_equal(open_image(tmp_path / "b.dcm").read(0), expected)
    data = write_as(tmp_path / "c.dcm", samples.ct(), uid.ImplicitVRLittleEndian, True, True).read_bytes()
    assert data.count(implicit) == 1
    (tmp_path / "c.dcm").write_bytes(data.replace(implicit, explicit))
    np.testing.assert_array_equal(open_image(tmp_path / "c.dcm").read(0), expected)


def test_implicit_under_a_compressed_syntax(tmp_path: Path) -> None:
    ds = samples.image(samples.GREY16)
    expected = open_image(samples.write(tmp_path / "a.dcm", ds)).read(0)
    ds.compress(uid.RLELossless)
    for implicit in (False, True):
        write_as(tmp_path / "b.dcm", ds, uid.RLELossless, implicit, True)
        np.testing.assert_array_equal(open_image(tmp_path / "b.dcm").read(0), expected)


def test_compressed_or_not_against_the_syntax(tmp_path: Path) -> None:
    ds = samples.image(samples.GREY16)
    expected = open_image(samples.write(tmp_path / "a.dcm", ds)).read(0)
    write_as(tmp_path / "b.dcm", ds, uid.JPEGBaseline8Bit, False, True)  # decompressed, its syntax left as it was
    np.testing.assert_array_equal(open_image(tmp_path / "b.dcm").read(0), expected)
    ds.PixelData = ds.PixelData[:-100]
    write_as(tmp_path / "b.dcm", ds, uid.JPEGBaseline8Bit, False, True)
    refused(open_image, tmp_path / "b.dcm", match=r"not compressed as its transfer syntax \(JPEG Baseline")
    ds = samples.image(samples.GREY16)
    ds.compress(uid.RLELossless)
    write_as(tmp_path / "b.dcm", ds, uid.ExplicitVRLittleEndian, False, True)
    refused(open_image, tmp_path / "b.dcm", match=r"compressed, but its transfer syntax \(Explicit VR Little Endian\)")
    write_as(tmp_path / "b.dcm", ds, None, False, True)
    refused(open_image, tmp_path / "b.dcm", match="lacks its transfer syntax, and its pixels are compressed")


@pytest.mark.parametrize(
    ("syntax", "match"),
    [
        ("1.2.840.113619.5.2", "its transfer syntax is private and is not read; export it again"),
        ("1.2.840.10008.5.1.4.1.1.2", "its transfer syntax is none of the standard's"),
    ],
)
def test_other_syntaxes(tmp_path: Path, syntax: str, match: str) -> None:
    path = write_as(tmp_path / "a.dcm", samples.ct(), syntax, False, True)
    refused(open_image, path, match=match)


# ---- colours of compressed pixels


y, x = np.mgrid[:64, :64]
SMOOTH = np.stack([x * 4, y * 4, 255 - (x + y) * 2], axis=2).astype(np.uint8)
SMOOTH[20:40, 20:40] = 200, 40, 40
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


def stream(*, markers: bytes = b"", jfif: bool = False, rgb: bool = False, letters: bool = False) -> bytes:
    """A colour JPEG: of which colours, and what it says of them."""
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).save(buffer, "JPEG", quality=98, subsampling=0, keep_rgb=rgb)
    data = buffer.getvalue()
    bare, at = data[:2], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] not in (0xE0, 0xEE) or (jfif and data[at + 1] == 0xE0):
            bare += data[at:end]
        at = end
    out = bytearray(bare[:2] + markers + bare[2:] + data[at:])
    if rgb and not letters:
        for head, first, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
            place = out.index(head) + first
            out[place : place + 3 * step : step] = b"\1\2\3"
    return bytes(out)


def jpeg(data: bytes, colours: str, planar: int | None) -> Any:
    ds = samples.image(SMOOTH, colours)
    ds.pop("PlanarConfiguration")
    if planar is not None:
        ds.PlanarConfiguration = planar
    ds.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    ds.PixelData = encapsulate([data])
    ds["PixelData"].VR = "OB"
    return ds


YCC = {"jfif": {"jfif": True}, "nothing": {}, "adobe": {"markers": ADOBE + b"\1"}}
RGB = {"nothing": {}, "letters": {"letters": True}, "adobe": {"markers": ADOBE + b"\0"}}
COLOURS = [("YBR_FULL_422", name, stream(**options)) for name, options in YCC.items()]
COLOURS += [("YBR_FULL", name, stream(**options)) for name, options in YCC.items()]
COLOURS += [("RGB", f"rgb {name}", stream(rgb=True, **options)) for name, options in RGB.items()]


@pytest.mark.parametrize("planar", [0, 1, None])
@pytest.mark.parametrize(("colours", "name", "data"), COLOURS, ids=[f"{each[0]}-{each[1]}" for each in COLOURS])
def test_colours_of_jpeg(tmp_path: Path, colours: str, name: str, data: bytes, planar: int | None) -> None:
    """Once converted, whatever says so, and in the stream's own layout; as dcmtk reads them where it is installed."""
    path = samples.write(tmp_path / "a.dcm", jpeg(data, colours, planar))
    frame = open_image(path).read(0) * 255
    assert np.abs(frame - SMOOTH).max() < 6
    if shutil.which("dcmj2pnm") and planar is not None:
        subprocess.run(["dcmj2pnm", "+op", path, tmp_path / "a.ppm"], check=True, capture_output=True)
        theirs = np.asarray(Image.open(tmp_path / "a.ppm")).astype(float)
        assert np.abs(np.rint(frame) - theirs).max() <= 1


@pytest.mark.parametrize("planar", [0, 1, None])
@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless])
def test_layout_of_other_compressed_colours(tmp_path: Path, syntax: Any, planar: int | None) -> None:
    for colours in ("RGB", "YBR_FULL"):
        if colours != "RGB" and syntax == uid.JPEG2000Lossless:
            continue
        pixels = SMOOTH if colours == "RGB" else convert_color_space(SMOOTH, "RGB", "YBR_FULL")
        ds = samples.image(pixels, "RGB")
        try:
            ds.compress(syntax)
        except (RuntimeError, NotImplementedError):
            pytest.skip("no plugin")
        ds.pop("PlanarConfiguration")
        if planar is not None:
            ds.PlanarConfiguration = planar
        if colours != "RGB":
            ds.PhotometricInterpretation = colours
        frame = open_image(samples.write(tmp_path / "a.dcm", ds)).read(0) * 255
        assert np.abs(frame - SMOOTH).max() < 1.5, colours


def test_depth_and_samples_of_the_stream(tmp_path: Path) -> None:
    ds = jpeg(stream(), "YBR_FULL_422", 0)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    assert np.abs(open_image(samples.write(tmp_path / "a.dcm", ds)).read(0) * 255 - SMOOTH).max() < 6
    ds = jpeg(stream(), "YBR_FULL_422", 0)
    ds.PhotometricInterpretation, ds.SamplesPerPixel = "MONOCHROME2", 1
    file = open_image(samples.write(tmp_path / "a.dcm", ds))
    refused(file.read, 0, match="its compressed pixels have 3 samples each and its header says 1")


def test_jpeg_of_12_bits_needs_another_plugin(tmp_path: Path) -> None:
    decoder = pydicom.pixels.get_decoder(uid.JPEGExtended12Bit)
    if decoder.available_plugins != ("pillow",):
        pytest.skip("there is one")
    ds = jpeg(stream(), "YBR_FULL", 0)
    ds.file_meta.TransferSyntaxUID = uid.JPEGExtended12Bit
    assert np.abs(open_image(samples.write(tmp_path / "a.dcm", ds)).read(0) * 255 - SMOOTH).max() < 6, "of 8 bits"
    frame = bytearray(stream().replace(b"\xff\xc0", b"\xff\xc1"))
    frame[frame.index(b"\xff\xc1") + 4] = 12
    ds.PixelData = encapsulate([bytes(frame)])
    path = samples.write(tmp_path / "b.dcm", ds)
    refused(open_image, path, match=r"JPEG Extended .* of 12 bits needs one of the packages: .*pylibjpeg-libjpeg")


@pytest.mark.parametrize("planar", [None, 0, 1, 2])
def test_planar_configuration_of_native_colours(tmp_path: Path, planar: int | None) -> None:
    ds = samples.image(SMOOTH, "RGB")
    ds.pop("PlanarConfiguration")
    if planar is not None:
        ds.PlanarConfiguration = planar
    if planar == 1:
        ds.PixelData = np.ascontiguousarray(SMOOTH.transpose(2, 0, 1)).tobytes()
    path = samples.write(tmp_path / "a.dcm", ds)
    if planar == 2:
        refused(open_image, path, match="its Planar Configuration is neither 0 nor 1")
        return
    np.testing.assert_allclose(open_image(path).read(0), SMOOTH / 255, atol=1e-6)
