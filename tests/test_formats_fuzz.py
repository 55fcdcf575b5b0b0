"""Damaged files of every format: an image, or an InputError of one line.

All but PNG and TIFF must be quick, and take little memory.

``MSFORMER_FAST_FUZZ`` says how many damaged files of each are tried.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import re
import tempfile
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
hypothesis = pytest.importorskip("hypothesis")
import tifffile  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import JPEGBaseline8Bit, RLELossless  # noqa: E402

from msformer_fast import InputError  # noqa: E402
from msformer_fast.formats import open_image  # noqa: E402

from . import medical_samples as samples  # noqa: E402

EXAMPLES = int(os.environ.get("MSFORMER_FAST_FUZZ", "40"))
SECONDS = 60  # no speed: whatever takes so long hangs
MEGABYTES = 300
KINDS = ["flip", "byte", "delete", "insert", "truncate", "splice", "huge", "field", "field", "field"]
_MARK = 132  # bytes of a DICOM file that say nothing
HUGE = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\xfe\xff\x00\x00"]
HUGE += [b"\xff\xff", b"\xff\x7f", b"\x00\x00", b"\x01\x00", b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"99999999"]


def picture(kind: str, array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def with_text(png: bytes) -> bytes:
    body = b"zTXtComment\0\0" + zlib.compress(b" " * 2_000_000)
    return png[:33] + (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + png[33:]


def deep_tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples.GREY16, compression="zlib")
    return buffer.getvalue()


def dicom(kind: str) -> bytes:
    frames = np.stack([samples.SIGNED, samples.SIGNED[::-1], samples.SIGNED[:, ::-1]])
    if kind == "rle":
        ds = samples.image(np.stack([samples.RGB, samples.RGB[::-1]]), "RGB", NumberOfFrames=2)
        ds.compress(RLELossless)
    elif kind == "frames":
        ds = samples.enhanced(frames, [(40, 400), (0, 1000), (300, 900)], rescale=(2, -100))
    elif kind == "jpeg":
        ds = samples.image(samples.RGB, "YBR_FULL_422")
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        ds.PixelData = encapsulate([picture("JPEG", samples.RGB)])
        ds["PixelData"].VR = "OB"
    elif kind == "segments":
        ds = samples.image(samples.GREY8, "PALETTE COLOR", **samples.palette(*[bytes(512)] * 3))
        for colour in ("Red", "Green", "Blue"):
            del ds[f"{colour}PaletteColorLookupTableData"]
            words = np.array([0, 2, 0, 9, 1, 100, 60000, 2, 1, 8, 0, 1, 54, 7], "<u2")
            setattr(ds, f"Segmented{colour}PaletteColorLookupTableData", words.tobytes())
    elif kind == "padding":
        ds = samples.image(samples.SIGNED.astype(np.float32), FloatPixelPaddingValue=-5.0)
        ds.FloatPixelPaddingRangeLimit = 5.0
    elif kind == "palette":
        ramp = np.arange(256, dtype=np.uint16).tobytes()
        ds = samples.image(samples.GREY8, "PALETTE COLOR", **samples.palette(ramp, ramp, ramp))
    else:
        ds = samples.ct()
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def nifti(zipped: bool) -> bytes:
    voxels = np.random.default_rng(5).integers(-900, 900, (36, 35, 34), dtype=np.int16)
    image = nibabel.Nifti1Image(voxels, np.diag([2.0, 1, -3, 1]))
    image.header["descrip"] = b"zebra quagga"
    data = image.to_bytes()
    return gzip.compress(data, mtime=0) if zipped else data


SAMPLES: dict[str, Callable[[], bytes]] = {
    "a.png": lambda: picture("PNG", samples.RGB),
    # With a text that is too long, so that it is read without it.
    "text.png": lambda: with_text(picture("PNG", samples.RGB)),
    "a.jpg": lambda: picture("JPEG", samples.RGB),
    "a.tif": lambda: picture("TIFF", samples.GREY8),
    "b.tif": deep_tiff,
    "a.bmp": lambda: picture("BMP", samples.RGB),
    "plain.dcm": lambda: dicom("plain"),
    "palette.dcm": lambda: dicom("palette"),
    "jpeg.dcm": lambda: dicom("jpeg"),
    "segments.dcm": lambda: dicom("segments"),
    "padding.dcm": lambda: dicom("padding"),
    "rle.dcm": lambda: dicom("rle"),
    "frames.dcm": lambda: dicom("frames"),
    "a.nii": lambda: nifti(False),
    "a.nii.gz": lambda: nifti(True),
    # Damaged before it is compressed, so that the damage is not found by the checksum.
    "inner.nii.gz": lambda: nifti(False),
}


@functools.cache
def sample(name: str) -> bytes:
    return SAMPLES[name]()


@functools.cache
def fields(name: str) -> list[int]:
    """Where the numbers of a header are that say how much is to come."""
    if name.endswith("nii"):
        return [40, 42, 44, 46, 48, 70, 72, 76, 80, 108, 112, 116, 252, 254, 256, 280, 296, 312, 344]
    if name == "inner.nii.gz":
        return fields("a.nii")
    elements = re.finditer(rb"(\x28\x00|\xe0\x7f|\x00\x52)..(US|SS|IS|DS|CS|OB|OW|SQ|LO|SH)", sample(name), re.DOTALL)
    return [match.start() + place for match in elements for place in (2, 4, 6, 8)] or [0]


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """A file with one to three damages, most of them in its header, where most can go wrong."""
    good = sample(name)
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        end = max(1, min(len(data), draw(st.sampled_from([160, 1200, len(good)]))))
        at = draw(st.integers(min(_MARK, end - 1) if name.endswith(".dcm") else 0, end - 1))
        kind = draw(st.sampled_from(KINDS))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "truncate":
            del data[draw(st.integers(0, len(data))) :]
        elif kind == "splice":
            start = draw(st.integers(0, len(good) - 1))
            piece = good[start : start + draw(st.integers(1, 200))]
            data[at : at + len(piece)] = piece
        elif kind in ("huge", "field"):
            at = draw(st.sampled_from(fields(name))) if kind == "field" else at
            value = draw(st.sampled_from(HUGE))
            data[at : at + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_sample_itself_is_read(tmp_path: Path, name: str) -> None:
    data = sample(name)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.startswith("inner") else data)
    file = open_image(tmp_path / name)
    assert 0 < file.read(file.frames - 1).mean() < 1


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_files(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(damaged(name))
        def check(data: bytes) -> None:
            path.write_bytes(gzip.compress(data) if name.startswith("inner") else data)
            read_all(path)

        check()


def read_all(path: Path) -> None:
    """Open and read at most four frames, within the bounds of time and memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracemalloc.start()
        started = time.perf_counter()
        try:
            file = open_image(path)
            for index in range(min(file.frames, 4)):
                frame = file.read(index)
                assert frame.dtype == np.float32
                assert frame.shape[:2] == file.shape and frame.shape[2:] in ((1,), (3,))
                assert np.isfinite(frame).all() and frame.min() >= 0 and frame.max() <= 1
        except InputError as exc:
            text = str(exc)
            assert text.startswith(f"{path}: ") and text.isprintable()
            assert not samples.leaks(text)
        finally:
            seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < MEGABYTES * 2**20
