"""One image to do: how it is read, what is written of it, and by what its file is known again."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from msformer_fast.cohort.journal import FAILED, Line
from msformer_fast.errors import InputError
from msformer_fast.prompts.prompt import Prompt
from msformer_fast.prompts.volume import VolumePrompt, given_prompt

#: What is done about an image whose segmentation would take more memory than there is.
TOO_LARGE = ("refuse", "resize")
#: Settings that leave the results alike: they may change from one part of a run to the next.
FREE = ("memory", "capture", "runs")
#: Settings that say what is meant in an image; a list may give them image by image.
PROMPTS = tuple(each.name for each in fields(Prompt))
_CHUNK = 2**20


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


def unfinished(task: Task) -> Line:
    """What the line of an image begins with: failed, until it is done."""
    pointed = prompt_of(task.settings)
    more = {"prompt": pointed} if pointed else {}
    return {"source": task.path, "output": task.name, "status": FAILED, **stamp(task.path), **more}


def prompt_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The points and boxes among the settings, ready for JSON; empty without any."""
    prompt = prompt_in(settings)
    return {} if prompt is None else prompt.as_dict()


def prompt_in(settings: Mapping[str, Any]) -> Prompt | VolumePrompt | None:
    """The points and boxes among the settings."""
    return given_prompt(**{name: settings.get(name) for name in PROMPTS})


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
