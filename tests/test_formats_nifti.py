"""NIfTI volumes: grey levels, orientation, masks turned back, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast.files import OutputError
from msformer_fast.formats import open_image

from . import medical_samples as samples
from .conftest import SEED
from .image_samples import refused

nibabel = pytest.importorskip("nibabel")
SHAPE = (36, 39, 42)
VOXELS = np.random.default_rng(3).integers(-500, 1500, SHAPE, dtype=np.int16)


def write(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray | None = None, **fields: Any) -> Path:
    """A file with a patient in every text of its header, and an extension."""
    image = nibabel.Nifti1Image(voxels, np.diag([-2.0, 2, 3, 1]) if affine is None else affine)
    header = image.header
    header["descrip"], header["db_name"], header["intent_name"] = b"Zebra^Quagga", b"OKAPI-77", b"zebra"
    header["aux_file"] = b"quagga"
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Zebra^Quagga"))
    header.set_xyzt_units("mm", "sec")
    data = bytearray(image.to_bytes())
    for field, (place, dtype, value) in fields.items():
        assert field
        raw = np.asarray(value, dtype).tobytes()
        data[place : place + len(raw)] = raw
    path.write_bytes(gzip.compress(bytes(data)) if path.name.endswith(".gz") else bytes(data))
    return path


def scale(slope: float, intercept: float) -> dict[str, Any]:
    return {"slope": (112, "<f4", slope), "intercept": (116, "<f4", intercept)}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_grey_levels(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name.lower(), **scale(0.5, 10)).rename(tmp_path / name)
    file = open_image(path)
    assert (file.kind, file.is_volume, file.frames, file.shape) == ("nifti", True, 42, (39, 36))
    values = VOXELS * 0.5 + 10
    low, high = np.percentile(values, [0.5, 99.5])
    # The affine runs from right to left (so x is kept) and from posterior to anterior (so y is flipped).
    expected = np.clip((values - low) / (high - low), 0, 1)[:, ::-1, 7].T
    frame = file.read(7)
    assert frame.dtype == np.float32 and frame.shape == (39, 36, 1)
    np.testing.assert_allclose(frame[:, :, 0], expected, atol=1e-6)
    narrow = open_image(path, window=(100, 200)).read(7)[:, :, 0]
    np.testing.assert_allclose(narrow, np.clip(values / 200, 0, 1)[:, ::-1, 7].T, atol=1e-6)


def test_a_negative_slope_inverts(tmp_path: Path) -> None:
    upright = open_image(write(tmp_path / "a.nii")).read(3)
    inverted = open_image(write(tmp_path / "b.nii", **scale(-1, 0))).read(3)
    np.testing.assert_allclose(inverted, 1 - upright, atol=1e-6)


def test_floats_that_are_no_numbers(tmp_path: Path) -> None:
    voxels = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    voxels[0, 0, 0], voxels[1, 0, 0], voxels[2, 0, 0] = np.nan, np.inf, -np.inf
    frame = open_image(write(tmp_path / "a.nii", voxels), window=(0.5, 1)).read(0)[::-1, :, 0]
    assert frame[0, :3].tolist() == [0, 1, 0]
    np.testing.assert_allclose(frame[1], voxels[:, 1, 0], atol=1e-6)
    nothing = open_image(write(tmp_path / "b.nii", np.full(SHAPE, np.nan, np.float32)))
    assert not nothing.read(0).any()


def test_blank_slices_and_volumes_are_all_zeros(tmp_path: Path) -> None:
    voxels = VOXELS.copy()
    voxels[:, :, 3] = -500
    file = open_image(write(tmp_path / "a.nii", voxels))
    assert not file.read(3).any() and file.read(4).any()
    assert not open_image(write(tmp_path / "b.nii", np.full(SHAPE, 7, np.uint8))).read(0).any()
    # Fewer than half a per cent are not blank.
    sparse = np.zeros(SHAPE, np.uint8)
    sparse[3, 3, 3] = 200
    assert open_image(write(tmp_path / "c.nii", sparse)).read(3).max() == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_turned_as_a_radiologist_sees_them(tmp_path: Path, axis: int) -> None:
    """One volume of known content, stored with its axes permuted and flipped in all 48 ways, is shown in one way."""
    source = np.random.default_rng(SEED)
    world = source.integers(0, 1000, (40, 40, 40), dtype=np.int16)  # x to the right, y to anterior, z to superior
    for order in itertools.permutations(range(3)):
        flips = source.choice([-1, 1], 3)
        stored = world.transpose(order)
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for voxel_axis, world_axis in enumerate(order):
            affine[world_axis, voxel_axis] = flips[voxel_axis] * (1.5 + voxel_axis)
            if flips[voxel_axis] < 0:
                stored = np.flip(stored, voxel_axis)
        affine[:3, :3] += 0.05 * source.standard_normal((3, 3))  # oblique
        file = open_image(write(tmp_path / "a.nii", stored, affine), axis=axis, window=(500, 1000))
        assert file.shape == (40, 40)
        along = order[axis]
        index = int(source.integers(0, 40))
        plane = world.take(index if flips[axis] > 0 else 39 - index, axis=along)
        # What is left of x, y, z: the higher one down the rows, both from + to -.
        expected = plane.T[::-1, ::-1]
        np.testing.assert_allclose(file.read(index)[:, :, 0], expected / 1000, atol=1e-6)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_comes_back_on_its_voxels(tmp_path: Path, axis: int, suffix: str) -> None:
    source = np.random.default_rng(SEED + axis)
    for number in range(4):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[source.permutation(3)] * source.choice([-1, 1], 3) * [1.0, 2.0, 3.0]
        affine[:3, 3] = source.normal(size=3)
        voxels = source.integers(0, 1000, SHAPE, dtype=np.int16)
        file = open_image(write(tmp_path / f"a{suffix}", voxels, affine), axis=axis, window=(500, 1000))
        # Painted on the slices: what is bright there.
        painted = np.stack([file.read(index)[:, :, 0] > 0.7 for index in range(file.frames)])
        volume: np.ndarray = painted if number % 2 else painted.astype(np.uint16) * 300
        path = tmp_path / f"mask{suffix}"
        file.save(volume, path)
        mask = nibabel.load(path)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), (voxels > 700) * (1 if number % 2 else 300))
        assert mask.get_data_dtype() == (np.uint8 if number % 2 else np.uint16)
        first = path.read_bytes()
        file.save(volume, path)
        assert path.read_bytes() == first
        if suffix == ".nii.gz":
            assert first[4:8] == bytes(4), "no time of day"
        original = nibabel.load(file.path)
        np.testing.assert_array_equal(mask.affine, original.affine)


def test_the_geometry_is_kept_and_the_patient_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz")
    original = nibabel.load(path)
    affine = np.array([[2, 0.1, 0, 5], [-0.1, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(VOXELS, original.affine, original.header)
    image.set_sform(affine, "mni")
    image.set_qform(affine, "scanner")
    nibabel.save(image, path)
    assert samples.leaks(gzip.decompress(path.read_bytes()))
    file = open_image(path)
    file.save(np.ones((42, 39, 36), bool), tmp_path / "m.nii.gz")
    written = nibabel.load(tmp_path / "m.nii.gz")
    for form, code in (("sform", 4), ("qform", 1)):
        np.testing.assert_array_equal(getattr(written, f"get_{form}")(), getattr(nibabel.load(path), f"get_{form}")())
        assert written.header[f"{form}_code"] == code
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert not samples.leaks(gzip.decompress((tmp_path / "m.nii.gz").read_bytes()))
    assert not written.header.extensions


def test_other_shapes_and_nifti_2(tmp_path: Path) -> None:
    for shape in ((*SHAPE, 1), SHAPE[:2], (*SHAPE[:2], 1)):
        voxels = np.random.default_rng(2).integers(0, 900, shape, dtype=np.int16)
        for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
            path = tmp_path / "a.nii"
            nibabel.save(kind(voxels, np.diag([-1.0, -1, 1, 1])), path)
            file = open_image(path, window=(450, 900))
            assert file.frames == (shape[2] if len(shape) > 2 else 1) and file.is_volume
            masks = np.stack([file.read(index)[:, :, 0] > 0.5 for index in range(file.frames)])
            file.save(masks, tmp_path / "m.nii.gz")
            written = nibabel.load(tmp_path / "m.nii.gz")
            assert isinstance(written, kind)
            np.testing.assert_array_equal(np.asarray(written.dataobj), voxels > 450)


def test_big_endian(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, np.diag([-2.0, 2, 3, 1]))
    header = image.header.as_byteswapped()
    nibabel.save(nibabel.Nifti1Image(VOXELS, image.affine, header), tmp_path / "a.nii")
    expected = open_image(write(tmp_path / "b.nii")).read(5)
    np.testing.assert_array_equal(open_image(tmp_path / "a.nii").read(5), expected)


def test_levels_of_a_large_volume_come_from_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_image(write(tmp_path / "a.nii")).read(5)
    monkeypatch.setattr("msformer_fast.formats.nifti._SAMPLE", 5000)
    first, second = (open_image(tmp_path / "a.nii").read(5) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert 0 < np.abs(first - whole).max() < 0.05


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for voxels, match in (
        (colours, "colours, complex"),
        (VOXELS.astype(np.complex64), "colours, complex"),
        (np.zeros((36, 39, 4, 2), np.uint8), "holds 36 x 39 x 4 x 2 voxels"),
        (np.zeros((36, 12, 42), np.uint8), "12 x 36|36 x 12"),
        (np.zeros(50, np.uint8), "holds 50 voxels"),
    ):
        refused(open_image, write(path, voxels), match=match)
    refused(open_image, write(path), axis=3, match="axis: got 3; accepted are 0, 1 and 2")
    refused(open_image, path, window=(1, 0), match="window: got 1, 0")
    refused(open_image, path, max_pixels=1000, match="36 x 39 is more than 1000 pixels")
    refused(open_image, write(path, np.zeros((33, 33, 400), np.uint8)), max_pixels=33 * 33, match="more than 10890 vox")
    file = open_image(write(path))
    refused(file.read, 42, match="has no frame 42; accepted are 0 to 41")
    refused(file.save, np.zeros((42, 36, 39), bool), tmp_path / "m.nii", match="accepted is bool or unsigned")
    refused(file.save, np.zeros((42, 39, 36), int), tmp_path / "m.nii", match="accepted is bool or unsigned")
    refused(file.save, np.full((42, 39, 36), 70000, np.uint32), tmp_path / "m.nii", match="up to 70000 do not fit")
    with pytest.raises(OutputError, match="cannot be written"):
        file.save(np.zeros((42, 39, 36), bool), tmp_path / "none" / "m.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_damage(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    for part in (0.99, 0.5, 0.01):
        path.write_bytes(data[: int(part * len(data))])
        refused(lambda: open_image(path).read(0), match="truncated NIfTI file")
    path.write_bytes(b"nothing of the kind" * 100)
    refused(lambda: open_image(path).read(0), match="NIfTI")
    if suffix == ".nii.gz":  # stored, so that only the checksum knows
        stored = bytearray(gzip.compress(gzip.decompress(data), 0))
        stored[len(stored) // 2] ^= 1
        path.write_bytes(stored)
        refused(lambda: open_image(path).read(0), match="damaged or truncated NIfTI file")
    promises_more = {"dim": (40, "<i2", [3, 20000, 20000, 1])}
    refused(open_image, write(path, **promises_more), max_pixels=2**40, match="promises more voxels than it holds")


def test_a_header_that_promises_little_does_not_inflate_a_bomb(tmp_path: Path) -> None:
    import tracemalloc

    path = write(tmp_path / "a.nii.gz")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**27)))
    tracemalloc.start()
    assert open_image(path).read(0).any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25


def test_without_nibabel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.nii")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    refused(open_image, path, match=r"a\.nii: reading NIfTI needs nibabel; install msformer-fast\[nifti\]")


def test_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    bad = {"qform": (252, "<i2", 999), "pixdim": (76, "<f4", [0, -1, 0, 0]), "sform": (254, "<i2", -5)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = write(tmp_path / "a.nii", **bad)
        caught.clear()
        caplog.clear()
        capfd.readouterr()
        file = open_image(path)
        file.read(0)
        file.save(np.zeros((file.frames, *file.shape), bool), tmp_path / "m.nii")
    assert not caught and not caplog.records and capfd.readouterr() == ("", "")
