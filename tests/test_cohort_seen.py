"""A file is done when the process that asked for it finds it, wherever it was done."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from msformer_fast.cohort import seen
from msformer_fast.cohort.job import run_task
from msformer_fast.cohort.run import run_cohort
from msformer_fast.cohort.task import Task

from .cohort_samples import SETTINGS, Inline, lines, write_images


class Elsewhere(Inline):
    """A machine whose folder of that name is another one."""

    def run(self, tasks: Any, stop: threading.Event) -> Iterator[Any]:
        for task in tasks:
            yield run_task(replace(task, folder=f"{task.folder} of the node"))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_LAG", 0.1)


def test_what_was_written_elsewhere_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where an earlier result lies in its place."""
    write_images(tmp_path / "in", 2)
    out = tmp_path / "out"
    for _ in range(2):
        monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Elsewhere)
        summary = run_cohort([tmp_path / "in"], out, settings=SETTINGS, overwrite=True)
        assert (summary.made, summary.failed_now) == (0, 2)
        assert all("its outputs are not in" in line["reason"] for line in summary.failures)
        assert all(line["reason"].endswith("the same files under the same paths") for line in lines(out))
        monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
        summary = run_cohort([tmp_path / "in"], out, settings=SETTINGS, retry_failed=True)
        assert (summary.made, len(summary.failures)) == (2, 0)


def test_a_file_system_that_shows_it_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_LAG", 20.0)
    line = {"source": "/x.png", "output": "below/x", "status": "done", "bytes": 1, "modified": 2, "confidence": 0.25}
    (tmp_path / "below").mkdir()
    record = tmp_path / "below" / "x.json"
    timer = threading.Timer(0.5, lambda: record.write_text(json.dumps({"image": "x.png", "line": line})))
    timer.start()
    assert seen.Seen(tmp_path).checked(line) is line
    timer.join()


def test_a_node_without_the_folder_refuses_before_any_work(tmp_path: Path) -> None:
    task = Task("/x.png", "x", str(tmp_path / "out"), SETTINGS, run="some")
    refused = seen.refused_by_node(task)
    assert refused is not None and refused["status"] == "failed"
    assert f"does not see the run in {tmp_path / 'out'}" in refused["reason"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cohort.json").touch()
    assert seen.refused_by_node(task) is None


class Noting(Inline):
    tasks: list[Task] = []  # noqa: RUF012

    def run(self, tasks: Any, stop: threading.Event) -> Iterator[Any]:
        Noting.tasks = list(tasks)
        return iter(())


@pytest.mark.parametrize("output", ["out", "./below/../out", "."])
def test_every_path_that_is_handed_on_is_absolute(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Noting)
    write_images(tmp_path / "in", 1)
    (tmp_path / "work" / "below").mkdir(parents=True)
    (tmp_path / "work" / "list.csv").write_text("../in/image000.png\n")
    monkeypatch.chdir(tmp_path / "work")
    for inputs in (["../in"], ["list.csv"], ["../in/*.png"], ["../in/image000.png"]):
        run_cohort(inputs, output, settings=SETTINGS | {"runs": "kept"}, overwrite=True)
        (task,) = Noting.tasks
        assert all(map(os.path.isabs, (task.path, task.folder, task.settings["runs"])))
        assert os.path.samefile(task.folder, output) and os.path.samefile(task.settings["runs"], "kept")
