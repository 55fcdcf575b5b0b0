"""Small runs over many images: what goes in, how they are started, and what they left."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from msformer_fast import phantom
from msformer_fast.cohort.job import run_task
from msformer_fast.cohort.journal import RESULTS
from msformer_fast.images import write_png
from msformer_fast.segmentation import check_settings

#: A network so small that an image takes a tenth of a second.
SETTINGS: dict[str, Any] = {
    "size": 49,
    "channels": 6,
    "clusters": 8,
    "depth": 1,
    "max_iterations": 3,
    "min_labels": 1,
    "device": "cpu",
}
#: The same for the command line.
OPTIONS = [word for name, value in SETTINGS.items() for word in ("--" + name.replace("_", "-"), str(value))]


def write_images(folder: Path, count: int, *, height: int = 48, width: int = 60) -> list[Path]:
    """Drawn lesions, each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"image{index:03d}.png" for index in range(count)]
    for index, path in enumerate(paths):
        write_png(path, (phantom.lesion((height, width), seed=index)[0] * 255).astype(np.uint8))
    return paths


class Inline:
    """An engine that does its tasks in this process: what is not about processes need not wait for their start."""

    def __init__(self, *_: Any) -> None:
        pass

    def run(self, tasks: Any, stop: threading.Event) -> Iterator[Any]:
        for index, task in enumerate(tasks):
            if index == 0:
                check_settings(**task.settings)
            if stop.is_set():
                return
            yield run_task(task)

    def kill(self) -> None:
        raise NotImplementedError


def start(*words: str | Path, **how: Any) -> subprocess.Popen[str]:
    """``msformer-fast segment`` in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "msformer_fast", "segment", *map(str, words), *OPTIONS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen(command, start_new_session=True, **(pipes | how))


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's results."""
    path = folder / RESULTS
    return [json.loads(row) for row in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Until so many results are there, or the process has ended."""
    end = time.monotonic() + timeout
    while len(lines(folder)) < count and process.poll() is None:
        assert time.monotonic() < end, "no result in time"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Processes that this one started (Linux)."""
    found = []
    with contextlib.suppress(OSError):  # it may end at any moment
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def workers(pid: int) -> list[int]:
    """Those of its children that do images."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with contextlib.suppress(OSError):
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0].startswith(("Z", "X"))
    return False


def pictures(folder: Path) -> dict[str, bytes]:
    """Every output that is a picture or a volume, by its path below the folder."""
    endings = (".png", ".jpg", ".gz", ".dcm")
    paths = (path for path in folder.rglob("*") if path.suffix in endings)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def same_run(one: Path, other: Path) -> None:
    """Assert that two runs left the same: pictures to the byte, lines but for their seconds, and nothing half done."""
    assert pictures(one) == pictures(other)
    kept = [
        [{key: value for key, value in line.items() if key != "seconds"} for line in lines(each)]
        for each in (one, other)
    ]
    assert kept[0] == kept[1]
    names = [sorted(str(path.relative_to(each)) for path in each.rglob("*") if path.is_file()) for each in (one, other)]
    assert names[0] == names[1]
    assert not [name for name in names[0] if name.endswith(".tmp") or name.startswith(".partial/")]
