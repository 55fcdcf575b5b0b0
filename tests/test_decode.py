"""Every format that is read, and every error that is promised."""

from __future__ import annotations

import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from msformer_fast.errors import InputError
from msformer_fast.formats.plain import read_image

from .image_samples import GREY8, GREY16, RGB8, RGB16, RNG, png16, refused, save, unit


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("array", [GREY8, RGB8], ids=["grey", "rgb"])
def test_lossless_8_bit(tmp_path, suffix, array):
    image = read_image(save(tmp_path / f"a.{suffix}", array))
    assert image.dtype == np.float32
    assert image.shape == (40, 50, 3)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    np.testing.assert_array_equal(image, unit(array))


def test_content_counts_and_not_the_suffix(tmp_path):
    save(tmp_path / "a.png", RGB8).rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.jpg")), unit(RGB8))


def test_jpeg_grey_rgb_cmyk_and_multi_picture(tmp_path):
    smooth = np.linspace(40, 200, 40 * 50).reshape(40, 50).astype(np.uint8)
    grey = read_image(save(tmp_path / "g.jpg", smooth, quality=95))
    assert np.abs(grey - unit(smooth)).max() < 0.03
    rgb = Image.fromarray(np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=2))
    rgb.save(tmp_path / "c.jpg", quality=95, subsampling=0)
    rgb.convert("CMYK").save(tmp_path / "k.jpg", quality=95)
    rgb.save(tmp_path / "m.jpg", "MPO", save_all=True, append_images=[rgb.rotate(180)], quality=95, subsampling=0)
    for name in ("c.jpg", "k.jpg", "m.jpg"):
        assert np.abs(read_image(tmp_path / name) - np.asarray(rgb) / 255).max() < 0.05, name


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_its_precision(tmp_path, channels, interlaced):
    array = RNG.integers(0, 65536, (40, 50, channels), dtype=np.uint16)
    image = read_image(png16(tmp_path / "a.png", array, interlaced))
    np.testing.assert_array_equal(image, unit(array[:, :, 0] if channels < 3 else array[:, :, :3]))


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 16)}]
)
@pytest.mark.parametrize("array", [GREY16, RGB16], ids=["grey", "rgb"])
def test_16_bit_tiff_keeps_its_precision(tmp_path, array, options):
    photometric = "rgb" if array.ndim == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), unit(array))


def test_other_16_bit_tiffs(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(RGB16, 2, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(path), unit(RGB16))
    tifffile.imwrite(path, GREY16, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path), unit(65535 - GREY16))
    rgba = np.concatenate([RGB16, GREY16[:, :, None]], axis=2)
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(path), unit(RGB16))
    tifffile.imwrite(path, rgba[:, :, :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(path), unit(RGB16[:, :, 0]))
    tifffile.imwrite(path, GREY16, imagej=True)
    np.testing.assert_array_equal(read_image(path), unit(GREY16))


def test_lzw_tiff_is_read_or_refused_with_the_remedy(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", RGB8, compression="tiff_lzw")), unit(RGB8))
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.tif", GREY16, compression="tiff_lzw")), unit(GREY16))
    tifffile.imwrite(tmp_path / "c.tif", RGB16, photometric="rgb")
    data = bytearray((tmp_path / "c.tif").read_bytes())
    entry = struct.pack("<HHIH", 259, 3, 1, 1)
    assert data.count(entry) == 1
    (tmp_path / "c.tif").write_bytes(data.replace(entry, struct.pack("<HHIH", 259, 3, 1, 5)))
    refused(read_image, tmp_path / "c.tif", match="imagecodecs|damaged")


def test_float_tiff(tmp_path):
    values = RNG.random((40, 50), dtype=np.float32)
    for dtype in (np.float16, np.float32, np.float64):
        tifffile.imwrite(tmp_path / "a.tif", values.astype(dtype))
        image = read_image(tmp_path / "a.tif")
        np.testing.assert_array_equal(image[:, :, 1], values.astype(dtype).astype(np.float32))
    for factor, match in ((255.0, r"found 0\.\d+ to 25\d"), (-1.0, r"must be in \[0, 1\]"), (np.nan, "NaN")):
        tifffile.imwrite(tmp_path / "a.tif", values * np.float32(factor))
        refused(read_image, tmp_path / "a.tif", match=match)


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.int8])
def test_other_sample_types_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", (GREY8 // 4).astype(dtype))
    refused(read_image, tmp_path / "a.tif", match=r"a\.tif: .*(accepted are|save it)")


def test_five_channel_tiff_is_refused(tmp_path):
    for array in (RGB16, RGB8):
        five = array[:, :, [0, 1, 2, 0, 1]]
        tifffile.imwrite(tmp_path / "a.tif", five, photometric="minisblack", planarconfig="contig")
        refused(read_image, tmp_path / "a.tif", match=r"a\.tif: a TIFF of 5 channels, uint(8|16) .*save it as")


def test_alpha_and_transparency_are_dropped(tmp_path):
    alpha = RNG.integers(0, 256, (40, 50, 1), dtype=np.uint8)
    for suffix in ("png", "tif"):
        rgba = save(tmp_path / f"rgba.{suffix}", np.concatenate([RGB8, alpha], axis=2))
        np.testing.assert_array_equal(read_image(rgba), unit(RGB8))
        la = tmp_path / f"la.{suffix}"
        Image.merge("LA", [Image.fromarray(GREY8), Image.fromarray(alpha[:, :, 0])]).save(la)
        np.testing.assert_array_equal(read_image(la), unit(GREY8))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
def test_palette(tmp_path, transparency):
    colours = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    indices = RNG.integers(0, 16, (40, 50), dtype=np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    assert Image.open(tmp_path / "a.png").mode == "P"
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), unit(colours[indices]))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_1_bit(tmp_path, suffix):
    image = read_image(save(tmp_path / f"a.{suffix}", GREY8 > 99))
    np.testing.assert_array_equal(image[:, :, 2], (GREY8 > 99).astype(np.float32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tif", "jpg"):
        path = save(tmp_path / f"a.{suffix}", RGB8, exif=exif)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        assert upright.shape == ((40, 50, 3) if orientation < 5 else (50, 40, 3))
        np.testing.assert_array_equal(read_image(path), unit(upright))
    reference = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    deep = RGB8.astype(np.uint16) * 257
    tag = (274, 3, 1, orientation, False)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extratags=[tag])
    np.testing.assert_array_equal(read_image(tmp_path / "deep.tif"), unit(reference))
    save(tmp_path / "lzw.tif", deep[:, :, 0].copy(), compression="tiff_lzw", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "lzw.tif"), unit(reference[:, :, 0]))


# ---- reading: errors


def test_path_errors(tmp_path):
    refused(read_image, tmp_path / "none.png", match=r"none\.png: cannot be read \(No such file")
    refused(read_image, tmp_path, match="a folder")
    save(tmp_path / "a.png", RGB8)
    refused(read_image, tmp_path / "a.png" / "b.png", match="cannot be read")
    refused(read_image, "a\0b.png", match="cannot be read")
    refused(read_image, tmp_path / "two\nlines.png", match="cannot be read")
    (tmp_path / "empty.png").touch()
    refused(read_image, tmp_path / "empty.png", match=r"empty\.png: the file is empty")
    (tmp_path / "text.png").write_text("this is not a picture\n")
    refused(read_image, tmp_path / "text.png", match=r"text\.png: .*accepted are PNG")
    Image.fromarray(RGB8).save(tmp_path / "a.gif")
    refused(read_image, tmp_path / "a.gif", match="accepted are PNG")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
        refused(read_image, tmp_path / "pipe.png", match="a device")


def test_no_permission(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", RGB8)
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        path.chmod(0)
    else:  # permissions do not stop root

        def denied(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("msformer_fast.formats.bounded_file.BoundedFile", denied)
    refused(read_image, path, match=r"a\.png: cannot be read \(Permission denied\)")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_truncated(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", RGB8)
    data = path.read_bytes()
    for part in (0.9, 0.5, 0.1):
        path.write_bytes(data[: int(part * len(data))])
        refused(read_image, path, match="damaged or truncated|truncated")
    path.write_bytes(data[:5])
    refused(read_image, path, match="damaged or truncated")


def test_truncated_16_bit(tmp_path):
    for options in ({}, {"compression": "zlib"}, {"rowsperstrip": 8}):
        tifffile.imwrite(tmp_path / "a.tif", RGB16, photometric="rgb", **options)
        data = (tmp_path / "a.tif").read_bytes()
        for part in (0.9, 0.5):
            (tmp_path / "a.tif").write_bytes(data[: int(part * len(data))])
            refused(read_image, tmp_path / "a.tif", match="truncated")
    data = png16(tmp_path / "a.png", RGB16).read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    refused(read_image, tmp_path / "a.png", match="damaged or truncated")


def test_too_many_pixels_is_seen_before_decoding(tmp_path, monkeypatch):
    for path in (save(tmp_path / "a.png", RGB8), save(tmp_path / "a.tif", RGB8)):
        refused(read_image, path, max_pixels=1999, match="40 x 50 is more than 1999 pixels")
        assert read_image(path, max_pixels=2000).shape == (40, 50, 3)
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)  # 10.8 GB once decoded
    body = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 0) + b"IDAT" + bytes(4))
    refused(read_image, tmp_path / "bomb.png", match="Pillow's limit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # 2000 pixels: Pillow would warn
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), unit(RGB8))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # switched off: only the limit here is left
        refused(read_image, tmp_path / "bomb.png", match="more than 200000000 pixels")


def test_more_than_one_page_is_refused(tmp_path):
    first = Image.fromarray(RGB8)
    second = Image.fromarray(RGB8[::-1].copy())
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    tifffile.imwrite(tmp_path / "b.tif", np.stack([GREY16, GREY16]), photometric="minisblack")
    tifffile.imwrite(tmp_path / "c.tif", np.stack([GREY16, GREY16]), imagej=True)
    tifffile.imwrite(tmp_path / "d.tif", np.zeros((16, 64, 64), np.uint16), volumetric=True, tile=(16, 64, 64))
    for name in ("a.tif", "a.png", "b.tif", "c.tif", "d.tif"):
        refused(read_image, tmp_path / name, match="more than one page")


def test_small_and_constant(tmp_path):
    refused(read_image, save(tmp_path / "s.png", RGB8[:32]), match="32 x 50 pixels .* at least 33")
    tifffile.imwrite(tmp_path / "s.tif", GREY16[:, :32])
    refused(read_image, tmp_path / "s.tif", match="40 x 32 pixels .* at least 33")
    assert read_image(save(tmp_path / "m.png", RGB8[:33, :33])).shape == (33, 33, 3)
    constant = np.broadcast_to(np.array([10, 20, 30], np.uint8), (40, 40, 3))
    refused(read_image, save(tmp_path / "c.png", constant), match=r"c\.png: all pixels are equal")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "deep.tif", "deep.png"])
def test_damaged_files_give_an_image_or_an_input_error(tmp_path, suffix, recwarn):
    path = tmp_path / f"a.{suffix}"
    if suffix == "deep.tif":
        tifffile.imwrite(path, RGB16, photometric="rgb", compression="zlib")
    elif suffix == "deep.png":
        png16(path, RGB16)
    else:
        save(path, RGB8)
    good = path.read_bytes()
    seed = 20230710
    print("seed", seed)
    source = random.Random(seed)
    messages = []
    for index in range(200):
        data = bytearray(good)
        span = 120 if index % 2 else len(data)  # every other time in the header, where most can go wrong
        for _ in range(source.randint(1, 8)):
            data[source.randrange(4, span)] = source.randrange(256)
        if index % 5 == 0:
            data = data[: source.randrange(len(data))]
        path.write_bytes(data)
        try:
            image = read_image(path, max_pixels=10_000_000)
        except InputError as exc:
            messages.append(str(exc))
        else:
            assert image.dtype == np.float32
            assert image.shape[2] == 3
    assert len(messages) > 20
    assert not [message for message in messages if "\n" in message]
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_of_more_rows_than_its_strips_hold(tmp_path, dtype, compression):
    """Not a picture with a black end."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY8.astype(dtype), rowsperstrip=8, compression=compression)
    assert read_image(path).shape == (40, 50, 3)

    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[257].overwrite(400)  # the number of rows
    refused(read_image, path, match="truncated TIFF file; copy or export it again")
