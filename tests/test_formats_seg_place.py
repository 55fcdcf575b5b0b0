"""DICOM Segmentations keep their place, directions and characters, or it is said before any work that they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast.formats import open_image

from . import dciodvfy
from . import medical_samples as samples

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
from msformer_fast.formats.segmentation_object import check_dicom_seg, save_dicom_seg  # noqa: E402

from .test_formats_dicom_numbers import raw  # noqa: E402
from .test_formats_seg import FRAMES, SOURCES, WINDOWS, without  # noqa: E402


@pytest.fixture(autouse=True)
def _segmentations_have_no_errors(tmp_path: Path) -> Iterator[None]:
    """Every Segmentation that a test leaves is what the standard asks for."""
    yield
    dciodvfy.check(tmp_path)


def saved(folder: Path, source: Any, **options: Any) -> Any:
    """The Segmentation of an image, its pixels compared and its attributes checked."""
    file = open_image(samples.write(folder / "a.dcm", source))
    assert check_dicom_seg(file, **options) == (None, None)
    masks = np.zeros((file.frames, *file.shape), bool)
    masks[:, 10:20, 5:30] = True
    save_dicom_seg(file, masks, folder / "m.dcm", **options)
    seg = pydicom.dcmread(folder / "m.dcm")
    np.testing.assert_array_equal(np.atleast_3d(seg.pixel_array.T).T.astype(bool), masks)
    return seg


def place(seg: Any, frame: int = 0) -> tuple[list[float], list[float], list[float], float]:
    """Position, orientation, spacing and thickness of a frame."""
    shared, own = seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence[frame]
    measures = shared.PixelMeasuresSequence[0]
    return (
        [float(each) for each in own.PlanePositionSequence[0].ImagePositionPatient],
        [float(each) for each in shared.PlaneOrientationSequence[0].ImageOrientationPatient],
        [float(each) for each in measures.PixelSpacing],
        float(measures.SliceThickness),
    )


@pytest.mark.skipif(not dciodvfy.AVAILABLE, reason="needs dciodvfy (Debian: dicom3tools)")
@pytest.mark.parametrize("keep_patient", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_the_standard_has_nothing_to_say_against_it(tmp_path: Path, name: str, keep_patient: bool) -> None:
    saved(tmp_path, SOURCES[name](), keep_patient=keep_patient)
    assert dciodvfy.check(tmp_path) == 1
    # That it would say something: without the class of its modality.
    data = (tmp_path / "m.dcm").read_bytes()
    (tmp_path / "broken").write_bytes(data.replace(b"CS\x04\0SEG ", b"CS\x04\0OTHR"))
    assert dciodvfy.errors(tmp_path / "broken")


@pytest.mark.parametrize("keep_patient", [False, True])
@pytest.mark.parametrize(
    ("thickness", "between", "expected"),
    [
        (b"2 ", None, 2),
        (b"2,5 ", None, 2.5),
        (b"", None, 1),
        (None, None, 1),
        (b"", b"3 ", 3),
        (None, b"-3", 3),
        (b"N/A ", b"0,75", 0.75),
        (b"0 ", b"0 ", 1),
        (b"-2", b"N/A ", 1),
    ],
)
def test_a_slice_without_thickness_keeps_its_place(
    tmp_path: Path, thickness: bytes | None, between: bytes | None, expected: float, keep_patient: bool
) -> None:
    source = without(samples.ct(), "SliceThickness")
    for keyword, value in (("SliceThickness", thickness), ("SpacingBetweenSlices", between)):
        if value is not None:
            raw(source, keyword, "DS", value)
    seg = saved(tmp_path, source, keep_patient=keep_patient)
    assert place(seg) == ([1, 2, 3], [1, 0, 0, 0, 1, 0], [0.5, 0.5], expected)
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID


@pytest.mark.parametrize("shared", [False, True])
def test_frames_without_thickness_keep_their_place(tmp_path: Path, shared: bool) -> None:
    for thickness, between, expected in ((None, 4, 4), ("", None, 1), (2, 4, 2)):
        source = samples.enhanced(FRAMES, WINDOWS)
        measures = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        del measures[0].SliceThickness
        if thickness is not None:
            measures[0].SliceThickness = thickness
        if between is not None:
            measures[0].SpacingBetweenSlices = between
        if not shared:
            del source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
            for group in source.PerFrameFunctionalGroupsSequence:
                group.PixelMeasuresSequence = measures
        seg = saved(tmp_path, source)
        found = [place(seg, frame) for frame in range(3)]
        assert sorted(each[0] for each in found) == [[0, 0, 0], [0, 0, 2], [0, 0, 4]]
        assert all(each[1:] == ([1, 0, 0, 0, 1, 0], [0.5, 0.5], expected) for each in found)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PixelSpacing", None),
        ("ImageOrientationPatient", b""),
        ("ImagePositionPatient", b"1\\2 "),
        ("PixelSpacing", b"0\\1 "),
    ],
)
def test_half_a_place_is_left_out_and_said(tmp_path: Path, keyword: str, value: bytes | None) -> None:
    source = without(samples.ct(), keyword)
    if value is not None:
        raw(source, keyword, "DS", value)
    file = open_image(samples.write(tmp_path / "a.dcm", source))
    refusal, note = check_dicom_seg(file)
    assert (
        refusal is None
        and note is not None
        and note.endswith(f"has no place in space, since the image lacks {keyword}")
    )
    save_dicom_seg(file, np.ones((1, *file.shape), bool), tmp_path / "m.dcm")
    assert "PlanePositionSequence" not in pydicom.dcmread(tmp_path / "m.dcm").PerFrameFunctionalGroupsSequence[0]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (["L", "F"], ["L", "F"]),
        (["PR", "HL"], ["PR", "HL"]),
        (None, []),
        ("", []),
        (["ZEBRA", "QUAGGA"], []),
        ("L", []),
    ],
)
@pytest.mark.parametrize("sop_class", [samples.SECONDARY, "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1"])
def test_images_without_a_place_keep_their_directions(
    tmp_path: Path, sop_class: str, orientation: Any, expected: list[str]
) -> None:
    source = samples.image(samples.GREY8, sop_class=sop_class, PixelSpacing=[0.25, 0.5])
    if orientation is not None:
        source.PatientOrientation = orientation
    seg = saved(tmp_path, source)
    assert [str(each) for each in seg.PatientOrientation or []] == expected
    assert [float(each) for each in seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing] == [
        0.25,
        0.5,
    ]


NAMES = [
    ("ISO_IR 100", "T\u00e9st^\u00dcn\u00ef"),
    ("ISO_IR 192", "Test^\u8a66\u9a13"),
    (["", "ISO 2022 IR 87"], "Test^T=\u8a66\u9a13^\u4e00"),
    (["", "ISO 2022 IR 149"], "Test^T=\uc2dc\ud5d8^\uc77c"),
    (["ISO 2022 IR 6", "ISO 2022 IR 87"], "Test^T=\u8a66\u9a13^\u4e00"),
    (["ISO 2022 IR 13", "ISO 2022 IR 87"], "\uff94\uff8f\uff80\uff9e^\uff80\uff9b\uff73=\u5c71\u7530^\u592a\u90ce"),
    ("GB18030", "Test^\u738b\u5c0f\u4e1c"),
    ("ISO_IR 144", "\u041b\u044e\u043ac\u0435\u043c\u0431"),
    ("", "Test^Plain"),
    (None, "Test^Plain"),
]


@pytest.mark.parametrize(("characters", "name"), NAMES, ids=[str(each[0]) for each in NAMES])
def test_the_patient_in_any_characters(tmp_path: Path, characters: Any, name: str) -> None:
    for source in (samples.ct(), samples.image(samples.GREY8)):
        if characters is not None:
            source.SpecificCharacterSet = characters
        source.PatientName = name
        seg = saved(tmp_path, source, keep_patient=True)
        assert str(seg.PatientName) == name
        assert not saved(tmp_path, source).PatientName


def test_the_patient_in_chinese_with_escapes(tmp_path: Path) -> None:
    source = samples.ct()
    source.SpecificCharacterSet = ["", "ISO 2022 IR 58"]
    raw(source, "PatientName", "PN", b"Test^T=\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab ")  # as PS3.5, K.2 writes it
    seg = saved(tmp_path, source, keep_patient=True)
    assert str(seg.PatientName) == "Test^T=\u738b^\u5c0f\u4e1c"


def test_a_patient_of_other_words_than_the_standard_has(tmp_path: Path) -> None:
    source = samples.ct()
    raw(raw(source, "PatientSex", "CS", b"MALE"), "PatientBirthDate", "DA", b"1901/2/3")
    seg = saved(tmp_path, source, keep_patient=True)
    assert (seg.PatientName, seg.PatientSex, seg.PatientBirthDate) == ("Zebra^Quagga", "", "")


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        (lambda: without(samples.ct(), "FrameOfReferenceUID"), "(FrameOfReferenceUID)"),
        (lambda: without(samples.image(samples.GREY8), "SeriesInstanceUID"), "(SeriesInstanceUID)"),
        (
            lambda: samples.image(FRAMES, NumberOfFrames=3, sop_class=samples.MULTI_FRAME_SECONDARY),
            "FrameOfReferenceUID, ",
        ),
    ],
)
def test_what_can_have_none_is_known_before(tmp_path: Path, source: Any, missing: str) -> None:
    file = open_image(samples.write(tmp_path / "a.dcm", source()))
    refusal, _ = check_dicom_seg(file)
    assert refusal is not None and missing in refusal and "a.dcm" not in refusal
    assert list(tmp_path.iterdir()) == [tmp_path / "a.dcm"]
