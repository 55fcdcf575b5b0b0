"""Masks as a DICOM Segmentation, which viewers lay over the image that they were made from."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.bounded_file import BoundedFile
from msformer_fast.errors import InputError
from msformer_fast.files import atomic, show
from msformer_fast.formats.dicom import DicomFile
from msformer_fast.formats.dicom_header import guarded

_NAME = "msformer-fast"
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# What is taken over of the source without its patient: what it is, when it was made, and where its pixels are.
_KEPT = (
    *(*_IDENTITY, "FrameOfReferenceUID", "StudyDate", "StudyTime", "ContentDate", "ContentTime"),
    *("Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "SpacingBetweenSlices", "LossyImageCompression", "LossyImageCompressionRatio"),
    "LossyImageCompressionMethod",
)
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
}
# Text that may not be taken over unless it looks like this: anybody can write anything into it.
_LOOKS = {
    re.compile(r"[0-9.]{1,64}"): (*_IDENTITY, "FrameOfReferenceUID"),
    re.compile(r"\d{8}"): ("StudyDate", "ContentDate"),
    re.compile(r"\d{6}(\.\d{1,6})?"): ("StudyTime", "ContentTime"),
    re.compile(r"0[01]"): ("LossyImageCompression",),
    re.compile(r"ISO_\d{4,6}_\d{1,2}"): ("LossyImageCompressionMethod",),
}
# Of type 2: may be empty, must be there.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)


def save_dicom_seg(
    file: DicomFile,
    masks: NDArray[np.bool_],
    path: Path,
    *,
    label: str = "Foreground",
    keep_patient: bool = False,
) -> None:
    """Write masks as a binary DICOM Segmentation of one segment that refers to the image's frames, atomically.

    The same image and masks give the same bytes: the UIDs are made from both, and the times are the image's.

    Args:
        file: the image.
        masks: (F, H, W) bool, one for every frame; they may be blank.
        path: of the object.
        label: of the segment.
        keep_patient: take over the patient's and the study's attributes. Otherwise those that must be there are
            empty, the rest is left out; UIDs and the study's date are always kept, so that the object finds its image.

    Raises:
        InputError: masks of another shape or dtype, highdicom is missing, or an attribute of the image is that the
            object needs; the message has its name, never a value.
        OutputError: the file cannot be written.

    Source:
        DICOM PS3.3, A.51 and C.8.20.
    """
    if masks.shape != (file.frames, *file.shape) or masks.dtype != np.bool_:
        raise InputError(f"masks: got {masks.dtype} {masks.shape}; accepted is bool {(file.frames, *file.shape)}")
    if not label or len(label) > 64 or "\\" in label or not label.isprintable():
        raise InputError("label: accepted are 1 to 64 printable characters without a backslash")
    name = show(file.path)
    with guarded(name, package="highdicom", doing="writing a DICOM Segmentation"):
        import highdicom  # noqa: F401
        import pydicom

        with BoundedFile(file.path) as stream:
            header = pydicom.dcmread(stream, stop_before_pixels=True)
        source = _source(header, keep_patient)
        _place(source, file.frames)
        _refuse(name, _missing(source, file.frames))
        try:
            content = _segmentation(source, masks, label)
        except (AttributeError, KeyError, ValueError) as exc:  # highdicom's text may quote the image
            keyword = getattr(exc, "name", None)
            lacks = [keyword] if keyword and pydicom.datadict.tag_for_keyword(keyword) else []
            _refuse(name, lacks or [each for each in ("FrameOfReferenceUID",) if not source.get(each)])
            raise
    with atomic(path) as out:
        out.write(content)


def _source(header: Any, keep_patient: bool) -> Any:
    """What highdicom copies from: without the patient, nothing but what is listed above."""
    from pydicom import Dataset

    source = header if keep_patient else _copied(header, _KEPT)
    for looks, keywords in _LOOKS.items():
        for keyword in keywords:
            if keyword in source and not looks.fullmatch(str(source.get(keyword))):
                delattr(source, keyword)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in source:
            setattr(source, keyword, "")
    if not source.get("Modality"):
        source.Modality = "OT"
    if not keep_patient:
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
        if keyword in dataset:
            setattr(copy, keyword, dataset[keyword].value)
    return copy


def _place(source: Any, frames: int) -> None:
    """Derive what highdicom asks for and the image says in another place."""
    if frames == 1 and not all(source.get(keyword) for keyword in _PLACE):
        for keyword in ("ImagePositionPatient", "PixelSpacing"):  # half a position is none
            if keyword in source:
                delattr(source, keyword)
    shared, groups = source.get("SharedFunctionalGroupsSequence"), source.get("PerFrameFunctionalGroupsSequence")
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


def _missing(source: Any, frames: int) -> list[str]:
    missing = [keyword for keyword in _IDENTITY if not source.get(keyword)]
    if frames > 1:
        shared = (source.get("SharedFunctionalGroupsSequence") or [{}])[0]
        groups = source.get("PerFrameFunctionalGroupsSequence") or [{}]
        missing += [] if source.get("FrameOfReferenceUID") else ["FrameOfReferenceUID"]
        missing += [each for each in ("PlaneOrientationSequence", "PixelMeasuresSequence") if not shared.get(each)]
        missing += [] if all(group.get("PlanePositionSequence") for group in groups) else ["PlanePositionSequence"]
        if shared.get("PixelMeasuresSequence"):
            measures = shared["PixelMeasuresSequence"].value[0]
            missing += [each for each in ("PixelSpacing", "SliceThickness") if not measures.get(each)]
    return missing


def _refuse(name: str, missing: list[str]) -> None:
    if missing:
        raise InputError(
            f"{name}: a DICOM Segmentation needs of the image what it lacks ({', '.join(missing)}); "
            "take the masks as PNG"
        ) from None


def _segmentation(source: Any, masks: NDArray[np.bool_], label: str) -> bytes:
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    from msformer_fast import __version__

    digest = hashlib.sha256(repr(masks.shape).encode() + np.packbits(masks).tobytes()).hexdigest()
    entropy = [str(source.SOPInstanceUID), digest, label, __version__]
    series, instance, dimensions = (generate_uid(entropy_srcs=[*entropy, each]) for each in ("series", "SOP", "dim"))
    tissue: Any = codes.SCT.Tissue
    family: Any = codes.DCM.ArtificialIntelligence
    segment = SegmentDescription(
        segment_number=1,
        segment_label=label,
        segmented_property_category=tissue,
        segmented_property_type=tissue,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(_NAME, family, __version__),
    )
    built: Any = Segmentation(
        source_images=[source],
        pixel_array=masks.astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        series_instance_uid=series,
        series_number=1,
        sop_instance_uid=instance,
        instance_number=1,
        manufacturer=_NAME,
        manufacturer_model_name=_NAME,
        software_versions=__version__,
        device_serial_number="0",
        content_label="FOREGROUND",
        content_description="Foreground found without training data",
        omit_empty_frames=False,
    )
    # highdicom takes the present time and a random UID.
    date = source.get("ContentDate") or source.get("StudyDate") or "19000101"
    time = source.get("ContentTime") or source.get("StudyTime") or "000000"
    built.ContentDate = built.InstanceCreationDate = date
    built.ContentTime = built.InstanceCreationTime = time
    for item in built.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in item:
            item.ContributionDateTime = f"{date}{time}"
    for item in (*built.DimensionOrganizationSequence, *built.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    measures = built.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
    if len(masks) == 1 and measures:  # there is nothing between one slice
        measures[0].pop("SpacingBetweenSlices", None)
    buffer = io.BytesIO()
    built.save_as(buffer)
    return buffer.getvalue()
