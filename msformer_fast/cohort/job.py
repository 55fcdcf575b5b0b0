"""One image of a run, in a process of its own: read, segmented, written, and told in one line."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.cohort.journal import DONE, FAILED, Line
from msformer_fast.cohort.memory import image_bytes, largest_size, predicted_bytes
from msformer_fast.errors import BackendError, DivergenceError, InputError, OutputError, out_of_memory
from msformer_fast.files import atomic, check_output_folder, reason, show
from msformer_fast.formats import ImageFile, open_image
from msformer_fast.images import MIN_SIDE, fit_size, refuse_small

#: Below the output folder: small pictures for the index; slices of volumes that are not done yet.
THUMBNAILS, PARTIAL = ".thumbnails", ".partial"
#: What is done about an image whose segmentation would take more memory than there is.
TOO_LARGE = ("refuse", "resize")
#: Settings that leave the results alike: they may change from one part of a run to the next.
FREE = ("memory", "capture", "runs")
_GIGABYTE = 10**9
_CHUNK = 2**20
# Bytes that each voxel of a volume waits in: as it is stored, mask and labels twice as they are put together.
_VOXEL = 12


@dataclass(frozen=True)
class Options:
    """How images are read and what is written, beside the settings of :func:`msformer_fast.segment`.

    Attributes:
        axis: of NIfTI volumes, along which they are sliced.
        window: centre and width of the grey levels of DICOM and NIfTI files, instead of what they say themselves.
        dicom_seg: write a DICOM Segmentation of DICOM images too.
        keep_patient: who the patient is goes into it as well.
        too_large: ``"refuse"`` or ``"resize"``.
    """

    axis: int = 2
    window: tuple[float, float] | None = None
    dicom_seg: bool = False
    keep_patient: bool = False
    too_large: str = "refuse"

    def check(self) -> None:
        """Raises InputError for what no image could be read with."""
        if self.axis not in (0, 1, 2):
            raise InputError(f"axis: got {self.axis}; accepted are 0, 1 and 2")
        if self.window is not None and not self.window[1] > 0:
            raise InputError(f"window: got a width of {self.window[1]:g}; accepted are widths above 0")
        if self.too_large not in TOO_LARGE:
            raise InputError(f"too_large: got {self.too_large!r}; accepted is one of {', '.join(TOO_LARGE)}")


@dataclass(frozen=True)
class Task:
    """One image to do.

    Attributes:
        path: absolute.
        name: of its outputs, below ``folder``.
        folder: of the run.
        settings: keyword arguments of :func:`msformer_fast.segment`.
        budget: bytes that it may take, or ``None``.
        run: what tells its run's settings from others; ``None`` for an image that stands alone, in no index.
    """

    path: str
    name: str
    folder: str
    settings: Mapping[str, Any]
    options: Options = field(default_factory=Options)
    budget: int | None = None
    run: str | None = None


def run_task(task: Task) -> Line:
    """Do one image; whatever is wrong with it becomes a line that says so.

    Raises:
        OutputError: an output cannot be written, which no other image would be spared.
        BackendError: likewise.
    """
    line = unfinished(task)
    try:
        _, result = segment_file(task, line)
        return result
    except (OutputError, BackendError):
        raise
    except (InputError, DivergenceError) as error:
        return line | {"reason": " ".join(str(error).removeprefix(f"{show(task.path)}: ").split())}
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            return line | {"reason": "not enough memory; try fewer jobs, a smaller size or memory='lean'"}
        return line | {"reason": _place(error)}
    except Exception as error:
        return line | {"reason": _place(error)}


def unfinished(task: Task) -> Line:
    """What the line of an image begins with: failed, until it is done."""
    return {"source": task.path, "output": task.name, "status": FAILED, **stamp(task.path)}


def stamp(path: str) -> dict[str, int | None]:
    """What tells whether a file was changed: its size in bytes and its time in nanoseconds."""
    try:
        found = os.stat(path)
    except OSError:
        return {"bytes": None, "modified": None}
    return {"bytes": found.st_size, "modified": found.st_mtime_ns}


def digest(path: str) -> str | None:
    """SHA-256 of a file's contents, by which it is known elsewhere; ``None`` of what is no file or cannot be read."""
    found = hashlib.sha256()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError:
        return None
    return found.hexdigest()


def segment_file(
    task: Task, line: Mapping[str, Any] | None = None, callback: Callable[[Any], Any] | None = None
) -> tuple[list[Path], Line]:
    """Segment one file of any format and write its outputs, the record last.

    Args:
        line: what the line of its result begins with.
        callback: see :func:`msformer_fast.segment`.

    Returns:
        The paths written, and the line.

    Raises:
        InputError: the file cannot be used, or would take more memory than ``task.budget``.
        OutputError, BackendError, DivergenceError: see :func:`msformer_fast.segment`.
    """
    from msformer_fast.cohort import volume

    options = task.options
    file = open_image(task.path, axis=options.axis, window=options.window)
    settings, resized = fitted(file, task)
    options, notes = _possible(file, options)
    target = check_output_folder((Path(task.folder) / task.name).parent)
    begun = dict(line or {}) | {"status": DONE} | ({"notes": notes} if notes else {})
    if task.run is not None:
        begun["sha256"] = digest(task.path)
    write = volume.write_volume if file.is_volume else _write_image
    return write(file, replace(task, settings=settings, options=options), target, begun | resized, callback)


def fitted(file: ImageFile, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings, with a size that the memory can hold; and what to say of it. Nothing is decoded for it where the
    header tells the size.

    Raises:
        InputError: it would take more than ``task.budget``; names what would fit.
    """
    settings = dict(task.settings)
    refuse_small(*file.shape, MIN_SIDE, show(task.path))
    network_size = fit_size(*file.shape, settings["size"])
    if task.budget is None:
        return settings, {}
    from msformer_fast.segmentation import choose_device

    device = choose_device(settings.get("device"))
    known = settings | {"device": str(device)}
    budget = task.budget
    if device.type == "cuda" and image_bytes(*file.shape) <= budget:  # then the GPU's memory is what counts
        budget = _free_on_gpu(device)
    stack = _VOXEL * file.frames * math.prod(file.shape) if file.is_volume else 0
    needed = predicted_bytes(file.shape, network_size, known) + stack
    if needed <= budget:
        return settings, {}
    size = largest_size(file.shape, budget - stack, known)
    has = f"would take {needed / _GIGABYTE:.1f} GB of memory and {budget / _GIGABYTE:.1f} GB are there"
    if size is None or size >= max(network_size):
        what = " x ".join(map(str, (*((file.frames,) if file.is_volume else ()), *file.shape)))
        raise InputError(f"{show(task.path)}: {what} pixels {has}; try fewer jobs, or a smaller image")
    if task.options.too_large == "refuse":
        raise InputError(
            f"{show(task.path)}: size {max(network_size)} {has}; size {size} fits, or fewer jobs, or memory='lean'"
        )
    return settings | {"size": size}, {"resized": f"size {max(network_size)} {has}: done at size {size}"}


def _possible(file: ImageFile, options: Options) -> tuple[Options, list[str]]:
    """What can be written of this image, and what is to be said of it: before the first step of work."""
    if not options.dicom_seg:
        return options, []
    from msformer_fast.formats.dicom import DicomFile

    if not isinstance(file, DicomFile):
        return replace(options, dicom_seg=False), []
    from msformer_fast.formats.segmentation_object import check_dicom_seg

    refusal, lack = check_dicom_seg(file, keep_patient=options.keep_patient)
    if refusal is not None:
        return replace(options, dicom_seg=False), [f"no DICOM Segmentation: {refusal}"]
    return options, [] if lack is None else [lack]


def with_notes(line: Line, file: ImageFile) -> Line:
    """The line of an image that has been read, its reason followed by what was left out."""
    notes = [*line.get("notes", []), *file.notes]
    return line | ({"notes": notes, "reason": "; ".join([line["reason"].rstrip("."), *notes])} if notes else {})


def _free_on_gpu(device: Any) -> int:
    import torch

    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device)  # what this process has taken serves the next image too


def _write_image(
    file: ImageFile, task: Task, target: Path, line: Line, callback: Callable[[Any], Any] | None
) -> tuple[list[Path], Line]:
    from msformer_fast.outputs import save_segmentation
    from msformer_fast.overlay import overlay
    from msformer_fast.segmentation import segment

    pixels = file.read(0)
    result = segment(pixels, callback=callback, **task.settings)
    chosen = result.foreground
    line = line | {
        "confidence": round(chosen.confidence, 4),
        "doubtful": chosen.doubtful,
        "reason": chosen.reason,
        "rule": chosen.rule,
        "pixels": int(result.mask.sum()),
        "image_size": list(result.mask.shape),
        "network_size": list(result.network_size),
        "iterations": len(result.history),
        "label_count": int(np.unique(result.labels).size),
        "stopped": result.stopped,
        "device": result.settings["device"],
        "seconds": round(result.seconds, 3),
    }
    line = with_notes(line, file)
    name = os.path.basename(task.name)
    paths = []
    if task.options.dicom_seg:
        paths.append(write_dicom_seg(file, result.mask[None], target / f"{name}_mask.dcm", task.options))
    picture = overlay(pixels, result.mask)
    if task.run is not None:
        write_thumbnail(task, picture)
    more = {key: line[key] for key in ("notes",) if key in line} | of_run(task, line)
    paths += save_segmentation(result, task.path, target, name=name, picture=picture, more=more)
    return paths, line


def of_run(task: Task, line: Line) -> dict[str, Any]:
    """What the record of an image of a run says of it, for a run that goes on and finds no line."""
    return {} if task.run is None else {"run": task.run, "line": line}


def write_dicom_seg(file: ImageFile, masks: NDArray[np.bool_], path: Path, options: Options) -> Path:
    """Write the masks (F, H, W) of a DICOM file as a DICOM Segmentation."""
    from msformer_fast.formats.dicom import DicomFile
    from msformer_fast.formats.segmentation_object import save_dicom_seg

    assert isinstance(file, DicomFile)
    save_dicom_seg(file, masks, path, keep_patient=options.keep_patient)
    return path


def write_thumbnail(task: Task, picture: NDArray[np.uint8]) -> None:
    """Keep a small picture for the index of a run."""
    from msformer_fast.cohort.index import thumbnail

    path = thumbnail_path(Path(task.folder), task.name)
    check_output_folder(path.parent)
    with atomic(path) as file:
        file.write(thumbnail(picture))


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


def _place(error: Exception) -> str:
    """An error that nobody foresaw: its kind and place, not its text, which may quote the file's contents."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if f"{os.sep}msformer_fast{os.sep}" in each.filename] or frames[-1:]
    where = f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    why = f", {reason(error)}" if isinstance(error, OSError) else ""
    return f"unexpected {type(error).__name__}{where}{why}"
