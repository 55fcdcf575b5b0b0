"""DICOM and NIfTI files made in code, all of one patient whose name may turn up nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, generate_uid  # noqa: E402

#: What may turn up nowhere, in any case.
SECRETS = ("zebra", "quagga", "okapi", "19010203")
RNG = np.random.default_rng(11)
ROWS, COLUMNS = 40, 44
GREY8 = RNG.integers(0, 256, (ROWS, COLUMNS), dtype=np.uint8)
GREY12 = RNG.integers(0, 4096, (ROWS, COLUMNS), dtype=np.uint16)
GREY16 = RNG.integers(0, 65536, (ROWS, COLUMNS), dtype=np.uint16)
SIGNED = RNG.integers(-1500, 3000, (ROWS, COLUMNS), dtype=np.int16)
RGB = RNG.integers(0, 256, (ROWS, COLUMNS, 3), dtype=np.uint8)
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
MULTI_FRAME_SECONDARY = "1.2.840.10008.5.1.4.1.1.7.2"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"


def header(sop_class: str = SECONDARY, syntax: str = ExplicitVRLittleEndian) -> Any:
    """A dataset without an image, with a patient."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance", sop_class])
    meta.TransferSyntaxUID = syntax
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(entropy_srcs=["a"]), generate_uid(entropy_srcs=["b"])
    ds.PatientName = "Zebra^Quagga"
    ds.PatientID = "OKAPI-77"
    ds.PatientBirthDate = "19010203"
    ds.PatientSex, ds.PatientAge, ds.PatientComments = "O", "123Y", "knows zebra, quagga, okapi"
    ds.OtherPatientIDs = "OKAPI-78"
    ds.AccessionNumber, ds.StudyID, ds.StudyDescription = "OKAPI-79", "OKAPI-80", "zebra study"
    ds.ReferringPhysicianName, ds.InstitutionName, ds.OperatorsName = "Quagga^Q", "Okapi Hospital", "Zebra^Z"
    ds.SeriesDescription, ds.ImageComments, ds.ProtocolName = "zebra", "zebra quagga", "okapi"
    ds.StudyDate, ds.StudyTime, ds.ContentDate, ds.ContentTime = "20200304", "050607", "20200304", "050608"
    ds.Modality, ds.Manufacturer, ds.SeriesNumber, ds.InstanceNumber = "OT", "Zebra", 3, 4
    ds.add_new(0x00091001, "LO", "zebra quagga okapi")
    return ds


def image(pixels: np.ndarray, colours: str = "MONOCHROME2", *, bits: int | None = None, **more: Any) -> Any:
    """(H, W), (H, W, 3) or, with ``NumberOfFrames`` in ``more``, (F, H, W[, 3])."""
    sop_class = more.pop("sop_class", SECONDARY)
    ds = header(sop_class)
    ds.SamplesPerPixel = 1 if colours.startswith(("MONO", "PAL")) else 3
    ds.PhotometricInterpretation = colours
    shape = pixels.shape[1:] if "NumberOfFrames" in more else pixels.shape
    ds.Rows, ds.Columns = shape[:2]
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    if pixels.dtype.kind == "f":
        del ds.BitsStored, ds.HighBit, ds.PixelRepresentation
        setattr(ds, "FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData", pixels.tobytes())
    else:
        data = pixels.tobytes()
        ds.PixelData = data + bytes(len(data) % 2)
        ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    return ds


def item(**values: Any) -> Any:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def ct(pixels: np.ndarray = SIGNED) -> Any:
    """A slice of computed tomography with everything that a viewer needs to place it."""
    ds = image(
        pixels, sop_class=CT, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[40, 500], WindowWidth=[400, 9]
    )
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    ds.PositionReferenceIndicator = "zebra"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness, ds.Modality = [0.5, 0.5], 2, "CT"
    return ds


def enhanced(pixels: np.ndarray, windows: list[tuple[float, float]], *, rescale: tuple[float, float] = (1, 0)) -> Any:
    """An enhanced multi-frame object, with a window a frame and a shared rescale."""
    ds = image(pixels, sop_class=ENHANCED_CT, NumberOfFrames=len(pixels))
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    ds.Modality = "CT"
    shared = item(
        PixelValueTransformationSequence=[item(RescaleSlope=rescale[0], RescaleIntercept=rescale[1], RescaleType="HU")],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.5], SliceThickness=2)],
        FrameAnatomySequence=[item(FrameLaterality="U")],
    )
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[item(FrameComments="zebra", FrameAcquisitionNumber=index)],
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 2 * index])],
            FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth=width)],
        )
        for index, (centre, width) in enumerate(windows)
    ]
    return ds


def write(path: Path, ds: Any) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def leaks(text: str | bytes) -> list[str]:
    """Which of the secrets are in a text or in the bytes of a file."""
    lower = (text.decode("latin-1") if isinstance(text, bytes) else text).lower()
    return [each for each in SECRETS if each in lower]


def palette(red: bytes, green: bytes, blue: bytes) -> dict[str, Any]:
    """Attributes of a palette of 256 entries of 16 bit."""
    tables = {"Red": red, "Green": green, "Blue": blue}
    values: dict[str, Any] = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in tables}
    return values | {f"{name}PaletteColorLookupTableData": table for name, table in tables.items()}
