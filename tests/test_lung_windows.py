"""CT in Hounsfield units: the window that shows lungs is taken unasked and said, and volumes keep what goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import msformer_fast
from msformer_fast import phantom
from msformer_fast.cli import main
from msformer_fast.cohort.lung_volume import is_lung_volume, joined_lungs
from msformer_fast.formats import open_image
from msformer_fast.formats.grey import LUNG_NOTE, looks_like_hounsfield
from msformer_fast.metrics import dice

from .cohort_samples import OPTIONS

nibabel = pytest.importorskip("nibabel")
samples = pytest.importorskip("tests.medical_samples")

IMAGE, TRUTH = phantom.make("ct", (97, 97), 0)
#: The phantom in Hounsfield units.
UNITS: NDArray[np.int16] = np.rint(IMAGE[..., 0] * 1400 - 1000).astype(np.int16)


def dicom(path: Path, **more: Any) -> Path:
    """A CT slice whose own window shows the mediastinum."""
    ds = samples.ct(UNITS + 1024)
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    return Path(samples.write(path, ds))


def test_dicom_of_ct(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm")
    file = open_image(path, lungs=True)
    np.testing.assert_allclose(file.read(0)[..., 0], np.clip((UNITS + 1000) / 1400, 0, 1), atol=1e-5)
    assert file.notes == (LUNG_NOTE,) and file.modality == "ct"
    own = open_image(path)
    assert own.notes == () and not np.allclose(own.read(0), file.read(0), atol=0.1), "the file's own window"
    given = open_image(path, lungs=True, window=(0, 2000))
    assert given.notes == ()
    np.testing.assert_allclose(given.read(0)[..., 0], np.clip((UNITS + 1000) / 2000, 0, 1), atol=1e-5)


def test_dicom_of_other_things(tmp_path: Path) -> None:
    for modality, expected in (("DX", "xray"), ("CR", "xray"), ("MR", None), ("", None)):
        file = open_image(dicom(tmp_path / "a.dcm", Modality=modality), lungs=True)
        assert (file.modality, file.notes) == (expected, ())
    other_units = open_image(dicom(tmp_path / "b.dcm", RescaleType="US"), lungs=True)
    assert (other_units.modality, other_units.notes) == ("ct", ())
    enhanced = samples.enhanced(np.stack([UNITS, UNITS]), [(40, 400)] * 2)
    assert open_image(samples.write(tmp_path / "c.dcm", enhanced), lungs=True).notes == (LUNG_NOTE,)


def volume() -> NDArray[np.int16]:
    """Voxels (97, 97, 5): the phantom five times, with a bubble far from the lungs in the third slice."""
    slices = np.stack([UNITS] * 5)
    slices[2, 58:66, 66:80][TRUTH[58:66, 66:80] == 0] = 30
    return np.asarray(slices[:, ::-1].transpose(2, 1, 0))


def nifti(path: Path, voxels: NDArray[Any]) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-2.0, 2.0, 5.0, 1.0])), path)
    return path


def test_nifti_of_ct(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", volume())
    file = open_image(path, lungs=True)
    np.testing.assert_allclose(file.read(0)[..., 0], np.clip((UNITS + 1000) / 1400, 0, 1), atol=1e-5)
    assert file.notes == (LUNG_NOTE,) and file.modality == "ct"
    assert open_image(path).notes == () and open_image(path, lungs=True, window=(0, 100)).notes == ()
    shifted = open_image(nifti(tmp_path / "b.nii", volume() + np.int16(1024)), lungs=True)
    assert (shifted.notes, shifted.modality) == ((), None), "no Hounsfield units"


def test_values_that_are_hounsfield_units() -> None:
    rng = np.random.default_rng(0)
    body = np.concatenate([np.full(500, -1000.0), rng.normal(-850, 50, 300), rng.normal(40, 30, 400), [900.0]])
    assert looks_like_hounsfield(body)
    for other in (np.zeros(0), body + 1000, body / 1000, np.abs(body), rng.normal(0, 400, 1000), body[body < 0]):
        assert not looks_like_hounsfield(other)


def test_a_slice_by_its_file(tmp_path: Path) -> None:
    result = msformer_fast.segment(dicom(tmp_path / "a.dcm"), size=97, max_iterations=3, channels=8, clusters=8)
    assert result.foreground.rule == "lungs-ct" and "the file says that it is CT" in result.foreground.reason
    assert result.as_dict()["notes"] == [LUNG_NOTE]
    assert dice(result.mask, TRUTH) > 0.93
    skin = msformer_fast.segment(
        dicom(tmp_path / "a.dcm"), rule="lesion", size=97, max_iterations=1, channels=8, clusters=8
    )
    assert skin.notes == () and skin.foreground.doubtful


def test_a_volume_of_ct(tmp_path: Path) -> None:
    path = nifti(tmp_path / "scan.nii.gz", volume())
    assert main(["segment", str(path), "-o", str(tmp_path / "out"), *OPTIONS]) == 0
    record = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert record["rule"] == "lungs-ct" and LUNG_NOTE in record["notes"] and LUNG_NOTE in record["reason"]
    mask = np.asarray(nibabel.load(tmp_path / "out" / "scan_mask.nii.gz").dataobj) > 0
    assert dice(mask[..., 0][:, ::-1].T, TRUTH) > 0.9


def test_parts_of_a_volume_that_no_slice_goes_on_with() -> None:
    masks = np.zeros((4, 40, 50), dtype=bool)
    masks[:, 5:30, 5:20] = True
    masks[1:, 8:28, 30:45] = True
    lungs = masks.copy()
    masks[2, 34:38, 10:20] = True  # gas
    joined, changed = joined_lungs(masks)
    np.testing.assert_array_equal(joined, lungs)
    assert changed == 1
    again, changed = joined_lungs(lungs)
    assert changed == 0 and np.array_equal(again, lungs)
    empty, changed = joined_lungs(np.zeros_like(masks))
    assert not empty.any() and changed == 0


def test_which_volumes_are_of_lungs() -> None:
    ct, xray = ({"foreground": {"rule": rule}} for rule in ("lungs-ct", "lungs-xray"))
    assert is_lung_volume([ct, ct, {"blank": True}, xray, ct])
    assert not is_lung_volume([ct, xray, xray, ct]) and not is_lung_volume([ct, ct]) and not is_lung_volume([])
