"""Whether what another process or machine has done is there for this one: else it is not done."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from msformer_fast.cohort.journal import DONE, FAILED, SETTINGS, Line
from msformer_fast.cohort.results import read_record
from msformer_fast.cohort.task import Task, unfinished
from msformer_fast.files import plain, show

# Seconds that a network file system may take until it shows what another machine has written.
_LAG = 5.0
_SHARED = "all machines of a run must see the same files under the same paths"


class Seen:
    """The driver's view of a run's folder.

    Args:
        folder: of the run, absolute.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lag = _LAG

    def checked(self, line: Line) -> Line:
        """The line that was told of an image, or a failed one where its record is not there as it was told.

        The record is written last: where it is, all outputs are.
        """
        if line["status"] != DONE:
            return line
        told = json.loads(json.dumps(plain(line)))
        if _within(self._lag, self._folder / os.path.dirname(line["output"]), lambda: self._recorded(line, told)):
            return line
        self._lag = 0.0  # waited for once: the folder is another one there
        kept = {name: line[name] for name in ("source", "output", "bytes", "modified")}
        why = f"it was done, but its outputs are not in {show(self._folder)} as this machine sees it; {_SHARED}"
        return kept | {"status": FAILED, "reason": why}

    def _recorded(self, line: Line, told: Line) -> bool:
        return read_record(self._folder, line["output"]).get("line") == told


def refused_by_node(task: Task) -> Line | None:
    """On a node of a cluster, before any work: the line of an image whose run's folder is not there, else ``None``."""
    folder = Path(task.folder)
    if task.run is None or _within(_LAG, folder, (folder / SETTINGS).exists):
        return None
    why = f"the machine {platform.node()} does not see the run in {show(folder)}; {_SHARED}"
    return unfinished(task) | {"reason": why}


def _within(seconds: float, folder: Path, there: Callable[[], bool]) -> bool:
    """Whether something is there, if need be after some seconds."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() >= end:
            return False
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(folder)  # has a network file system look again
    return True
