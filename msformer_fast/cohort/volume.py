"""A volume, slice by slice: every slice is kept as it is done, and all of them become one result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.cohort.journal import Line
from msformer_fast.cohort.lung_volume import is_lung_volume, joined_lungs
from msformer_fast.cohort.pointed_volume import pointed_slices
from msformer_fast.cohort.results import PARTIAL, of_run, with_notes, write_dicom_seg, write_thumbnail
from msformer_fast.cohort.task import FREE, Task, prompt_in, stamp
from msformer_fast.cohort.volume_slice import segment_slice
from msformer_fast.contact_sheet import Tile, contact_sheet
from msformer_fast.files import atomic, check_output_folder, write_json
from msformer_fast.formats import ImageFile
from msformer_fast.images import write_png
from msformer_fast.prompts.volume import VolumePrompt

if TYPE_CHECKING:
    from msformer_fast.segmentation import Segmentation

# Slices of a volume that its overview shows, spread evenly over those with something in them.
_TILES = 25


def write_volume(
    file: ImageFile,
    first: NDArray[np.float32],
    task: Task,
    target: Path,
    line: Line,
    callback: Callable[[Any], Any] | None,
) -> tuple[list[Path], Line]:
    """Segment every slice; see :func:`msformer_fast.cohort.job.segment_file`.

    NIfTI: ``_mask.nii.gz`` and ``_labels.nii.gz`` on the volume's own grid. DICOM of several frames: a PNG a frame in
    the folders ``_mask`` and ``_labels``. Both: an overview of slices and the record. A slice without contrast has an
    empty mask.
    """
    from msformer_fast.formats.nifti import NiftiFile

    kept = _kept_folder(task)
    prompt = prompt_in(task.settings)
    if isinstance(prompt, VolumePrompt):
        slices = pointed_slices(file, prompt, task, kept, callback, _record)
    else:
        slices = [
            _slice(file, index, first if index == 0 else None, task, kept, callback) for index in range(file.frames)
        ]
    masks = np.stack([mask for mask, _, _ in slices])
    labels = np.stack([each for _, each, _ in slices])
    records = [record for _, _, record in slices]
    changed = 0
    if is_lung_volume(records):
        masks, changed = joined_lungs(masks)
    name = os.path.basename(task.name)
    paths = []
    if isinstance(file, NiftiFile):
        for ending, values in (("mask", masks), ("labels", labels)):
            paths.append(target / f"{name}_{ending}.nii.gz")
            file.save(values, paths[-1])
    else:
        paths += _write_frames(target / f"{name}_mask", masks) + _write_frames(target / f"{name}_labels", labels)
        if task.options.dicom_seg:
            paths.append(write_dicom_seg(file, masks, target / f"{name}_mask.dcm", task.options))
    line = with_notes(line | _summary(records, masks, changed), file)
    sheet = _overview(file, masks, records)
    if task.run is not None:
        write_thumbnail(task, sheet)
    paths += [target / f"{name}_overlay.png", target / f"{name}.json"]
    write_png(paths[-2], sheet)
    pointed = {} if prompt is None else {"prompt": prompt.as_dict()}
    write_json(
        paths[-1], {"image": os.path.basename(task.path), **line, **pointed, "slices": records, **of_run(task, line)}
    )
    shutil.rmtree(kept, ignore_errors=True)
    if task.run is None:  # a run leaves that to its end: another process may be making a folder there
        with contextlib.suppress(OSError):
            kept.parent.rmdir()
    return paths, line


def _slice(
    file: ImageFile,
    index: int,
    pixels: NDArray[np.float32] | None,
    task: Task,
    kept: Path,
    callback: Callable[[Any], Any] | None,
) -> tuple[NDArray[np.bool_], NDArray[Any], Mapping[str, Any]]:
    """Mask, labels and record of one slice, found where it was done before; its pixels where they were read already."""
    path = kept / f"{index:05d}.npz"
    found = _load(path, file.shape)
    if found is not None:
        return found
    pixels = file.read(index) if pixels is None else pixels
    result = segment_slice(file, index, pixels, callback, **task.settings)
    if result is None:
        blank = np.zeros(file.shape, dtype=np.uint8)
        return blank.astype(bool), blank, {"blank": True}
    record = _record(result)
    with atomic(path) as out:
        np.savez_compressed(out, mask=result.mask, labels=result.labels, record=json.dumps(record))
    return result.mask, result.labels, record


def _record(result: Segmentation) -> dict[str, Any]:
    """What the volume's record says of a slice."""
    record = {key: value for key, value in result.as_dict().items() if key not in ("history", "runs", "settings")}
    return record | {"device": result.settings["device"]}


def _kept_folder(task: Task) -> Path:
    """Where the slices of this volume with these settings are kept until all are done."""
    # Not by its path: a run that was moved goes on too.
    settings = {key: value for key, value in task.settings.items() if key not in FREE}
    named = [task.name, os.path.basename(task.path), stamp(task.path), settings, task.options.axis, task.options.window]
    digest = hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return check_output_folder(Path(task.folder) / PARTIAL / digest)


def _load(path: Path, shape: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[Any], Mapping[str, Any]] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            mask, labels, record = file["mask"], file["labels"], json.loads(str(file["record"]))
    except Exception:  # zipfile, NumPy and JSON each have their own; the slice is done again
        return None
    return (mask, labels, record) if mask.shape == labels.shape == shape else None


def _write_frames(folder: Path, frames: NDArray[Any]) -> list[Path]:
    from msformer_fast.outputs import write_labels

    check_output_folder(folder)
    for index, frame in enumerate(frames, 1):
        path = folder / f"{index:0{max(4, len(str(len(frames))))}d}.png"
        if frame.dtype == np.bool_:
            write_png(path, frame)
        else:
            write_labels(path, frame)
    return [folder]


def _summary(records: list[Mapping[str, Any]], masks: NDArray[np.bool_], changed: int) -> dict[str, Any]:
    """What the line of a volume says: means over the slices that have something in them.

    ``changed``: slices that lost parts which no slice next to them goes on with.
    """
    done = [record for record in records if "foreground" in record]
    confidences = [record["foreground"]["confidence"] for record in done]
    doubtful = sum(record["foreground"]["doubtful"] for record in done)
    blank, beyond = (sum(key in record for record in records) for key in ("blank", "beyond"))
    left = f"{beyond} beyond what was pointed at" if beyond else f"{blank} without contrast"
    return {
        "confidence": round(float(np.mean(confidences)), 4) if done else 0.0,
        "confidence_min": round(min(confidences), 4) if done else 0.0,
        "doubtful": 2 * doubtful >= len(done),
        "reason": f"{len(records)} slices: {left}, {doubtful} doubtful"
        + (f"; parts that belong to no lung in space left out of {changed}" if changed else "")
        + ("" if masks.any() else "; the mask is empty"),
        "rule": done[0]["foreground"]["rule"] if done else None,
        "pixels": int(masks.sum()),
        "image_size": list(masks.shape[1:]),
        "network_size": done[0]["network_size"] if done else None,
        "slices": len(records),
        "slices_blank": blank,
        "slices_doubtful": doubtful,
        "device": done[0]["device"] if done else None,
        "seconds": round(sum(record["seconds"] for record in done), 3),
    }


def _overview(file: ImageFile, masks: NDArray[np.bool_], records: list[Mapping[str, Any]]) -> NDArray[np.uint8]:
    shown = [index for index, record in enumerate(records) if "foreground" in record] or [0]
    chosen = np.unique(np.linspace(0, len(shown) - 1, min(_TILES, len(shown))).round().astype(int))
    tiles = []
    for index in (shown[each] for each in chosen):
        found = records[index].get("foreground")
        captions = (
            () if found is None else (f"confidence {found['confidence']:.2f}" + ", doubtful" * found["doubtful"],)
        )
        tiles.append(Tile(f"slice {index}", file.read(index), masks[index], None, captions))
    return contact_sheet(tiles)
