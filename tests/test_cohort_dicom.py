"""DICOM files in a run: every kind that a folder may hold, and no word of the patient in what a run says and writes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msformer_fast import phantom
from msformer_fast.cli import main
from msformer_fast.images import resize_image

from .cohort_samples import OPTIONS, lines

pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
from . import medical_samples as samples  # noqa: E402


def grey(seed: int) -> np.ndarray:
    """A drawn lesion, dark on light, (44, 52) in [0, 1]."""
    picture = phantom.lesion((96, 96), seed=seed)[0].mean(axis=2, keepdims=True)
    return resize_image(picture.astype(np.float32), (44, 52))[..., 0]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One slice of CT without a suffix, its negative, a multi-frame object, and a report that is no image."""
    folder = tmp_path / "study of zebra"
    folder.mkdir()
    hounsfield = (grey(0) * 400 - 160).astype(np.int16)
    plain = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 40, "WindowWidth": 400}
    ct = samples.ct(hounsfield)
    for keyword, value in plain.items():
        setattr(ct, keyword, value)
    samples.write(folder / "1.2.840.3", ct)
    samples.write(folder / "negative.dcm", samples.image((255 - grey(0) * 255).astype(np.uint8), "MONOCHROME1"))
    frames = np.stack([(grey(seed) * 900).astype(np.int16) for seed in range(3)])
    samples.write(folder / "frames.dcm", samples.enhanced(frames, [(450, 900)] * 3))
    report = samples.header("1.2.840.10008.5.1.4.1.1.88.11")
    samples.write(folder / "report.dcm", report)
    return folder


def test_a_study(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    caplog.set_level(logging.DEBUG)
    assert main(["segment", str(study), "-o", str(out), "--threads", "1", "--dicom-seg", *OPTIONS]) == 1
    found = {line["output"]: line for line in lines(out)}
    assert {name: line["status"] for name, line in found.items()} == {
        "1.2.840.3": "done",
        "frames": "done",
        "negative": "done",
        "report": "failed",
    }
    assert "holds no picture" in found["report"]["reason"]
    mask = np.asarray(Image.open(out / "1.2.840.3_mask.png")) > 0
    assert grey(0)[mask].mean() < grey(0)[~mask].mean() - 0.1

    seg = highdicom.seg.segread(out / "1.2.840.3_mask.dcm")
    np.testing.assert_array_equal(seg.pixel_array.squeeze() > 0, mask)
    assert (out / "frames_mask.dcm").exists()
    frames = sorted(path.name for path in (out / "frames_mask").iterdir())
    assert frames == ["0001.png", "0002.png", "0003.png"]
    assert found["frames"]["slices"] == 3

    said = capfd.readouterr()
    # The folder's name is the user's own; all else that is said or written is ours.
    texts = [said.out, said.err, caplog.text]
    texts += [path.read_bytes().decode("latin-1") for path in out.rglob("*") if path.is_file()]
    for text in texts:
        assert not samples.leaks(text.replace(str(study), "")), text[:2000]


def test_a_negative_is_shown_as_a_positive(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["segment", str(study / "negative.dcm"), "-o", str(out), *OPTIONS]) == 0
    mask = np.asarray(Image.open(out / "negative_mask.png")) > 0
    assert grey(0)[mask].mean() < grey(0)[~mask].mean() - 0.1


def test_the_patient_is_kept_only_when_asked(study: Path, tmp_path: Path) -> None:
    arguments = ["segment", str(study / "1.2.840.3"), "-o", str(tmp_path), "--dicom-seg"]
    assert main([*arguments, "--keep-patient", *OPTIONS]) == 0
    assert str(highdicom.seg.segread(tmp_path / "1.2.840.3_mask.dcm").PatientName) == "Zebra^Quagga"
    assert main([*arguments, "--overwrite", *OPTIONS]) == 0
    assert not str(highdicom.seg.segread(tmp_path / "1.2.840.3_mask.dcm").PatientName)
