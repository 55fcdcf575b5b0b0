"""Volumes in a run: slice by slice, on their own grid, gone on with within a volume, and without a patient's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import msformer_fast.segmentation
from msformer_fast import phantom
from msformer_fast.cli import main
from msformer_fast.cohort.job import run_task
from msformer_fast.cohort.results import PARTIAL
from msformer_fast.cohort.task import Options, Task
from msformer_fast.errors import DivergenceError
from msformer_fast.images import resize_image

from .cohort_samples import OPTIONS, SETTINGS, lines, write_images

nibabel = pytest.importorskip("nibabel")
SHAPE = (44, 52)  # of a slice as it is shown
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 3.0, 0, -80], [0, 0, 5.0, 20], [0, 0, 0, 1]])  # LAS


def shown_slices() -> np.ndarray[Any, Any]:
    """Five slices as they are shown, (5, H, W); the second has nothing in it."""
    slices = [phantom.lesion((96, 96), seed=seed)[0].mean(axis=2, keepdims=True) for seed in range(5)]
    volume = np.stack([resize_image(each.astype(np.float32), SHAPE)[..., 0] for each in slices])
    volume[1] = 0
    return volume


def write_nifti(path: Path) -> Path:
    # Voxel axis 0 runs to the patient's left, as columns do; axis 1 to the front, against rows.
    voxels = (shown_slices()[:, ::-1].transpose(2, 1, 0) * 900).astype(np.int16)
    image = nibabel.Nifti1Image(voxels, AFFINE)
    image.header["descrip"] = b"Zebra^Quagga"
    nibabel.save(image, path)
    return path


def test_a_nifti_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz")
    assert main(["segment", str(path), "-o", str(tmp_path / "out"), *OPTIONS]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 4
    assert "5 slices: 1 without contrast" in captured.err
    mask = nibabel.load(tmp_path / "out" / "scan_mask.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, AFFINE)
    values = np.asarray(mask.dataobj)
    assert values.shape == (52, 44, 5)
    per_slice = values.sum(axis=(0, 1))
    assert per_slice[1] == 0
    assert (np.delete(per_slice, 1) > 0).all()
    # What is masked is dark on the volume's own grid: nothing was turned the wrong way.
    voxels = np.asarray(nibabel.load(path).dataobj)
    for index in (0, 2, 3, 4):
        inside = values[..., index] > 0
        assert voxels[..., index][inside].mean() < voxels[..., index][~inside].mean() - 100
    labels = nibabel.load(tmp_path / "out" / "scan_labels.nii.gz")
    assert labels.shape == mask.shape
    record = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert [bool(each.get("blank")) for each in record["slices"]] == [False, True, False, False, False]
    assert Image.open(tmp_path / "out" / "scan_overlay.png").width > 200
    for written in (tmp_path / "out").iterdir():
        assert b"Zebra" not in written.read_bytes()


def test_a_volume_among_images(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    write_nifti(tmp_path / "in" / "scan.nii.gz")
    write_nifti(tmp_path / "in" / "image000.nii")
    out = tmp_path / "out"
    assert main(["segment", str(tmp_path / "in"), "-o", str(out), "--threads", "1", *OPTIONS]) == 0
    assert [line["output"] for line in lines(out)] == ["image000.nii", "image000.png", "scan"]
    volume = lines(out)[-1]
    assert (volume["slices"], volume["slices_blank"], volume["status"]) == (5, 1, "done")
    assert 0 < volume["confidence_min"] <= volume["confidence"] <= 1
    assert "scan_mask.nii.gz" in (out / "index.html").read_text()
    assert not (out / PARTIAL).exists()


def test_slices_that_are_done_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run that is killed within a volume, here by an error at its fourth slice with something in it."""
    task = Task(str(write_nifti(tmp_path / "scan.nii")), "scan", str(tmp_path / "out"), SETTINGS, run="r")
    whole = run_task(Task(task.path, "scan", str(tmp_path / "whole"), SETTINGS, run="r"))
    real, calls = msformer_fast.segmentation.segment, []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise DivergenceError("a loss became NaN")
        return real(*arguments, **options)

    monkeypatch.setattr(msformer_fast.segmentation, "segment", failing)
    line = run_task(task)
    assert (line["status"], line["reason"]) == ("failed", "slice 4: a loss became NaN")
    kept = next((tmp_path / "out" / PARTIAL).iterdir())
    (kept / "00000.npz").write_bytes(b"half")  # what cannot be read is done again
    line = run_task(task)
    assert line["status"] == "done"
    assert len(calls) == 4 + 2
    assert {**line, "seconds": 0} == {**whole, "seconds": 0}
    for name in ("scan_mask.nii.gz", "scan_labels.nii.gz", "scan_overlay.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_volume_that_the_memory_cannot_hold(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii")
    line = run_task(Task(str(path), "scan", str(tmp_path), SETTINGS, budget=10**6))
    assert line["status"] == "failed"
    assert "5 x 44 x 52 pixels would take 0.1 GB of memory and 0.0 GB are there" in line["reason"]


def test_axis_and_window(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii")
    line = run_task(Task(str(path), "scan", str(tmp_path), SETTINGS, Options(axis=2, window=(450.0, 900.0))))
    assert (line["status"], line["image_size"]) == ("done", list(SHAPE))
    line = run_task(Task(str(path), "scan", str(tmp_path), SETTINGS, Options(axis=0)))
    assert (line["status"], "at least 33" in line["reason"]) == ("failed", True)


def test_an_empty_mask_of_a_volume_says_so(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((52, 44, 3), 7, np.int16), AFFINE), tmp_path / "blank.nii")
    line = run_task(Task(str(tmp_path / "blank.nii"), "blank", str(tmp_path), SETTINGS))
    assert (line["status"], line["pixels"]) == ("done", 0)
    assert line["reason"] == "3 slices: 3 without contrast, 0 doubtful; the mask is empty"


def test_a_window_beyond_all_values_of_a_volume(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii")
    line = run_task(Task(str(path), "scan", str(tmp_path), SETTINGS, Options(window=(9000.0, 10.0))))
    assert line["status"] == "failed"
    assert "the window lies beyond all of the volume's values" in line["reason"]
