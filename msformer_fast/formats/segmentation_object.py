"""Masks as a DICOM Segmentation, which viewers lay over the image that they were made from."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.files import atomic, show
from msformer_fast.formats.bounded_file import BoundedFile
from msformer_fast.formats.dicom import DicomFile
from msformer_fast.formats.dicom_header import guarded
from msformer_fast.formats.segmentation_source import half_a_place, lacking, patient_orientation, source_of

_NAME = "msformer-fast"


def check_dicom_seg(file: DicomFile, *, keep_patient: bool = False) -> tuple[str | None, str | None]:
    """Whether an image can have a Segmentation, before its masks are there: one with blank masks is made, not written.

    Returns:
        Why it can have none, or ``None``; and what the Segmentation will lack, or ``None``.

    Raises:
        InputError: highdicom is missing, or the file cannot be read.
    """
    name = show(file.path)
    with guarded(name, package="highdicom", doing="writing a DICOM Segmentation"):
        import highdicom  # noqa: F401

    try:
        _content(file, np.zeros((file.frames, *file.shape), np.bool_), "Foreground", keep_patient)
    except InputError as exc:
        return str(exc).removeprefix(f"{name}: "), None
    missing = half_a_place(_header(file), file.frames)
    if missing:
        return None, f"the DICOM Segmentation has no place in space, since the image lacks {', '.join(missing)}"
    return None, None


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
    content = _content(file, masks, label, keep_patient)
    with atomic(path) as out:
        out.write(content)


def _header(file: DicomFile) -> Any:
    with guarded(show(file.path)), BoundedFile(file.path) as stream:
        import pydicom

        return pydicom.dcmread(stream, stop_before_pixels=True)


def _content(file: DicomFile, masks: NDArray[np.bool_], label: str, keep_patient: bool) -> bytes:
    name = show(file.path)
    header = _header(file)
    with guarded(name, package="highdicom", doing="writing a DICOM Segmentation"):
        import highdicom  # noqa: F401

        source = source_of(header, file.frames, keep_patient)
        missing = lacking(source, file.frames)
        try:
            if not missing:
                return _segmentation(source, masks, label)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:  # highdicom's text may quote the image
            missing = _named_in(exc)
        if missing:
            raise InputError(
                f"{name}: a DICOM Segmentation needs of the image what it lacks ({', '.join(missing)}); "
                "take the masks as PNG"
            ) from None
        raise InputError(
            f"{name}: no DICOM Segmentation can be made with what the image's header says; take the masks as PNG"
        ) from None


def _named_in(exc: Exception) -> list[str]:
    """The attribute that an error is about, if it says."""
    from pydicom.datadict import tag_for_keyword

    keyword = getattr(exc, "name", None)
    return [keyword] if keyword and tag_for_keyword(keyword) else []


def _segmentation(source: Any, masks: NDArray[np.bool_], label: str) -> bytes:
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    from msformer_fast.version import __version__

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
    if not any("PlanePositionSequence" in group for group in built.PerFrameFunctionalGroupsSequence):
        _place_on_the_picture(built, source)
    buffer = io.BytesIO()
    built.save_as(buffer)
    return buffer.getvalue()


def _place_on_the_picture(built: Any, source: Any) -> None:
    """What an image without a place in space says of its directions and of the size of its pixels."""
    from highdicom import PixelMeasuresSequence

    built.PatientOrientation = patient_orientation(source)
    if "PixelSpacing" in source:
        spacing = [float(each) for each in source.PixelSpacing]
        built.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = PixelMeasuresSequence(
            spacing, float(source.SliceThickness)
        )
