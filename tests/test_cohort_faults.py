"""What goes wrong on the machines of people with thousands of images, and what a run makes of it."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from msformer_fast.cli import main
from msformer_fast.cohort.job import run_task
from msformer_fast.cohort.run import run_cohort
from msformer_fast.cohort.task import Options, Task
from msformer_fast.cohort.workers import LocalEngine
from msformer_fast.errors import InputError, OutputError

from .cohort_samples import (
    OPTIONS,
    SETTINGS,
    Inline,
    children,
    finish,
    lines,
    pictures,
    runs,
    same_run,
    start,
    wait_for_lines,
    workers,
    write_images,
)
from .conftest import SEED

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
KILLS = int(os.environ.get("MSFORMER_FAST_KILLS", "20"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of images, one of them corrupt, and what a run leaves that nothing happened to."""
    images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("undisturbed")
    paths = write_images(images, 30)
    paths[7].write_bytes(paths[7].read_bytes()[:900])
    summary = run_cohort([images], out, settings=SETTINGS, threads=1)
    assert (summary.made, summary.failed_now, summary.left) == (29, 1, 0)
    return images, out


@linux
@pytest.mark.slow
def test_killed_at_random_moments(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed, worker or all, and gone on with, again and again: the same files, none half, none done twice."""
    images, expected = undisturbed
    rng = random.Random(SEED)
    kills = 0
    while kills < KILLS:  # a run that is through before is one that was killed too seldom: another one
        out = tmp_path / f"killed from {kills}"
        written: dict[str, tuple[int, int]] = {}
        while kills < KILLS:
            process = start(images, "-o", out, "--threads", "1", "--jobs", str(rng.choice([1, 2])))
            killed = _kill(process, out, rng)
            kills += killed
            _written_once(out, written)
            if not killed:
                break
        code, _, err = finish(start(images, "-o", out, "--threads", "1"))
        assert code == 1, err  # for the corrupt image
        _written_once(out, written)
        same_run(out, expected)


def _kill(process: subprocess.Popen[str], out: Path, rng: random.Random) -> bool:
    """Kill a run, in a fifth of the cases a worker of it before; ``False`` if it was through before that."""
    before = len(lines(out))
    # A tenth is killed before anything is ready, the others about an image after something was done.
    if rng.random() < 0.1:
        time.sleep(rng.uniform(0, 2))
    else:
        wait_for_lines(out, before + 1, process)
        time.sleep(rng.uniform(0, 0.15))
    if rng.random() < 0.2:
        for pid in workers(process.pid)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for_lines(out, len(lines(out)) + 1, process)
    alive, orphans = process.poll() is None, children(process.pid)
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while any(map(runs, orphans)):
        assert time.monotonic() < end, "a worker outlived its run"
        time.sleep(0.01)
    return alive


def _written_once(out: Path, written: dict[str, tuple[int, int]]) -> None:
    """A record that is written again has another inode and time."""
    for path in out.rglob("*.json"):
        found = path.stat().st_ino, path.stat().st_mtime_ns
        assert written.setdefault(str(path), found) == found, f"{path} was done twice"


@pytest.mark.slow
@linux
def test_interrupted_once_and_twice(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    images, expected = undisturbed
    out = tmp_path / "out"
    for signals in (1, 2):
        before = len(lines(out))
        process = start(images, "-o", out, "--threads", "1", "--overwrite" if signals == 1 else "--resume")
        wait_for_lines(out, before + 2, process)
        for _ in range(signals):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
            time.sleep(0.02)
        code, _, err = finish(process)
        assert code == 130, err
        assert "interrupted; to go on: msformer-fast segment" in err
        assert "--overwrite" not in err
        assert "Traceback" not in err
        assert before + 2 <= len(lines(out)) < 30
        assert (out / "index.html").exists()
    process = start(images, "-o", out, "--threads", "1")
    assert finish(process)[0] == 1
    same_run(out, expected)


@linux
@pytest.mark.slow
def test_a_terminated_run_goes_on(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    images, expected = undisturbed
    out = tmp_path / "out"
    process = start(images, "-o", out, "--threads", "1")
    wait_for_lines(out, 1, process)
    process.terminate()
    assert finish(process)[0] == 130
    assert finish(start(images, "-o", out, "--threads", "1", "--jobs", "2"))[0] == 1
    same_run(out, expected)


@linux
def test_a_worker_that_dies_is_replaced(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    images, expected = undisturbed
    out = tmp_path / "out"
    process = start(images, "-o", out, "--threads", "1", "--jobs", "2")
    while not workers(process.pid):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(workers(process.pid)[0], signal.SIGKILL)  # before it is ready
    for count in (1, 6, 12):
        wait_for_lines(out, count, process)
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(workers(process.pid)[0], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 1, err
    same_run(out, expected)


class _Poison:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


@pytest.mark.slow
def test_an_image_that_kills_every_worker_is_told(tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 3)
    tasks = [Task(str(path), path.stem, str(tmp_path), SETTINGS) for path in images]
    tasks[1] = replace(tasks[1], settings=SETTINGS | {"poison": _Poison()})
    found = {line["output"]: line for line in LocalEngine(1, 1).run(tasks, threading.Event())}
    assert [found[path.stem]["status"] for path in images] == ["done", "failed", "done"]
    assert "ended with exit code 9, 2 times" in found["image001"]["reason"]


@pytest.mark.slow
def test_a_full_disk_by_quota(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """Files may not grow beyond 1500 bytes: the run ends with a sentence, nothing half, and goes on in more room."""
    images, expected = undisturbed
    out = tmp_path / "out"
    quota = (1500, resource.RLIM_INFINITY)
    process = start(
        images, "-o", out, "--threads", "1", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, quota)
    )
    code, _, err = finish(process)
    assert code == 2
    assert "cannot be written (File too large)" in err
    assert "Traceback" not in err
    assert finish(start(images, "-o", out, "--threads", "1"))[0] == 1
    same_run(out, expected)


@contextlib.contextmanager
def _tmpfs(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@linux
@pytest.mark.skipif(not shutil.which("mount"), reason="no mount")
def test_a_full_disk(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    images, expected = undisturbed
    disk = tmp_path / "disk"
    with _tmpfs(disk, "256k"):
        code, _, err = finish(start(images, "-o", disk / "out", "--threads", "1"))
        assert code == 2
        assert "No space left on device" in err
        assert "Traceback" not in err
        through = len(lines(disk / "out"))
        assert 0 < through < 30
        whole = pictures(expected)
        # What was told as done is there, to the byte.
        for line in lines(disk / "out"):
            if line["status"] == "done":
                name = f"{line['output']}_mask.png"
                assert (disk / "out" / name).read_bytes() == whole[name]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert finish(start(images, "-o", disk / "out", "--threads", "1"))[0] == 1
        same_run(disk / "out", expected)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        code, _, err = finish(start(images, "-o", disk / "out", "--threads", "1"))
        assert code == 2
        assert "cannot be used as the output folder" in err


def test_a_second_run_on_the_same_folder_is_refused(
    undisturbed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, expected = undisturbed
    out = tmp_path / "out"
    process = start(images, "-o", out, "--threads", "1")
    wait_for_lines(out, 1, process)
    assert main(["segment", str(images), "-o", str(out), *OPTIONS]) == 2
    assert f"is in use by process {process.pid} on " in capsys.readouterr().err
    assert finish(process)[0] == 1
    same_run(out, expected)


def test_an_input_that_disappears_is_corrupt_or_a_broken_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
    paths = write_images(tmp_path / "in", 5)
    paths[1].write_bytes(b"\x89PNG\r\n" + bytes(300))
    (tmp_path / "in" / "x.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "in" / "y.png").symlink_to(tmp_path / "in" / "y.png")
    os.mkfifo(tmp_path / "in" / "z.png")

    def remove(line: Any, through: int, total: int) -> None:
        paths[4].unlink(missing_ok=True)

    summary = run_cohort([tmp_path / "in"], tmp_path / "out", settings=SETTINGS, threads=1, report=remove)
    assert [line["status"] for line in summary.lines] == ["done", "failed", "done", "done", *["failed"] * 4]
    assert "damaged or truncated PNG" in summary.lines[1]["reason"]
    assert "No such file" in summary.lines[4]["reason"]
    assert "No such file" in summary.lines[5]["reason"]
    assert "Too many levels of symbolic links" in summary.lines[6]["reason"]
    assert "is not a file" in summary.lines[7]["reason"]
    assert all("\n" not in line["reason"] for line in summary.lines)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be used as the output folder"):
        run_cohort([tmp_path / "in"], tmp_path / "out", settings=SETTINGS)


def test_outputs_that_cannot_be_written_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
    images = write_images(tmp_path / "in", 2)
    (tmp_path / "out" / "image001_labels.png").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"image001_labels.png: cannot be written"):
        run_cohort(images, tmp_path / "out", settings=SETTINGS, threads=1, overwrite=True)
    assert [line["output"] for line in lines(tmp_path / "out")] == ["image000"]


def test_too_large_for_the_memory(tmp_path: Path) -> None:
    """Refused with the number, or done smaller and said so, before anything is taken."""
    (path,) = write_images(tmp_path, 1, height=300, width=400)
    big = SETTINGS | {"size": 257, "channels": 100, "clusters": 100}
    task = Task(str(path), "x", str(tmp_path), big, Options(), 300 * 10**6)
    line = run_task(task)
    assert line["status"] == "failed"
    assert "GB of memory and 0.3 GB are there; size " in line["reason"]
    line = run_task(replace(task, options=Options(too_large="resize")))
    assert line["status"] == "done"
    assert "done at size" in line["resized"]
    assert max(line["network_size"]) < 257
    assert "0.0 GB are there; try fewer jobs" in run_task(replace(task, budget=10**6))["reason"]


@linux
def test_what_was_not_predicted_fails_instead_of_being_killed(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, 1, height=200, width=200)
    code = (
        "import sys; from msformer_fast.cohort.job import run_task; from msformer_fast.cohort.task import Task\n"
        "from msformer_fast.cohort.workers import prepare\n"
        "prepare(1, 100_000_000, None)\n"
        "print(run_task(Task(sys.argv[1], 'x', sys.argv[2], {'size': 513, 'device': 'cpu'}))['reason'])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert "not enough memory" in out
