"""DICOM files in a run: every kind that a folder may hold, and no word of the patient in what a run says and writes."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msformer_fast import phantom
from msformer_fast.cli import main
from msformer_fast.cohort.job import run_task
from msformer_fast.cohort.task import Task
from msformer_fast.formats.grey import LUNG_NOTE
from msformer_fast.images import resize_image

from .cohort_samples import OPTIONS, SETTINGS, lines

pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
from . import dciodvfy  # noqa: E402
from . import medical_samples as samples  # noqa: E402


@pytest.fixture(autouse=True)
def _segmentations_have_no_errors(tmp_path: Path) -> Iterator[None]:
    """Every Segmentation that a test leaves is what the standard asks for."""
    yield
    dciodvfy.check(tmp_path)


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
    assert main(["segment", str(study), "-o", str(out), "--threads", "1", "--dicom-seg", *OPTIONS]) == 0
    found = {line["output"]: line for line in lines(out)}
    assert {name: line["status"] for name, line in found.items()} == {
        "1.2.840.3": "done",
        "frames": "done",
        "negative": "done",
    }
    mask = np.asarray(Image.open(out / "1.2.840.3_mask.png")) > 0
    assert grey(0)[mask].mean() < grey(0)[~mask].mean() - 0.1

    seg = highdicom.seg.segread(out / "1.2.840.3_mask.dcm")
    np.testing.assert_array_equal(seg.pixel_array.squeeze() > 0, mask)
    assert (out / "frames_mask.dcm").exists()
    frames = sorted(path.name for path in (out / "frames_mask").iterdir())
    assert frames == ["0001.png", "0002.png", "0003.png"]
    assert found["frames"]["slices"] == 3

    said = capfd.readouterr()
    assert "left out: 1 file that cannot be an image" in said.err  # the report
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


def test_what_can_have_no_segmentation_has_its_pngs_and_says_so(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames without a place, and a slice without a frame of reference: in a run, and one alone."""
    frames = np.stack([(grey(seed) * 255).astype(np.uint8) for seed in range(2)])
    for path in study.iterdir():
        path.unlink()
    samples.write(study / "us.dcm", samples.image(frames, NumberOfFrames=2, sop_class=samples.MULTI_FRAME_SECONDARY))
    ct = samples.ct((grey(0) * 400 - 160).astype(np.int16))
    del ct.FrameOfReferenceUID
    samples.write(study / "ct.dcm", ct)
    half = samples.ct((grey(1) * 400 - 160).astype(np.int16))
    del half.PixelSpacing
    samples.write(study / "half.dcm", half)
    out = tmp_path / "out"
    assert main(["segment", str(study), "-o", str(out), "--threads", "1", "--dicom-seg", *OPTIONS]) == 0
    found = {line["output"]: line for line in lines(out)}
    assert {line["status"] for line in found.values()} == {"done"}
    assert "no DICOM Segmentation: " in found["us"]["reason"] and "PlanePositionSequence" in found["us"]["reason"]
    assert "(FrameOfReferenceUID)" in found["ct"]["reason"] and found["ct"]["notes"][1:] == [LUNG_NOTE]
    assert "has no place in space, since the image lacks PixelSpacing" in found["half"]["reason"]
    assert sorted(path.name for path in out.glob("*.dcm")) == ["half_mask.dcm"]
    assert (out / "ct_mask.png").exists() and (out / "us_mask" / "0002.png").exists()
    assert "no DICOM Segmentation" in (out / "index.html").read_text()
    capsys.readouterr()
    assert main(["segment", str(study / "ct.dcm"), "-o", str(tmp_path / "one"), "--dicom-seg", *OPTIONS]) == 0
    assert "no DICOM Segmentation: " in capsys.readouterr().err
    assert "(FrameOfReferenceUID)" in json.loads((tmp_path / "one" / "ct.json").read_text())["notes"][0]


def test_a_package_that_a_segmentation_needs_is_missed_before_any_work(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.setattr("msformer_fast.segmentation.segment", lambda *_, **__: pytest.fail("was begun"))
    assert main(["segment", str(study / "negative.dcm"), "-o", str(tmp_path / "out"), "--dicom-seg", *OPTIONS]) == 2
    assert "needs highdicom; install msformer-fast[dicom]" in capsys.readouterr().err


def test_what_was_left_out_is_said(study: Path, tmp_path: Path) -> None:
    ct = samples.ct((grey(0) * 400 - 160).astype(np.int16))
    ct.VOILUTFunction = "ZEBRA"
    samples.write(study / "noted.dcm", ct)
    settings = SETTINGS | {"rule": "lesion"}  # that of the lungs has a window of its own
    line = run_task(Task(str(study / "noted.dcm"), "noted", str(tmp_path), settings, run="r"))
    assert line["notes"] == ["VOI LUT Function is none that is known: the window was taken as linear"]
    assert line["reason"].endswith(line["notes"][0])
    record = json.loads((tmp_path / "noted.json").read_text())
    assert record["notes"] == line["notes"]
