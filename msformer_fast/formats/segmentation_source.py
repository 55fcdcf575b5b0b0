"""What a DICOM Segmentation takes over of the image that it was made from: its place, and with leave its patient."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from msformer_fast.formats.dicom_numbers import numbers

_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# What is taken over of the source without its patient: what it is, when it was made, and where its pixels are.
_KEPT = (
    *(*_IDENTITY, "FrameOfReferenceUID", "StudyDate", "StudyTime", "ContentDate", "ContentTime"),
    *("Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "SpacingBetweenSlices", "LossyImageCompression", "LossyImageCompressionRatio"),
    *("LossyImageCompressionMethod", "PatientOrientation"),
)
#: Attributes without which an image has no place in space.
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# Numbers that each has.
_COUNTS = dict(zip(PLACE, (3, 6, 2), strict=True)) | {"SliceThickness": 1, "SpacingBetweenSlices": 1}
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
}
# Text that may not be taken over unless it looks like this: anybody can write anything into it.
_LOOKS = {
    re.compile(r"[0-9.]{1,64}"): (*_IDENTITY, "FrameOfReferenceUID"),
    re.compile(r"\d{8}"): ("StudyDate", "ContentDate", "PatientBirthDate"),
    re.compile(r"[MFO]"): ("PatientSex",),
    re.compile(r"\d{6}(\.\d{1,6})?"): ("StudyTime", "ContentTime"),
    re.compile(r"0[01]"): ("LossyImageCompression",),
    re.compile(r"ISO_\d{4,6}_\d{1,2}"): ("LossyImageCompressionMethod",),
}
# Of type 2: may be empty, must be there.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
_ORIENTATION = re.compile(r"[APLRFH]{1,3}")
_TEXTS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
_ESCAPE = re.compile(r"\x1b[ -/]+[0-~]")
_NOMINAL_THICKNESS = 1.0  # mm: of one slice nothing depends on it


def source_of(header: Any, frames: int, keep_patient: bool) -> Any:
    """What highdicom copies from: without the patient, nothing but what is listed above.

    Args:
        header: of the image, whole.
        frames: that it has.
        keep_patient: who the patient is is copied too.
    """
    source = _with_patient(header) if keep_patient else _without_patient(header)
    for looks, keywords in _LOOKS.items():
        for keyword in keywords:
            if keyword in source and not looks.fullmatch(str(source.get(keyword))):
                delattr(source, keyword)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in source:
            setattr(source, keyword, "")
    if not source.get("Modality"):
        source.Modality = "OT"
    _place(source, frames)
    return source


def lacking(source: Any, frames: int) -> list[str]:
    """Keywords that a Segmentation cannot do without, and the image lacks."""
    missing = [keyword for keyword in _IDENTITY if not source.get(keyword)]
    has_place = frames > 1 or "ImagePositionPatient" in source
    missing += ["FrameOfReferenceUID"] if has_place and not source.get("FrameOfReferenceUID") else []
    if frames > 1:
        shared = (source.get("SharedFunctionalGroupsSequence") or [{}])[0]
        groups = source.get("PerFrameFunctionalGroupsSequence") or [{}]
        missing += [each for each in ("PlaneOrientationSequence", "PixelMeasuresSequence") if not shared.get(each)]
        missing += [] if all(group.get("PlanePositionSequence") for group in groups) else ["PlanePositionSequence"]
        if shared.get("PixelMeasuresSequence"):
            measures = shared["PixelMeasuresSequence"].value[0]
            missing += [] if measures.get("PixelSpacing") else ["PixelSpacing"]
    return missing


def half_a_place(header: Any, frames: int) -> list[str]:
    """Keywords that an image of one frame lacks of its place in space, if it has others: the place is left out then."""
    if frames > 1 or header.get("PerFrameFunctionalGroupsSequence"):
        return []
    there = {keyword for keyword in PLACE if _is_place(header, keyword)}
    return [] if there <= {"PixelSpacing"} else [keyword for keyword in PLACE if keyword not in there]


def patient_orientation(source: Any) -> list[str]:
    """Directions of rows and columns, as L and F; empty where the image has none of this form."""
    value = source.get("PatientOrientation") or []
    directions = [str(each) for each in value] if not isinstance(value, str) else [value]
    return directions if len(directions) == 2 and all(map(_ORIENTATION.fullmatch, directions)) else []


def _with_patient(header: Any) -> Any:
    """The header with its texts in UTF-8: of the other character sets highdicom does not know every combination."""
    header.decode()
    header.walk(_drop_escapes)
    header.SpecificCharacterSet = "ISO_IR 192"
    return header


def _drop_escapes(_: Any, element: Any) -> None:
    """Take out what switches between character sets: of GB 2312 pydicom leaves it in the text."""
    if element.VR in _TEXTS and "\x1b" in str(element.value):
        values = [element.value] if element.VM == 1 else list(element.value)
        plain = [_ESCAPE.sub("", str(each)) for each in values]
        element.value = plain[0] if element.VM == 1 else plain


def _without_patient(header: Any) -> Any:
    from pydicom import Dataset

    source = _copied(header, _KEPT)
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if header.get(keyword):
            items = [Dataset() for _ in header[keyword].value]
            for item, group in zip(items, header[keyword].value, strict=True):
                for sequence, keywords in _GROUPS.items():
                    if group.get(sequence):
                        setattr(item, sequence, [_copied(group[sequence].value[0], keywords)])
            setattr(source, keyword, items)
    return source


def _copied(dataset: Any, keywords: Iterable[str]) -> Any:
    from pydicom import Dataset

    copy = Dataset()
    for keyword in keywords:
        if keyword in dataset and (keyword not in _COUNTS or _is_place(dataset, keyword)):
            setattr(copy, keyword, _as_numbers(dataset, keyword) if keyword in _COUNTS else dataset[keyword].value)
    return copy


def _is_place(dataset: Any, keyword: str) -> bool:
    """Whether the attribute holds the numbers that it should."""
    found = numbers(dataset, keyword) if keyword in dataset else []
    if len(found) != _COUNTS[keyword] or not all(map(math.isfinite, found)):
        return False
    if keyword == "ImageOrientationPatient":
        return any(found[:3]) and any(found[3:])
    return keyword == "ImagePositionPatient" or (
        min(found) > 0 if keyword != "SpacingBetweenSlices" else bool(found[0])
    )


def _as_numbers(dataset: Any, keyword: str) -> Any:
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(each) for each in numbers(dataset, keyword)]


def _mend(dataset: Any) -> None:
    """Leave out what is no place, and write what is one as the standard does."""
    for keyword in _COUNTS:
        if keyword in dataset:
            if _is_place(dataset, keyword):
                setattr(dataset, keyword, _as_numbers(dataset, keyword))
            else:
                delattr(dataset, keyword)


def _add_thickness(measures: Any) -> None:
    """A slice thickness, which highdicom asks for and an image may leave empty."""
    if "SliceThickness" not in measures and "PixelSpacing" in measures:
        spacing = numbers(measures, "SpacingBetweenSlices") or [_NOMINAL_THICKNESS]
        measures.SliceThickness = abs(spacing[0])


def _place(source: Any, frames: int) -> None:
    """Derive what highdicom asks for and the image says in another place."""
    _mend(source)
    if frames == 1:
        if not all(keyword in source for keyword in PLACE) and "ImagePositionPatient" in source:
            del source.ImagePositionPatient  # half a place is none
        _add_thickness(source)
    shared, groups = source.get("SharedFunctionalGroupsSequence"), source.get("PerFrameFunctionalGroupsSequence")
    for group in (*(shared or []), *(groups or [])):
        for measures in group.get("PixelMeasuresSequence") or []:
            _mend(measures)
            _add_thickness(measures)
    if not groups or len(groups) != frames:
        return
    if not shared:
        from pydicom import Dataset

        source.SharedFunctionalGroupsSequence = shared = [Dataset()]
    for sequence in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        # What is the same in every frame is shared.
        if not shared[0].get(sequence) and all(group.get(sequence) for group in groups):
            first = groups[0][sequence]
            if all(group[sequence] == first for group in groups):
                setattr(shared[0], sequence, first.value)
