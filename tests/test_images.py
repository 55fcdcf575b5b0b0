"""Masks, arrays, sizes and pictures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from msformer_fast.errors import InputError
from msformer_fast.formats.plain import read_mask
from msformer_fast.images import fit_size, resize_image, resize_nearest, write_png
from msformer_fast.inputs import as_image

from .image_samples import GREY8, GREY16, RGB8, RGB16, RNG, refused, save, unit


def test_mask_of_every_kind(tmp_path):
    truth = np.zeros((20, 30), bool)  # smaller than an image may be
    truth[5:12, 8:20] = True
    small = truth.astype(np.uint8)
    files = [
        save(tmp_path / "1bit.png", truth),
        save(tmp_path / "ones.png", small),
        save(tmp_path / "8bit.png", small * 255),
        save(tmp_path / "16bit.png", small.astype(np.uint16) * 65535),
        save(tmp_path / "16bit_small.png", small.astype(np.uint16) * 300),
        save(tmp_path / "rgb.png", np.stack([small * 128, small * 0, small * 0], axis=2)),
        save(tmp_path / "rgba.png", np.stack([small * 255] * 3 + [small * 0 + 9], axis=2)),
        save(tmp_path / "soft.png", np.where(truth, 255, 0).astype(np.uint8) - small * 100),
        save(tmp_path / "a.bmp", small * 255),
        save(tmp_path / "a.jpg", np.asarray(Image.fromarray(small * 255)), quality=90),
    ]
    picture = Image.fromarray(small)
    picture.putpalette([0, 0, 0, 64, 0, 0])
    picture.save(tmp_path / "palette.png")
    tifffile.imwrite(tmp_path / "float.tif", small.astype(np.float32))
    for path in (*files, tmp_path / "palette.png", tmp_path / "float.tif"):
        mask = read_mask(path, (20, 30))
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, truth, err_msg=path.name)


def test_mask_threshold(tmp_path):
    values = np.array([[0, 1, 127, 128, 255]], np.uint8)
    assert read_mask(save(tmp_path / "a.png", values)).tolist() == [[False, False, False, True, True]]
    assert read_mask(save(tmp_path / "a.png", values[:, :3])).tolist() == [[False, True, True]]
    assert read_mask(save(tmp_path / "a.png", values[:, 4:])).tolist() == [[True]]
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    picture.putpalette([0, 0, 0, 64, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "p.png")
    assert read_mask(tmp_path / "p.png").tolist() == [[False, True, True]]


def test_mask_errors(tmp_path):
    path = save(tmp_path / "m.png", (GREY8 > 9))
    refused(read_mask, path, (50, 40), match=r"m\.png: the mask is 40 x 50 .* the image is 50 x 40")
    refused(read_mask, save(tmp_path / "z.png", GREY8 * 0), match=r"z\.png: the mask has no foreground")
    refused(read_mask, tmp_path / "none.png", match="cannot be read")


@pytest.mark.parametrize(
    ("array", "scale"),
    [(GREY8, 255), (RGB8, 255), (GREY16, 65535), (GREY16.astype(">u2"), 65535), (GREY8 > 99, 1)],
    ids=["grey8", "rgb8", "grey16", "grey16be", "bool"],
)
def test_as_image_scales_integer_arrays(array, scale):
    before = array.copy()
    image = as_image(array)
    assert image.dtype == np.float32
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, (array.astype(np.float32) / np.float32(scale)).reshape(40, 50, -1))
    image[:] = 0.5
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 4, 64])
def test_as_image_takes_floats_as_they_are_and_copies(dtype, channels):
    array = RNG.random((34, 40, channels)).astype(dtype)
    array.flags.writeable = False
    image = as_image(array)
    assert image.dtype == np.float32
    assert image.flags.writeable
    assert not np.shares_memory(image, array)
    np.testing.assert_array_equal(image, array.astype(np.float32))
    np.testing.assert_array_equal(as_image(array[::-1]), array[::-1].astype(np.float32))  # negative strides


def test_as_image_takes_tensors():
    array = RNG.random((3, 40, 50), dtype=np.float32)
    tensor = torch.from_numpy(array.copy()).requires_grad_()
    expected = array.transpose(1, 2, 0)
    for given in (tensor, tensor[None], tensor.double()):
        image = as_image(given)
        assert image.flags.c_contiguous
        np.testing.assert_array_equal(image, expected)
        image[:] = 0
    np.testing.assert_array_equal(tensor.detach().numpy(), array)
    np.testing.assert_array_equal(as_image(tensor[0]), expected[:, :, :1])
    np.testing.assert_array_equal(as_image(tensor[:1]), expected[:, :, :1])
    half = torch.from_numpy(array).bfloat16()
    np.testing.assert_array_equal(as_image(half), half.float().permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(as_image(torch.from_numpy(GREY8)), unit(GREY8)[:, :, :1])
    np.testing.assert_array_equal(as_image(torch.from_numpy(GREY8) > 99)[:, :, 0], GREY8 > 99)


def test_as_image_takes_paths(tmp_path):
    path = save(tmp_path / "a.png", RGB8)
    np.testing.assert_array_equal(as_image(path), unit(RGB8))
    np.testing.assert_array_equal(as_image(str(path)), unit(RGB8))
    refused(as_image, str(tmp_path / "b.png"), match="cannot be read")


FLOATS = RNG.random((40, 50))


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (None, "is of type NoneType"),
        ([[0, 1]], "is of type list; accepted are"),
        (Image.fromarray(GREY8), "accepted are a file path"),
        (np.zeros(40), r"has shape \(40,\)"),
        (np.zeros((2, 40, 50, 3)), r"accepted is one image of shape \(H, W\) or \(H, W, C\)"),
        (np.zeros((1, 40, 50, 3)), "has shape"),
        (np.moveaxis(RGB8, 2, 0), r"looks channel-first.*transpose\(1, 2, 0\)"),
        (torch.from_numpy(RGB8), r"looks channel-last.*permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 40, 50), r"\(1, C, H, W\)"),
        (np.zeros((40, 50, 65)), "has 65 channels; accepted are 1 to 64"),
        (torch.zeros(65, 40, 50), "has 65 channels"),
        (np.zeros((40, 50, 0)), "has 0 channels"),
        (np.zeros((0, 0)), "0 x 0 pixels"),
        (GREY8[:32], "32 x 50 pixels"),
        (torch.from_numpy(GREY8[:, :32]), "40 x 32 pixels"),
        (GREY8.astype(np.int64), "int64 is not supported; accepted are bool, uint8, uint16"),
        (torch.from_numpy(GREY8).int(), "int32 is not supported"),
        (FLOATS.astype(complex), "complex128 is not supported"),
        (FLOATS.astype(object), "object is not supported"),
        (torch.from_numpy(FLOATS).to_sparse(), "has no plain values"),
        (torch.empty(3, 40, 50, device="meta"), "has no plain values"),
        (FLOATS * 255, r"found 0\.\d+ to 25\d.*rescale"),
        (FLOATS - 0.5, r"must be in \[0, 1\], found -0\."),
        (np.where(FLOATS > 0.9, np.nan, FLOATS), "NaN or infinite"),
        (np.where(FLOATS > 0.9, np.inf, FLOATS), "NaN or infinite"),
        (torch.from_numpy(np.where(FLOATS > 0.9, -np.inf, FLOATS)), "NaN or infinite"),
        (np.full((40, 50, 3), 0.25), "all pixels are equal"),
    ],
)
def test_as_image_refuses(image, match):
    refused(as_image, image, match=f"^image: .*{match}")
    refused(as_image, image, name="left", match="^left: ")


def test_as_image_forgives_rounding():
    array = FLOATS.copy()
    array[0, :2] = -5e-7, 1 + 5e-7
    image = as_image(array)
    assert image.min() == 0
    assert image.max() == 1


def test_import_is_light():
    code = "import sys, msformer_fast.inputs; assert not {'torch', 'skimage', 'tifffile'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "size", "fitted"),
    [
        ((480, 640), 224, (168, 224)),
        ((640, 480), 224, (224, 168)),
        ((100, 100), 33, (33, 33)),
        ((333, 500), 251, (167, 251)),
        ((50, 60), 240, (200, 240)),
        ((40, 50), None, (40, 50)),
        ((40, 50), np.int64(50), (40, 50)),
    ],
)
def test_fit_size(given, size, fitted):
    assert fit_size(*given, size) == fitted


@pytest.mark.parametrize("size", [32, 0, -5, True, 100.0, "100"])
def test_fit_size_refuses_bad_sizes(size):
    refused(fit_size, 100, 100, size, match="size: .*smallest size that works for this image is 33")


def test_fit_size_names_the_smallest_size_that_works():
    for height, width in [(100, 1000), (1000, 101), (33, 34), (40, 5000), (20, 30), (1, 99)]:
        with pytest.raises(InputError) as caught:
            fit_size(height, width, 33)
        smallest = int(str(caught.value).split()[-1])
        assert min(fit_size(height, width, smallest)) == 33
        refused(fit_size, height, width, smallest - 1, match=f"{smallest}$")
    refused(fit_size, 20, 60, None, match="would be 20 pixels")
    refused(fit_size, 20, 30, None, match="under the minimum of 33")
    refused(fit_size, 0, 30, 50, match="at least 1")


def test_resize_image_identity_returns_the_input():
    image = RNG.random((40, 50, 3), dtype=np.float32)
    assert resize_image(image, (40, 50)) is image


@pytest.mark.parametrize("shape", [(1, 1), (7, 91), (39, 51), (133, 20), (80, 100), (41, 50)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_resize_image_shape_and_range(shape, channels):
    image = RNG.integers(0, 2, (40, 50, channels)).astype(np.float32)
    before = image.copy()
    result = resize_image(image, shape)
    assert result.dtype == np.float32
    assert result.shape == (*shape, channels)
    assert result.min() >= 0
    assert result.max() <= 1
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(resize_image(np.ones_like(image), shape), 1)


def test_resize_image_averages_when_it_shrinks_and_keeps_the_centre():
    stripes = np.tile(np.array([0, 1], np.float32), 50)[None, :, None].repeat(64, 0)
    assert np.abs(resize_image(stripes, (8, 10)) - 0.5).max() < 0.02
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None].repeat(64, 0)
    for shape in ((64, 32), (64, 100)):
        result = resize_image(ramp, shape)[0, :, 0]
        np.testing.assert_allclose(result + result[::-1], 1, atol=1e-5)
    refused(resize_image, ramp, (0, 5), match="at least 1")


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.int64, np.uint16])
def test_resize_nearest(dtype):
    labels = RNG.integers(0, 2, (37, 50)).astype(dtype)
    for shape in ((37, 50), (1, 1), (74, 150), (12, 17), (200, 33)):
        result = resize_nearest(labels, shape)
        assert result.dtype == dtype
        rows = [int(np.floor((i + 0.5) * 37 / shape[0])) for i in range(shape[0])]
        columns = [int(np.floor((j + 0.5) * 50 / shape[1])) for j in range(shape[1])]
        np.testing.assert_array_equal(result, labels[np.ix_(rows, columns)])
    np.testing.assert_array_equal(resize_nearest(resize_nearest(labels, (111, 150)), (37, 50)), labels)
    refused(resize_nearest, labels, (5, 0), match="at least 1")


def test_write_png_of_every_kind(tmp_path):
    path = tmp_path / "a.png"
    mask = GREY8 > 99
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)

    def written(array, **options):
        write_png(path, array, **options)
        with Image.open(path) as picture:
            return picture.mode, np.asarray(picture), np.asarray(picture.convert("RGB"))

    mode, values, _ = written(mask)
    assert mode == "L"
    np.testing.assert_array_equal(values, mask * np.uint8(255))
    np.testing.assert_array_equal(read_mask(path), mask)
    mode, values, _ = written(RGB8)
    assert mode == "RGB"
    np.testing.assert_array_equal(values, RGB8)
    for dtype in (np.uint8, np.int64):
        mode, values, colours = written(GREY8.astype(dtype), palette=palette)
        assert mode == "P"
        np.testing.assert_array_equal(values, GREY8)
        np.testing.assert_array_equal(colours, palette[GREY8])
    mode, values, colours = written(GREY8 % 3, palette=palette[:3])
    assert mode == "P"
    np.testing.assert_array_equal(values, GREY8 % 3)
    mode, values, _ = written(GREY8)
    assert mode == "L"
    for options in ({}, {"palette": palette}):
        mode, values, _ = written(GREY16.astype(np.int32), **options)
        assert mode == "I;16"
        np.testing.assert_array_equal(values, GREY16)


@pytest.mark.parametrize(
    ("array", "options", "match"),
    [
        (FLOATS, {}, "cannot write float64"),
        (RGB16, {}, "cannot write uint16"),
        (RGB8[:, :, :2], {}, "cannot write uint8"),
        (np.zeros((0, 5), np.uint8), {}, "cannot write"),
        (GREY8.astype(int) - 300, {}, "labels from -300"),
        (GREY8.astype(int) + 65500, {}, "accepted are 0 to 65535"),
        (GREY8, {"palette": np.zeros((5, 3), np.uint8)}, "needs a uint8 palette"),
        (GREY8, {"palette": np.zeros((256, 3), np.float32)}, "needs a uint8 palette"),
        (GREY8, {"palette": np.zeros((256, 4), np.uint8)}, "needs a uint8 palette"),
    ],
)
def test_write_png_refuses(tmp_path, array, options, match):
    refused(write_png, tmp_path / "a.png", array, match=match, **options)
    assert not list(tmp_path.iterdir())


def test_a_failed_png_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_png(path, RGB8)
    old = path.read_bytes()

    def fail(self, file, format):
        file.write(b"\x89PNG half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        write_png(path, GREY8)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
