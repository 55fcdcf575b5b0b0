"""A run on a Ray cluster of two workers on this machine: the results of a run without it, also when a worker dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from msformer_fast.cohort.ray_engine import RayEngine
from msformer_fast.cohort.run import run_cohort
from msformer_fast.cohort.task import Task
from msformer_fast.errors import InputError

from .cohort_samples import SETTINGS, lines, same_run, write_images

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster() -> object:
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield None
    ray.shutdown()


def _busy() -> list[int]:
    """Processes of Ray that do an image at this moment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_work"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_the_same_results_with_a_worker_killed(cluster: object, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 12)
    images[3].write_bytes(b"no image")
    expected = run_cohort([tmp_path / "in"], tmp_path / "expected", settings=SETTINGS, threads=1)
    killed = []

    def kill(line: object, through: int, total: int) -> None:
        end = time.monotonic() + 20
        while through in (2, 5) and time.monotonic() < end:
            for pid in _busy()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return

    out = tmp_path / "ray"
    summary = run_cohort([tmp_path / "in"], out, settings=SETTINGS, engine="ray", report=kill)
    assert killed
    assert (summary.made, summary.failed_now, summary.left) == (expected.made, 1, 0) == (11, 1, 0)
    same_run(tmp_path / "expected", out)
    again = run_cohort([tmp_path / "in"], out, settings=SETTINGS, engine="ray")  # nothing is left to do
    assert (again.made, len(lines(out))) == (0, 12)


@pytest.mark.slow
def test_a_run_is_gone_on_with_by_the_other_engine(cluster: object, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 6)
    run_cohort(images[:3], tmp_path / "out", settings=SETTINGS, threads=1)
    summary = run_cohort(images, tmp_path / "out", settings=SETTINGS, engine="ray", threads=1)
    assert (summary.made, len(summary.lines)) == (3, 6)
    run_cohort(images, tmp_path / "whole", settings=SETTINGS, threads=1)
    same_run(tmp_path / "out", tmp_path / "whole")


def test_settings_are_refused_before_any_image(cluster: object, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 2)
    with pytest.raises(InputError, match="rule must be one of"):
        run_cohort(images, tmp_path / "out", settings=SETTINGS | {"rule": "nonsense"}, engine="ray")
    assert lines(tmp_path / "out") == []


def test_more_than_the_cluster_has_is_refused(cluster: object, tmp_path: Path) -> None:
    task = Task(str(tmp_path / "x.png"), "x", str(tmp_path), SETTINGS)
    with pytest.raises(InputError, match="a task needs 64 of CPU, the whole cluster has 2"):
        list(RayEngine(threads=64).run([task], threading.Event()))


def test_stopping(cluster: object, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 12)
    tasks = [Task(str(path), path.stem, str(tmp_path / "out"), SETTINGS) for path in images]
    (tmp_path / "out").mkdir()
    stop = threading.Event()
    found = []
    for line in RayEngine(threads=1).run(tasks, stop):
        found.append(line)
        stop.set()
    assert 1 <= len(found) < 12
