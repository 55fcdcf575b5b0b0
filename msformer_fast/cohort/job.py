"""One image of a run, in a process of its own: read, segmented, written, and told in one line."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msformer_fast.cohort.fitting import fitted
from msformer_fast.cohort.journal import DONE, Line
from msformer_fast.cohort.picture import write_image
from msformer_fast.cohort.task import Options, Task, digest, prompt_in, unfinished
from msformer_fast.cohort.volume import write_volume
from msformer_fast.errors import BackendError, DivergenceError, InputError, OutputError, out_of_memory
from msformer_fast.files import check_output_folder, reason, show
from msformer_fast.foreground import LUNG_RULES
from msformer_fast.formats import ImageFile, open_image
from msformer_fast.prompts.prompt import FORMS, Prompt
from msformer_fast.prompts.volume import VolumePrompt


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
    options = task.options
    lungs = task.settings.get("rule", "auto") in LUNG_RULES
    file = open_image(task.path, axis=options.axis, window=options.window, lungs=lungs)
    _check_prompt(file, prompt_in(task.settings), show(task.path))
    settings, resized = fitted(file, task)  # before anything is decoded, which alone may take more
    options, notes = _possible(file, options)
    first = file.read(0)  # what cannot be decoded is refused before a folder is made for it
    target = check_output_folder((Path(task.folder) / task.name).parent)
    begun = dict(line or {}) | {"status": DONE} | ({"notes": notes} if notes else {})
    if task.run is not None:
        begun["sha256"] = digest(task.path)
    write = write_volume if file.is_volume else write_image
    return write(file, first, replace(task, settings=settings, options=options), target, begun | resized, callback)


def _check_prompt(file: ImageFile, prompt: Prompt | VolumePrompt | None, name: str) -> None:
    """Raises InputError for points and boxes of an image where a volume is, and the other way round."""
    if isinstance(prompt, VolumePrompt):
        if not file.is_volume:
            raise InputError(f"{name}: is one image; accepted are points {FORMS[2]} and boxes {FORMS[4]}, without Z")
        prompt.check(file.shape, file.frames)
    elif prompt is not None and file.is_volume:
        raise InputError(
            f"{name}: is a volume of {file.frames} slices; accepted are points {FORMS[3]} and boxes {FORMS[6]}, Z a "
            f"slice from 0 to {file.frames - 1}"
        )


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


def _place(error: Exception) -> str:
    """An error that nobody foresaw: its kind and place, not its text, which may quote the file's contents."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if f"{os.sep}msformer_fast{os.sep}" in each.filename] or frames[-1:]
    where = f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    why = f", {reason(error)}" if isinstance(error, OSError) else ""
    return f"unexpected {type(error).__name__}{where}{why}"
