"""What is kept of an image of a run: its record, which tells a run that goes on that it was done, and its pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.cohort.index import thumbnail
from msformer_fast.cohort.journal import DONE, Line
from msformer_fast.cohort.task import Options, Task
from msformer_fast.files import atomic, check_output_folder
from msformer_fast.formats import ImageFile

#: Below the output folder: small pictures for the index; slices of volumes that are not done yet.
THUMBNAILS, PARTIAL = ".thumbnails", ".partial"


def thumbnail_path(folder: Path, name: str) -> Path:
    return folder / THUMBNAILS / f"{name}.jpg"


def record_path(folder: Path, name: str) -> Path:
    """The record of an image, written last: where it is, all of its outputs are."""
    return folder / f"{name}.json"


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """The record of an image; empty where there is none that can be read."""
    try:
        record = json.loads(record_path(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def recorded_line(folder: Path, name: str, run: str) -> Line | None:
    """The line of an image that this run did, if its record is whole."""
    record = read_record(folder, name)
    line = record.get("line")
    if not isinstance(line, dict) or record.get("run") != run:
        return None
    whole = line.get("status") == DONE and line.get("output") == name and "source" in line
    return dict(line) if whole else None


def of_run(task: Task, line: Line) -> dict[str, Any]:
    """What the record of an image of a run says of it, for a run that goes on and finds no line."""
    return {} if task.run is None else {"run": task.run, "line": line}


def with_notes(line: Line, file: ImageFile) -> Line:
    """The line of an image that has been read, its reason followed by what was left out."""
    notes = [*line.get("notes", []), *file.notes]
    return line | ({"notes": notes, "reason": "; ".join([line["reason"].rstrip("."), *notes])} if notes else {})


def write_dicom_seg(file: ImageFile, masks: NDArray[np.bool_], path: Path, options: Options) -> Path:
    """Write the masks (F, H, W) of a DICOM file as a DICOM Segmentation."""
    from msformer_fast.formats.dicom import DicomFile
    from msformer_fast.formats.segmentation_object import save_dicom_seg

    assert isinstance(file, DicomFile)
    save_dicom_seg(file, masks, path, keep_patient=options.keep_patient)
    return path


def write_thumbnail(task: Task, picture: NDArray[np.uint8]) -> None:
    """Keep a small picture for the index of a run."""
    path = thumbnail_path(Path(task.folder), task.name)
    check_output_folder(path.parent)
    with atomic(path) as file:
        file.write(thumbnail(picture))
