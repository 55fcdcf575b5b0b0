"""DICOM images: grey levels by hand, colours, frames, compression, what is refused, and that no patient is named."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msformer_fast import InputError
from msformer_fast.formats import open_image
from msformer_fast.formats.codestream import stated_size

from . import medical_samples as samples
from .image_samples import refused

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels import get_decoder, get_encoder  # noqa: E402
from pydicom.pixels.processing import apply_windowing, convert_color_space  # noqa: E402

GREY8, GREY12, GREY16, SIGNED, RGB = samples.GREY8, samples.GREY12, samples.GREY16, samples.SIGNED, samples.RGB


@pytest.fixture(autouse=True)
def _nothing_is_said(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> Iterator[None]:
    """Whatever a test reads: no secret in the logs, the warnings and the output."""
    caplog.set_level(logging.DEBUG)
    yield
    out, err = capfd.readouterr()
    said = [record.getMessage() for record in caplog.records] + [str(each.message) for each in recwarn.list]
    assert not samples.leaks("\n".join([out, err, *said]))


def opened(folder: Path, ds: Any, name: str = "a.dcm", **options: Any) -> Any:
    return open_image(samples.write(folder / name, ds), **options)


def read(folder: Path, ds: Any, **options: Any) -> np.ndarray:
    frame = opened(folder, ds, **options).read(0)
    assert frame.dtype == np.float32
    return frame


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


def close(frame: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    expected = expected[:, :, None] if expected.ndim == 2 else expected
    assert frame.shape == expected.shape
    np.testing.assert_allclose(frame, expected, atol=tolerance)


@pytest.mark.parametrize(
    ("pixels", "bits"), [(GREY8, 8), (GREY12, 12), (GREY16, 16), (SIGNED, 16), (SIGNED.astype(np.int32) * 9000, 32)]
)
def test_without_a_window_from_least_to_largest(tmp_path: Path, pixels: np.ndarray, bits: int) -> None:
    expected = between(pixels, float(pixels.min()), float(pixels.max()))
    close(read(tmp_path, samples.image(pixels, bits=bits)), expected)
    close(read(tmp_path, samples.image(pixels, "MONOCHROME1", bits=bits)), 1 - expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_pixel_data(tmp_path: Path, dtype: type) -> None:
    pixels = np.random.default_rng(4).normal(size=(40, 44)).astype(dtype)
    pixels[0, :3] = np.nan, np.inf, -np.inf
    finite = pixels[np.isfinite(pixels)]
    expected = between(np.nan_to_num(pixels, nan=finite.min()), finite.min(), finite.max())
    close(read(tmp_path, samples.image(pixels)), expected)


def test_rescale_and_window_by_hand(tmp_path: Path) -> None:
    pixels = SIGNED.copy()
    # 2 * stored - 100 is -160, -159.something, 39.5 - 0.5, 239, 240: the window of 400 around 40 by C.11.2.1.2.
    pixels[0, :5] = -30, -29, 70, 169, 170
    frame = read(tmp_path, samples.ct(pixels))
    expected = [0, (-158 - 39.5) / 399 + 0.5, (40 - 39.5) / 399 + 0.5, (238 - 39.5) / 399 + 0.5, 1]
    np.testing.assert_allclose(frame[0, :5, 0], expected, atol=1e-6)
    ds = samples.ct(pixels)
    ds.VOILUTFunction = "LINEAR_EXACT"
    np.testing.assert_allclose(read(tmp_path, ds)[0, 1:4, 0], [2 / 400, 200 / 400, 398 / 400], atol=1e-6)
    ds.VOILUTFunction = "SIGMOID"
    np.testing.assert_allclose(read(tmp_path, ds)[0, 2, 0], 0.5, atol=1e-6)
    np.testing.assert_allclose(read(tmp_path, ds)[0, 3, 0], 1 / (1 + np.exp(-4 * 198 / 400)), atol=1e-6)
    ds.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_allclose(read(tmp_path, ds)[0, 3, 0], 1 - 1 / (1 + np.exp(-4 * 198 / 400)), atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_as_pydicom_applies_them(tmp_path: Path, function: str) -> None:
    ds = samples.ct()
    ds.VOILUTFunction = function
    values = SIGNED * 2.0 - 100
    whole = apply_windowing(values, ds)
    expected = between(whole, -(2**15) * 2 - 100, (2**15 - 1) * 2 - 100)
    close(read(tmp_path, ds), expected, 1e-5)


def test_the_given_window_overrides(tmp_path: Path) -> None:
    frame = read(tmp_path, samples.ct(), window=(100, 1000))
    close(frame, between(SIGNED * 2.0 - 100, -400, 600))
    inverted = samples.ct()
    inverted.PhotometricInterpretation = "MONOCHROME1"
    close(read(tmp_path, inverted, window=(100, 1000)), 1 - between(SIGNED * 2.0 - 100, -400, 600))


@pytest.mark.parametrize("width", [0, 0.5, -3])
def test_a_window_of_no_width_counts_as_none(tmp_path: Path, width: float) -> None:
    ds = samples.image(GREY12, bits=12, WindowCenter=100, WindowWidth=width)
    close(read(tmp_path, ds), between(GREY12, GREY12.min(), GREY12.max()))


def test_tables(tmp_path: Path) -> None:
    curve = (np.linspace(0, 1, 4096) ** 2 * 4095).round().astype(np.uint16)
    table = samples.item(LUTDescriptor=[4096, 0, 12], LUTData=curve.tobytes())
    table["LUTData"].VR = "OW"
    close(read(tmp_path, samples.image(GREY12, bits=12, VOILUTSequence=[table])), curve[GREY12] / 4095)
    modality = samples.item(LUTDescriptor=[4096, 0, 12], LUTData=curve.tobytes(), ModalityLUTType="US")
    modality["LUTData"].VR = "OW"
    ds = samples.image(GREY12, bits=12, ModalityLUTSequence=[modality])
    close(read(tmp_path, ds, window=(500, 800)), between(curve[GREY12], 100, 900))
    # Shorter than what it maps, from 1000 on: beyond its ends the end's entry.
    short = samples.item(LUTDescriptor=[3, 1000, 8], LUTData=[10, 100, 255])
    short["LUTData"].VR = "US"
    expected = np.select([GREY12 <= 1000, GREY12 == 1001], [10, 100], 255) / 255
    close(read(tmp_path, samples.image(GREY12, bits=12, VOILUTSequence=[short])), expected)


def test_padding_is_left_out_and_black(tmp_path: Path) -> None:
    pixels = SIGNED.copy()
    pixels[:5] = -2000
    inside = between(pixels, SIGNED[5:].min(), SIGNED[5:].max())
    inside[:5] = 0
    close(read(tmp_path, samples.image(pixels, PixelPaddingValue=-2000)), inside)
    inverted = 1 - inside
    inverted[:5] = 0
    close(read(tmp_path, samples.image(pixels, "MONOCHROME1", PixelPaddingValue=-2000)), inverted)
    pixels[:5, ::2] = -1990
    ranged = samples.image(pixels, PixelPaddingValue=-1980, PixelPaddingRangeLimit=-2000)
    close(read(tmp_path, ranged), inside)


def test_colours(tmp_path: Path) -> None:
    close(read(tmp_path, samples.image(RGB, "RGB")), RGB / 255)
    planar = samples.image(RGB, "RGB", PlanarConfiguration=1)
    planar.PixelData = np.ascontiguousarray(RGB.transpose(2, 0, 1)).tobytes()
    close(read(tmp_path, planar), RGB / 255)
    ybr = convert_color_space(RGB, "RGB", "YBR_FULL")
    assert np.abs(ybr.astype(int) - RGB).max() > 50
    close(read(tmp_path, samples.image(ybr, "YBR_FULL")), RGB / 255, 3 / 255)
    # Two pixels of 4:2:2 share their colour: Y1 Y2 B R.
    pairs = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=2)
    subsampled = samples.image(ybr, "YBR_FULL_422")
    subsampled.PixelData = pairs.tobytes()
    shared = ybr.copy()
    shared[:, 1::2, 1:] = shared[:, ::2, 1:]
    close(read(tmp_path, subsampled), convert_color_space(shared, "YBR_FULL", "RGB") / 255)
    deep = np.random.default_rng(6).integers(0, 4096, (40, 44, 3), dtype=np.uint16)
    close(read(tmp_path, samples.image(deep, "RGB", bits=12)), deep / 4095)


def test_palette(tmp_path: Path) -> None:
    tables = [np.random.default_rng(seed).integers(0, 65536, 256, dtype=np.uint16) for seed in range(3)]
    ds = samples.image(GREY8, "PALETTE COLOR", **samples.palette(*(table.tobytes() for table in tables)))
    close(read(tmp_path, ds), np.stack([table[GREY8] for table in tables], axis=2) / 65535)
    del ds.RedPaletteColorLookupTableData
    file = opened(tmp_path, ds)
    refused(file.read, 0, match="damaged or truncated DICOM")


def test_several_frames_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.stack([GREY8, GREY8[::-1], np.full_like(GREY8, 9), GREY8[:, ::-1] // 2])
    file = opened(tmp_path, samples.image(frames, NumberOfFrames=4, sop_class=samples.MULTI_FRAME_SECONDARY))
    assert (file.kind, file.is_volume, file.frames, file.shape) == ("dicom", True, 4, (40, 44))
    for index in (3, 0, 1):
        close(file.read(index), between(frames[index], float(frames[index].min()), float(frames[index].max())))
    assert not file.read(2).any(), "a frame without contrast is no error in a volume"
    refused(file.read, 4, match="has no frame 4; accepted are 0 to 3")
    refused(file.read, -1, match="has no frame -1")
    asked = []
    decoder = type(get_decoder(uid.ExplicitVRLittleEndian))
    original = decoder.as_array
    monkeypatch.setattr(
        decoder, "as_array", lambda *args, index, **more: asked.append(index) or original(*args, index=index, **more)
    )
    file.read(1)
    assert asked == [1]


def test_every_frame_has_its_own_window(tmp_path: Path) -> None:
    frames = np.stack([SIGNED, SIGNED[::-1], SIGNED[:, ::-1]])
    ds = samples.enhanced(frames, [(40, 401), (0, 1001), (300, 901)], rescale=(0.5, -100))
    ds.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence = [
        samples.item(RescaleSlope=1, RescaleIntercept=7, RescaleType="HU")
    ]
    file = opened(tmp_path, ds)
    for index, (low, high, slope, intercept) in enumerate(
        [(-160.5, 239.5, 0.5, -100), (-500.5, 499.5, 0.5, -100), (-150.5, 749.5, 1, 7)]
    ):
        close(file.read(index), between(frames[index] * slope + intercept, low, high))
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.FrameVOILUTSequence
    ds.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence = [samples.item(WindowCenter=0, WindowWidth=1001)]
    close(opened(tmp_path, ds).read(1), between(frames[1] * 0.5 - 100, -500.5, 499.5))


def test_rle(tmp_path: Path) -> None:
    for pixels, more in ((GREY16, {}), (np.stack([SIGNED, SIGNED[::-1]]), {"NumberOfFrames": 2})):
        ds = samples.image(pixels, **more)
        ds.compress(uid.RLELossless)
        file = opened(tmp_path, ds)
        last = pixels[-1] if more else pixels
        close(file.read(file.frames - 1), between(last, float(last.min()), float(last.max())))
    ds = samples.image(RGB, "RGB")
    ds.compress(uid.RLELossless)
    close(read(tmp_path, ds), RGB / 255)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless])
def test_jpeg_2000_and_jpeg_ls(tmp_path: Path, syntax: str) -> None:
    if not (get_decoder(syntax).is_available and get_encoder(syntax).is_available):
        pytest.skip("no plugin")
    ds = samples.image(GREY12, bits=12)
    ds.compress(syntax)
    close(read(tmp_path, ds), between(GREY12, GREY12.min(), GREY12.max()))
    ds = samples.image(RGB, "RGB")
    ds.compress(syntax)
    close(read(tmp_path, ds), RGB / 255)


def jpeg(pixels: np.ndarray) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    ds = samples.image(pixels, "YBR_FULL_422" if pixels.ndim == 3 else "MONOCHROME2")
    ds.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].VR = "OB"
    return ds


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 40 * 44).reshape(40, 44).astype(np.uint8)
    colours = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=2)
    close(read(tmp_path, jpeg(smooth)), smooth / 255, 0.03)
    close(read(tmp_path, jpeg(colours)), colours / 255, 0.05)
    # A codestream of another size than the header's: decoders would reserve what it asks for.
    ds = jpeg(smooth)
    ds.PixelData = ds.PixelData.replace((40).to_bytes(2, "big") + (44).to_bytes(2, "big"), b"\xff\xf0\xff\xf0")
    refused(opened(tmp_path, ds).read, 0, match="damaged or truncated")


def test_the_size_that_a_codestream_states() -> None:
    for name, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG2000", {})):
        buffer = io.BytesIO()
        Image.fromarray(RGB).save(buffer, name, **options)
        assert stated_size(buffer.getvalue()) == (40, 44)
    assert stated_size(b"") is None and stated_size(b"\xff\xd8\xff\xe0") is None and stated_size(bytes(99)) is None


def test_a_syntax_without_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = samples.image(GREY8)
    ds.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
    ds.PixelData = encapsulate([b"no codestream" * 99])
    ds["PixelData"].VR = "OB"
    decoder = get_decoder(uid.JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pyjpegls": ("numpy", "pyjpegls>=1.2")})
    refused(opened, tmp_path, ds, match="JPEG-LS Lossless Image Compression needs one of the packages: .*pyjpegls>=1.2")
    ds.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    refused(opened, tmp_path, ds, match="MPEG2 Main Profile .* is not read; save it uncompressed")
    ds.file_meta.TransferSyntaxUID = "1.2.3.19010203"
    refused(opened, tmp_path, ds, match="is not read|damaged")
    ds = samples.image(GREY8)
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    refused(opened, tmp_path, ds, match="Deflated Explicit VR Little Endian is not read; save it uncompressed")


def test_other_encodings(tmp_path: Path) -> None:
    expected = between(GREY12, GREY12.min(), GREY12.max())
    for syntax, little, implicit in ((uid.ImplicitVRLittleEndian, True, True), (uid.ExplicitVRBigEndian, False, False)):
        ds = samples.image(GREY12 if little else GREY12.byteswap(), bits=12)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.set_original_encoding(implicit, little)
        ds.save_as(tmp_path / "a.dcm", implicit_vr=implicit, little_endian=little)
        close(open_image(tmp_path / "a.dcm").read(0), expected)


def test_constant(tmp_path: Path) -> None:
    for colours in ("MONOCHROME1", "MONOCHROME2"):
        file = opened(tmp_path, samples.image(np.full_like(GREY8, 77), colours))
        refused(file.read, 0, match=r"a\.dcm: all pixels are equal, there is nothing to segment")
    black = samples.image(GREY8, WindowCenter=5000, WindowWidth=10)
    refused(opened(tmp_path, black).read, 0, match="all pixels are equal")


def test_what_is_refused(tmp_path: Path) -> None:
    report = samples.header("1.2.840.10008.5.1.4.1.1.88.11")
    refused(opened, tmp_path, report, match="of the class Basic Text SR Storage holds no picture")
    refused(opened, tmp_path, samples.header("1.2.3.19010203"), match="of the class unknown holds no picture")
    listing = samples.header("1.2.840.10008.1.3.10")
    del listing.SOPClassUID  # a DICOMDIR has its class in the file meta information alone
    refused(opened, tmp_path, listing, match="of the class Media Storage Directory Storage holds no picture")
    mask = samples.image(GREY8, sop_class="1.2.840.10008.5.1.4.1.1.66.4")
    refused(opened, tmp_path, mask, match="Segmentation Storage is no picture to segment")
    refused(opened, tmp_path, samples.image(GREY8), max_pixels=1759, match="40 x 44 is more than 1759 pixels")
    refused(opened, tmp_path, samples.image(GREY8[:32]), match="32 x 44 pixels .* at least 33")
    refused(opened, tmp_path, samples.image(GREY8, "ZEBRA"), match="photometric interpretation.*accepted are MONO")
    refused(opened, tmp_path, samples.image(GREY8, "MONOCHROME2", SamplesPerPixel=3), match="photometric interpret")
    refused(opened, tmp_path, samples.image(GREY8, BitsAllocated=24), match="24 bits allocated")
    refused(opened, tmp_path, samples.image(GREY8, Rows=41), match="promises 1 x 41 x 44 pixels")
    refused(opened, tmp_path, samples.image(GREY8[None], NumberOfFrames=2**31 - 1), match="more than it holds")
    rle = samples.image(GREY8)
    rle.compress(uid.RLELossless)
    rle.Rows, rle.Columns = 14000, 14000
    refused(opened, tmp_path, rle, match="more than it holds")
    (tmp_path / "text.dcm").write_text("zebra quagga " * 40)
    refused(open_image, tmp_path / "text.dcm", match="is not a DICOM file")
    (tmp_path / "cut.dcm").write_bytes(samples.write(tmp_path / "a.dcm", samples.ct()).read_bytes()[:-9])
    refused(open_image, tmp_path / "cut.dcm", match="more than it holds")


def test_pydicom_is_silenced_and_then_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ds = samples.image(GREY8, WindowCenter=[1, 2])
    ds.compress(uid.RLELossless)
    ds.PixelData = encapsulate([b"zebra quagga" * 200])
    data = samples.write(tmp_path / "a.dcm", ds).read_bytes()
    (tmp_path / "a.dcm").write_bytes(data.replace(b"1\\2 ", b"zebr"))
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refused(open_image(tmp_path / "a.dcm").read, 0, match=r"a\.dcm: damaged or truncated DICOM file")
    assert not caught and not caplog.records
    logging.getLogger("pydicom").warning("heard")
    assert caplog.messages == ["heard"]
    caplog.clear()


def test_no_patient_in_any_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element of the header that counts, in turn set to a name: what is raised and said has none of it."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.WARN)
    raised = 0
    whole = samples.ct()
    whole.NumberOfFrames = 1
    for keyword in [element.keyword for element in whole if element.keyword and element.VR not in ("SQ", "OW", "OB")]:
        for vr in ("LO", "SH", "DS", "IS", "CS"):
            ds = samples.ct()
            ds.NumberOfFrames = 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                del ds[keyword]
                element = pydicom.DataElement(keyword, "LO", "Zebra^Quagga", already_converted=True)
                ds[keyword] = element
                ds.save_as(tmp_path / "a.dcm")
                data = (tmp_path / "a.dcm").read_bytes()
                tag = element.tag.group.to_bytes(2, "little") + element.tag.element.to_bytes(2, "little")
                (tmp_path / "a.dcm").write_bytes(data.replace(tag + b"LO", tag + vr.encode()))
            error = refusal(tmp_path / "a.dcm")
            if error is not None:
                raised += 1
                assert not samples.leaks(str(error)), (keyword, vr)
                assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
    assert raised > 20


def refusal(path: Path) -> InputError | None:
    try:
        open_image(path).read(0)
    except InputError as exc:
        return exc
    return None
