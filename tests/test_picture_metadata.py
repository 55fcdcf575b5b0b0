"""Metadata of pictures, long or broken, never decides whether their pixels are read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from msformer_fast.formats import open_image
from msformer_fast.formats.plain import read_image

from .image_samples import GREY16, RGB8, RGB16, png16, refused, save, unit


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


LONG = zlib.compress(b" " * 2_000_000)
CHUNKS = {
    "long zTXt": chunk(b"zTXt", b"Comment\0\0" + LONG),
    "long iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "long iCCP": chunk(b"iCCP", b"profile\0\0" + LONG),
    "long tEXt": chunk(b"tEXt", b"Comment\0" + b"a" * 2_000_000),
    "many": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b" " * 1_000_000)) * 70,
    "broken zTXt": chunk(b"zTXt", b"Comment\0\0nothing"),
    "method of zTXt": chunk(b"zTXt", b"Comment\0\7"),
    "broken iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0nothing"),
    "broken iCCP": chunk(b"iCCP", b"profile\0\0nothing"),
    "method of iCCP": chunk(b"iCCP", b"profile\0\7"),
    "checksum": chunk(b"tEXt", b"Comment\0abc", 0),
    "eXIf": chunk(b"eXIf", b"nothing"),
    "eXIf beyond its end": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    "raw profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 8\nzz")),
    **{f"short {kind.decode()}": chunk(kind, b"") for kind in (b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tRNS", b"acTL")},
    **{f"short {kind.decode()}": chunk(kind, b"\0") for kind in (b"tIME", b"sBIT", b"fcTL", b"fdAT", b"prVt")},
}


@pytest.mark.parametrize("name", CHUNKS)
def test_png(tmp_path: Path, name: str) -> None:
    files = {"8": save(tmp_path / "a.png", RGB8), "16": png16(tmp_path / "b.png", RGB16)}
    for path, expected in ((files["8"], RGB8), (files["16"], RGB16)):
        data = path.read_bytes()
        end = data.index(b"IEND") - 4
        for at in (33, end):
            path.write_bytes(data[:at] + CHUNKS[name] + data[at:])
            assert open_image(path).shape == (40, 50)
            np.testing.assert_array_equal(read_image(path), unit(expected))


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


SEGMENTS = {
    "exif": segment(0xE1, b"Exif\0\0nothing"),
    "exif beyond its end": segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "profile": segment(0xE2, b"ICC_PROFILE\0\1"),
    "parts of a profile": segment(0xE2, b"ICC_PROFILE\0\7\1zz"),
    "several pictures": segment(0xE2, b"MPF\0nothing"),
    "photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff"),
    "short adobe": segment(0xEE, b"Adobe"),
    "short jfif": segment(0xE0, b"JFIF\0\1"),
    "comment": segment(0xFE, b""),
    "xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>zz"),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_jpeg(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "a.jpg", RGB8, quality=95)
    expected, data = read_image(path), path.read_bytes()
    path.write_bytes(data[:2] + SEGMENTS[name] + data[2:])
    assert open_image(path).shape == (40, 50)
    np.testing.assert_array_equal(read_image(path), expected)


DESCRIPTIONS = [
    *("<OME broken", '{"shape": [1, 2', '{"shape": [9, 9]}', '{"shape": "x"}', "ImageJ=1.54\nimages=zz\n"),
    *("ImageJ=1.54\nimages=1\nchannels=x", "a" * 3_000_000),
]


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=[each[:20] for each in DESCRIPTIONS])
def test_tiff(tmp_path: Path, description: str) -> None:
    for array in (RGB8, RGB16, GREY16):
        colours: Any = "rgb" if array.ndim == 3 else "minisblack"
        tifffile.imwrite(tmp_path / "a.tif", array, photometric=colours, description=description, metadata=None)
        assert open_image(tmp_path / "a.tif").shape == (40, 50)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), unit(array))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_orientation_is_kept(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / f"a.{suffix}", RGB8, exif=exif)
    expected, data = np.asarray(ImageOps.exif_transpose(Image.open(path))), path.read_bytes()
    broken = CHUNKS["long zTXt"] if suffix == "png" else SEGMENTS["profile"]
    at = 33 if suffix == "png" else 2
    path.write_bytes(data[:at] + broken + data[at:])
    assert open_image(path).shape == (50, 40)
    np.testing.assert_array_equal(read_image(path), unit(expected))


def test_the_orientation_in_a_text_is_kept(tmp_path: Path) -> None:
    data = save(tmp_path / "a.png", RGB8).read_bytes()
    turned = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="8"/>')
    (tmp_path / "a.png").write_bytes(data[:33] + turned + CHUNKS["checksum"] + data[33:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), unit(np.rot90(RGB8)))


def test_what_is_damaged_or_several_is_still_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RGB8)
    data = path.read_bytes()
    path.write_bytes(data[:33] + CHUNKS["long zTXt"] + data[33 : len(data) // 2])
    refused(read_image, path, match="damaged or truncated PNG")
    other = save(tmp_path / "b.jpg", RGB8)
    other.write_bytes(other.read_bytes()[:2] + SEGMENTS["profile"] + other.read_bytes()[2:300])
    refused(read_image, other, match="damaged or truncated JPEG")
    buffer = io.BytesIO()
    Image.fromarray(RGB8).save(buffer, "PNG", save_all=True, append_images=[Image.fromarray(RGB8[::-1].copy())])
    data = buffer.getvalue()
    path.write_bytes(data[:33] + CHUNKS["long zTXt"] + data[33:])
    refused(read_image, path, match="more than one page")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_of_turned_tiffs_before_they_are_read(tmp_path: Path, orientation: int) -> None:
    """Of every kind: by Pillow and by tifffile, compressed, in 1, 8 and 16 bits, and as floats."""
    tag = (274, 3, 1, orientation, False)
    kinds: list[tuple[np.ndarray, dict[str, Any]]] = [
        (RGB8, {}),
        (RGB8, {"compression": "zlib"}),
        (RGB16, {}),
        (GREY16, {"compression": "zlib"}),
        (GREY16 > 999, {}),
        (GREY16.astype(np.float32) / 65535, {}),
        (GREY16, {"bigtiff": True}),
    ]
    for array, options in kinds:
        colours: Any = "rgb" if array.ndim == 3 else "minisblack"
        tifffile.imwrite(tmp_path / "a.tif", array, photometric=colours, extratags=[tag], **options)
        file = open_image(tmp_path / "a.tif")
        before = file.shape
        assert before == ((40, 50) if orientation < 5 else (50, 40))
        assert file.read(0).shape == (*before, 3) and file.shape == before
