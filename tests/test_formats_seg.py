"""Masks as DICOM Segmentations: read back with equal pixels, the same bytes every time, and without the patient."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast import InputError, __version__
from msformer_fast.files import OutputError
from msformer_fast.formats import open_image

from . import dciodvfy
from . import medical_samples as samples
from .image_samples import refused

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
from msformer_fast.formats.segmentation_object import save_dicom_seg  # noqa: E402

GREY8, SIGNED = samples.GREY8, samples.SIGNED
FRAMES = np.stack([SIGNED, SIGNED[::-1], SIGNED[:, ::-1]])
WINDOWS = [(40.0, 400.0), (0.0, 1000.0), (300.0, 900.0)]
STUDY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName")


@pytest.fixture(autouse=True)
def _segmentations_have_no_errors(tmp_path: Path) -> Iterator[None]:
    """Every Segmentation that a test leaves is what the standard asks for."""
    yield
    dciodvfy.check(tmp_path)


def without(ds: Any, *keywords: str) -> Any:
    for keyword in keywords:
        del ds[keyword]
    return ds


SOURCES: dict[str, Any] = {
    "ct": lambda: samples.ct(),
    "ct without thickness": lambda: without(samples.ct(), "SliceThickness"),
    "ct without position": lambda: without(samples.ct(), "ImagePositionPatient", "ImageOrientationPatient"),
    "secondary": lambda: samples.image(samples.RGB, "RGB"),
    "ultrasound": lambda: samples.image(GREY8, sop_class=samples.ULTRASOUND),
    "bare": lambda: without(samples.image(GREY8), *STUDY, "StudyID", "StudyDate", "StudyTime", "Modality"),
    "enhanced": lambda: samples.enhanced(FRAMES, WINDOWS),
    "one enhanced": lambda: samples.enhanced(FRAMES[:1], WINDOWS[:1]),
}


def painted(file: Any) -> np.ndarray:
    return np.stack([file.read(index)[:, :, 0] > 0.6 for index in range(file.frames)])


def read_back(path: Path, source: Any, frames: int) -> np.ndarray:
    """(F, H, W) in the order of the source's frames."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seg = highdicom.seg.segread(path)
        if frames == 1:
            instances = [source.SOPInstanceUID]
            read = seg.get_pixels_by_source_instance(instances, assert_missing_frames_are_empty=True)
        else:
            read = seg.get_pixels_by_source_frame(source.SOPInstanceUID, list(range(1, frames + 1)))
    return np.asarray(read[..., 0], bool)


@pytest.mark.parametrize("keep_patient", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_read_back(tmp_path: Path, name: str, keep_patient: bool) -> None:
    source = SOURCES[name]()
    file = open_image(samples.write(tmp_path / "a.dcm", source))
    for number, masks in enumerate((painted(file), np.zeros((file.frames, *file.shape), bool))):
        path = tmp_path / f"{number}.dcm"
        save_dicom_seg(file, masks, path, keep_patient=keep_patient)
        np.testing.assert_array_equal(read_back(path, source, file.frames), masks)
        data = path.read_bytes()
        save_dicom_seg(file, masks, path, keep_patient=keep_patient)
        assert path.read_bytes() == data, "the same bytes every time"
        if not keep_patient:
            assert not samples.leaks(data)
    assert (tmp_path / "0.dcm").read_bytes() != (tmp_path / "1.dcm").read_bytes()


def test_what_the_object_says(tmp_path: Path) -> None:
    source = samples.ct()
    file = open_image(samples.write(tmp_path / "a.dcm", source))
    save_dicom_seg(file, painted(file), tmp_path / "m.dcm", label="Lesion")
    seg = pydicom.dcmread(tmp_path / "m.dcm")
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4" and seg.SegmentationType == "BINARY"
    assert seg.StudyInstanceUID == source.StudyInstanceUID and seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    (segment,) = seg.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("Lesion", "AUTOMATIC")
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("msformer-fast", __version__)
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert [seg[keyword].value for keyword in STUDY] == [""] * len(STUDY) and seg.StudyID == ""
    assert "PatientAge" not in seg and "StudyDescription" not in seg
    assert (seg.StudyDate, seg.ContentDate, seg.ContentTime) == ("20200304", "20200304", "050608")
    place = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert place == source.ImagePositionPatient
    save_dicom_seg(file, painted(file), tmp_path / "k.dcm", keep_patient=True)
    kept = pydicom.dcmread(tmp_path / "k.dcm")
    assert kept.PatientName == "Zebra^Quagga" and kept.PatientID == "OKAPI-77" and kept.PatientSex == "O"


def test_frames_are_referred_to_each(tmp_path: Path) -> None:
    source = samples.enhanced(FRAMES, WINDOWS)
    orientation = source.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    del source.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for group in source.PerFrameFunctionalGroupsSequence:
        group.PlaneOrientationSequence = orientation  # the same in every frame is as good as shared
    file = open_image(samples.write(tmp_path / "a.dcm", source))
    save_dicom_seg(file, painted(file), tmp_path / "m.dcm")
    seg = pydicom.dcmread(tmp_path / "m.dcm")
    referred = [
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for group in seg.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(referred) == [1, 2, 3]
    np.testing.assert_array_equal(read_back(tmp_path / "m.dcm", source, 3), painted(file))


def test_text_where_it_does_not_belong(tmp_path: Path) -> None:
    """Dates, times, codes and identifiers into which somebody wrote a name are not taken over."""
    source = samples.ct()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword in ("StudyDate", "StudyTime", "ContentDate", "ContentTime", "Modality", "LossyImageCompression"):
            source[keyword] = pydicom.DataElement(keyword, "LO", "ZEBRA", already_converted=True)
        source.LossyImageCompressionMethod = "QUAGGA"
        file = open_image(samples.write(tmp_path / "a.dcm", source))
        save_dicom_seg(file, painted(file), tmp_path / "m.dcm")
    assert not samples.leaks((tmp_path / "m.dcm").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source["FrameOfReferenceUID"] = pydicom.DataElement("FrameOfReferenceUID", "LO", "zebra")
        file = open_image(samples.write(tmp_path / "a.dcm", source))
    refused(save_dicom_seg, file, painted(file), tmp_path / "n.dcm", match=r"\(FrameOfReferenceUID\)")


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        (lambda: without(samples.ct(), "FrameOfReferenceUID"), "FrameOfReferenceUID"),
        (lambda: without(samples.ct(), "StudyInstanceUID"), "StudyInstanceUID"),
        (
            lambda: samples.image(FRAMES, NumberOfFrames=3, sop_class=samples.MULTI_FRAME_SECONDARY),
            "FrameOfReferenceUID, PlaneOrientationSequence, PixelMeasuresSequence, PlanePositionSequence",
        ),
    ],
)
def test_a_missing_attribute_is_named(tmp_path: Path, source: Any, missing: str) -> None:
    file = open_image(samples.write(tmp_path / "a.dcm", source()))
    for keep_patient in (False, True):
        with pytest.raises(InputError, match=rf"a\.dcm: .* what it lacks \({missing}\)") as caught:
            save_dicom_seg(file, painted(file), tmp_path / "m.dcm", keep_patient=keep_patient)
        assert not samples.leaks(str(caught.value))
        assert caught.value.__suppress_context__
    assert not (tmp_path / "m.dcm").exists()


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_image(samples.write(tmp_path / "a.dcm", samples.ct()))
    masks = painted(file)
    refused(save_dicom_seg, file, masks[0], tmp_path / "m.dcm", match=r"masks: got bool \(40, 44\); accepted is bool")
    refused(save_dicom_seg, file, masks.astype(int), tmp_path / "m.dcm", match="masks: got int64")
    for label in ("", "a\\b", "x" * 65, "a\nb"):
        refused(save_dicom_seg, file, masks, tmp_path / "m.dcm", label=label, match="label: accepted are 1 to 64")
    with pytest.raises(OutputError, match="cannot be written"):
        save_dicom_seg(file, masks, tmp_path / "none" / "m.dcm")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    refused(save_dicom_seg, file, masks, tmp_path / "m.dcm", match=r"needs highdicom; install msformer-fast\[dicom\]")


def test_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    file = open_image(samples.write(tmp_path / "a.dcm", samples.enhanced(FRAMES, WINDOWS)))
    caplog.set_level("DEBUG")
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_dicom_seg(file, painted(file), tmp_path / "m.dcm")
    assert not caught and not caplog.records and capfd.readouterr() == ("", "")
