"""What a DICOM file holds, by its class alone: a picture of a patient, or what goes along with pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from msformer_fast.errors import InputError
from msformer_fast.formats.bounded_file import BoundedFile

_HEAD = 2**12
_PREAMBLE = 132
_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Storage classes that hold no picture to segment, by what follows the root of all of them; of those that end in a dot
# all below it: waveforms, presentation states, raw data, registrations and Segmentations, surfaces, reports,
# documents, protocols, measurements, and of radiotherapy all but its images.
_OTHER = (
    *("4.2", "8", "9", "9.", "10", "11", "11.", "66", "66.", "67", "68.", "77.1.5.3", "78.", "79.", "80.", "88."),
    *("90.", "91.", "104.", "129", "131", "200.", "201.", "481."),
)
_PICTURES = ("481.1", "481.23", "481.24")
# Other classes without a picture: directories, protocols, colour tables, implants, inventories.
_ROOTS = (
    "1.2.840.10008.1.3.10",
    *("1.2.840.10008.5.1.4.34.", "1.2.840.10008.5.1.4.38.", "1.2.840.10008.5.1.4.39.", "1.2.840.10008.5.1.4.43."),
    *("1.2.840.10008.5.1.4.44.", "1.2.840.10008.5.1.4.45."),
)


def holds_no_picture(path: Path) -> bool:
    """Whether a file is a DICOM object of a class that holds no picture to segment: DICOMDIR, a report, a presentation
    state, structures, a plan or a dose, a Segmentation, a registration, a waveform, a document.

    A class that the standard does not know counts where the file has no rows of pixels. ``False`` for all that cannot
    be read, so that it is told as damaged where it is read, and without pydicom.
    """
    try:
        from pydicom import dcmread
        from pydicom.filereader import read_dataset
    except ImportError:
        return False
    try:
        with BoundedFile(path) as file:
            head = file.read(_HEAD)
            if head[_PREAMBLE - 4 : _PREAMBLE] != b"DICM":
                return False
            meta = read_dataset(
                io.BytesIO(head[_PREAMBLE:]), False, True, stop_when=lambda tag, vr, length: tag.group != 2
            )
            found = _text(meta, "MediaStorageSOPClassUID")
            if found and _known(found):
                return _is_other(found)
            file.seek(0)
            tags = ["SOPClassUID", "Rows", "Columns"]
            dataset = dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
            found = _text(dataset, "SOPClassUID") or found
            if _known(found) or not found:
                return _is_other(found)
            return not {"Rows", "Columns"} <= {each.keyword for each in dataset}
    except (InputError, OSError):
        return False
    except Exception:  # on damaged files pydicom raises errors of a dozen types
        return False


def _text(dataset: Any, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip("\0 ")


def _known(uid: str) -> bool:
    from pydicom.uid import UID

    return bool(uid) and UID(uid).name != uid


def _is_other(uid: str) -> bool:
    below = uid.removeprefix(_STORAGE)
    if below != uid:
        return below not in _PICTURES and any(
            below == each or (each.endswith(".") and below.startswith(each)) for each in _OTHER
        )
    return any(uid == each or (each.endswith(".") and uid.startswith(each)) for each in _ROOTS)
