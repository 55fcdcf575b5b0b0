"""NIfTI headers that are half broken, and files named as what they are not: shown as nibabel says, or refused."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast import InputError
from msformer_fast.formats import open_image

from .conftest import SEED
from .image_samples import refused

nibabel = pytest.importorskip("nibabel")
SHAPE = (36, 39, 42)
VOXELS = np.random.default_rng(3).integers(0, 1000, SHAPE, dtype=np.int16)
KINDS = [nibabel.Nifti1Image, nibabel.Nifti2Image]
DAMAGES: list[tuple[str, Any]] = [("none", None)]
DAMAGES += [("pixdim0", value) for value in (0, 5, -2, 0.5, np.nan, np.inf, -np.inf)]
DAMAGES += [(f"pixdim{axis}", value) for axis in (1, 2, 3) for value in (0, -1.5, np.nan, np.inf, -np.inf)]
DAMAGES += [("qform_code", 999), ("qform_code", -3), ("sform_code", 999), ("sform_code", -1)]
DAMAGES += [("qoffset_x", np.nan), ("quaternion", 1.5), ("quaternion", 1.0001), ("quaternion", np.nan)]
DAMAGES += [("srow", np.nan), ("srow", np.inf), ("srow", 0), ("srow", 3e38), ("column", 0), ("offset", np.nan)]


def affines() -> list[np.ndarray]:
    """All 48 ways in which a volume can lie, with voxels of 1, 2 and 3 mm."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((-1, 1), repeat=3):
            affine = np.diag([1.0, 1, 1, 1])
            affine[:3, :3] = np.eye(3)[list(order)] * signs * [1.0, 2, 3]
            found.append(affine)
    return found


def header_of(kind: Any, affine: np.ndarray, forms: str, damage: str, value: Any) -> Any:
    image = kind(VOXELS, affine)
    image.set_qform(affine if "q" in forms else None, int("q" in forms))
    image.set_sform(affine if "s" in forms else None, 2 * int("s" in forms))
    header = image.header.copy()
    if damage.startswith("pixdim"):
        header["pixdim"][int(damage[-1])] = value
    elif damage == "quaternion":
        for field in ("quatern_b", "quatern_c", "quatern_d"):
            header[field] = float(header[field]) * value
    elif damage == "srow":
        header["srow_y"] = value
    elif damage == "column":
        for field in ("srow_x", "srow_y", "srow_z"):
            header[field][2] = value
    elif damage == "offset":
        header["srow_x"][3] = value
    elif damage != "none":
        header[damage] = value
    header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
    return header


def write(path: Path, header: Any) -> Path:
    path.write_bytes(header.binaryblock + bytes(4) + VOXELS.tobytes(order="F"))
    return path


def as_nibabel_says(path: Path, axis: int, index: int) -> np.ndarray | None:
    """The slice by the affine with which nibabel loads the file; ``None`` if it has none for it."""
    try:
        with np.errstate(all="ignore"):
            orientation = nibabel.io_orientation(nibabel.load(path).affine)
    except Exception:
        return None
    first, second = np.delete(orientation, axis, 0)
    if not np.isfinite([first, second]).all():
        return None
    plane = VOXELS.take(index, axis)
    rows, columns = (first, second) if first[0] > second[0] else (second, first)
    plane = plane if first[0] > second[0] else plane.T
    return plane[:: -1 if rows[1] > 0 else 1, :: -1 if columns[1] > 0 else 1] / 1000


@pytest.mark.parametrize(("damage", "value"), DAMAGES, ids=[f"{name} {value}" for name, value in DAMAGES])
@pytest.mark.filterwarnings("ignore")
def test_as_nibabel_loads_it_or_refused(tmp_path: Path, damage: str, value: Any) -> None:
    source = np.random.default_rng(SEED)
    for forms in ("q", "s", "qs", ""):
        for affine in (affines()[each] for each in source.choice(48, 4, replace=False)):
            path = write(tmp_path / "a.nii", header_of(KINDS[int(source.integers(2))], affine, forms, damage, value))
            # What the image should look like: as if nothing was broken.
            intact = write(tmp_path / "b.nii", header_of(KINDS[0], affine, forms, "none", None))
            for axis in range(3):
                expected = as_nibabel_says(path, axis, 7)
                try:
                    frame = open_image(path, axis=axis, window=(500, 1000)).read(7)[:, :, 0]
                except InputError:
                    assert expected is None, (forms, axis)
                    continue
                if expected is None:  # mended beyond nibabel: only to what it was
                    expected = as_nibabel_says(intact, axis, 7)
                    assert expected is not None
                np.testing.assert_allclose(frame, expected, atol=1e-6, err_msg=f"{forms} {axis}")


@pytest.mark.parametrize(
    ("forms", "damage", "value", "match"),
    [
        ("s", "srow", np.nan, "does not say how the volume lies"),
        ("s", "srow", 0, "does not say how the volume lies"),
        ("q", "quaternion", 1e9, "does not say how the volume lies"),
        ("q", "quatern_b", np.nan, "does not say how the volume lies"),
        ("q", "quatern_d", np.inf, "does not say how the volume lies"),
    ],
)
def test_what_cannot_be_mended_is_refused(tmp_path: Path, forms: str, damage: str, value: Any, match: str) -> None:
    path = write(tmp_path / "a.nii", header_of(KINDS[0], np.diag([-1.0, 2, -3, 1]), forms, damage, value))
    refused(open_image, path, match=match)


def test_a_volume_without_depth_is_shown_in_its_plane(tmp_path: Path) -> None:
    affine = np.diag([1.0, -2, 3, 1])
    path = write(tmp_path / "a.nii", header_of(KINDS[0], affine, "s", "column", 0))
    expected = as_nibabel_says(path, 2, 7)
    assert expected is not None
    np.testing.assert_allclose(open_image(path, window=(500, 1000)).read(7)[:, :, 0], expected, atol=1e-6)
    refused(open_image, path, axis=0, match="does not say how the volume lies")


def test_masks_of_mended_headers_lie_where_their_image_does(tmp_path: Path) -> None:
    for damage, value in (("pixdim0", 0), ("pixdim2", -2), ("pixdim1", 0), ("qform_code", 999)):
        path = write(tmp_path / "a.nii", header_of(KINDS[0], np.diag([-1.0, 2, 3, 1]), "q", damage, value))
        file = open_image(path, window=(500, 1000))
        masks = np.stack([file.read(index)[:, :, 0] > 0.7 for index in range(file.frames)])
        file.save(masks, tmp_path / "m.nii.gz")
        mask, image = nibabel.load(tmp_path / "m.nii.gz"), nibabel.load(path)
        np.testing.assert_array_equal(mask.affine, image.affine)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), VOXELS > 700)


def test_compressed_or_not_by_content(tmp_path: Path) -> None:
    data = KINDS[0](VOXELS, np.eye(4)).to_bytes()
    expected = open_image(_written(tmp_path / "a.nii", data)).read(3)
    for name, content in (("b.nii.gz", data), ("c.nii", gzip.compress(data)), ("D.NII", gzip.compress(data))):
        file = open_image(_written(tmp_path / name, content))
        np.testing.assert_array_equal(file.read(3), expected)
        file.save(np.ones((file.frames, *file.shape), bool), tmp_path / "m.nii.gz")
    refused(open_image, _written(tmp_path / "e.nii.gz", gzip.compress(gzip.compress(data))), match="compressed twice")
    for name in ("c.nii", "b.nii.gz"):
        part = (tmp_path / name).read_bytes()[:-300]
        refused(lambda path: open_image(path).read(0), _written(tmp_path / name, part), match="truncated NIfTI file")


def test_a_window_beyond_all_values(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.nii", KINDS[0](VOXELS, np.eye(4)).to_bytes())
    for centre in (5000, -5000):
        refused(
            open_image(path, window=(centre, 100)).read, 0, match="since the window lies beyond all of the volume's"
        )
    assert open_image(path, window=(999, 4)).read(0).shape == (39, 36, 1)
    blank = _written(tmp_path / "b.nii", KINDS[0](VOXELS * 0, np.eye(4)).to_bytes())
    assert np.ptp(open_image(blank, window=(5000, 100)).read(0)) == 0, "a volume without contrast is no fault of it"


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
