"""Images of a run that lie elsewhere when it is gone on with: nothing is done twice, nothing is taken for another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from msformer_fast.cli import main
from msformer_fast.cohort.moved import _same_time

from .cohort_samples import OPTIONS, Inline, lines, pictures, write_images

pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)


def segment(inputs: Any, out: Path | str, *words: str) -> int:
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return main(["segment", *map(str, inputs), "-o", str(out), "--threads", "1", *OPTIONS, *words])


def nothing_to_do(capsys: pytest.CaptureFixture[str], count: int) -> bool:
    return f"{count} of {count} images are through, 0 to do" in capsys.readouterr().err


def _moved(before: Path, after: Path) -> None:
    before.rename(after)


def _copied(before: Path, after: Path) -> None:
    shutil.copytree(before, after)  # the first one stays


def _copied_without_times(before: Path, after: Path) -> None:
    shutil.copytree(before, after, copy_function=shutil.copyfile)
    shutil.rmtree(before)


def _linked(before: Path, after: Path) -> None:
    after.symlink_to(before, target_is_directory=True)


NAMED = ["absolute", "relative", "pattern", "list", "files"]


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (_moved, "absolute"),
        (_linked, "relative"),
        (_copied_without_times, "list"),
        pytest.param(_copied, "absolute", marks=pytest.mark.slow),
        *(pytest.param(_moved, each, marks=pytest.mark.slow) for each in NAMED if each != "absolute"),
        *(pytest.param(_linked, each, marks=pytest.mark.slow) for each in NAMED if each != "relative"),
    ],
)
def test_a_project_that_lies_elsewhere(
    how: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    write_images(before / "scans" / "deep", 1)
    write_images(before / "scans", 1)
    (before / "list.csv").write_text("image\nscans/image000.png\nscans/deep/image000.png\n")

    def run(project: Path) -> int:
        monkeypatch.chdir(project)
        if named == "files":
            return segment(sorted((project / "scans").rglob("*.png")), "results")
        given = {"pattern": "scans/**/*.png", "list": "list.csv", "relative": "scans"}.get(named, project / "scans")
        return segment(given, "results", "--recursive")

    assert run(before) == 0
    done = pictures(before / "results")
    monkeypatch.chdir(tmp_path)
    how(before, after)
    capsys.readouterr()
    assert run(after) == 0
    assert nothing_to_do(capsys, 2)
    assert pictures(after / "results") == done
    if how is not _linked:  # from within, a link's folder is the real one
        assert all(line["source"].startswith(str(after)) for line in lines(after / "results"))


def test_reached_through_a_link_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "scans", 2)
    (tmp_path / "link").symlink_to(tmp_path / "scans", target_is_directory=True)
    out = tmp_path / "out"
    assert segment(tmp_path / "link", out) == 0
    for name in ("scans", "link", "scans"):
        assert segment(tmp_path / name, out) == 0
        assert nothing_to_do(capsys, 2)
    changed = tmp_path / "scans" / "image000.png"
    changed.write_bytes((tmp_path / "scans" / "image001.png").read_bytes())
    assert segment(tmp_path / "link", out) == 0
    assert "done again: 1 image changed since" in capsys.readouterr().err
    assert len(lines(out)) == 2


def test_failures_move_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "before", 2)
    images[0].write_bytes(b"no image")
    assert segment(tmp_path / "before", tmp_path / "out") == 1
    (tmp_path / "before").rename(tmp_path / "after")
    assert segment(tmp_path / "after", tmp_path / "out") == 1
    assert "failed before and left alone: 1 image" in capsys.readouterr().err
    assert len(lines(tmp_path / "out")) == 2


def test_a_result_without_its_line_moves_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "before", 2)
    out = tmp_path / "out"
    assert segment(tmp_path / "before", out) == 0
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    (out / "results.jsonl").write_bytes(b"")
    (tmp_path / "before").rename(tmp_path / "after")
    assert segment(tmp_path / "after", out) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.name != "cohort.json")
    assert [Path(line["source"]).parent for line in lines(out)] == [tmp_path / "after"] * 2


def test_other_images_of_the_same_names_are_others(tmp_path: Path) -> None:
    """Also of the same size and time, and where the first are gone: what was done of them is kept."""
    first, second = write_images(tmp_path / "one", 2)
    out = tmp_path / "out"
    assert segment(tmp_path / "one", out) == 0
    done = pictures(out)
    other = tmp_path / "two" / "image000.png"
    other.parent.mkdir()
    data = bytearray(second.read_bytes()[: first.stat().st_size])
    other.write_bytes(bytes(data) + bytes(first.stat().st_size - len(data)))
    os.utime(other, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
    assert other.stat().st_size == first.stat().st_size
    for remove in (False, True):
        if remove:
            shutil.rmtree(tmp_path / "one")
        segment(tmp_path / "two", out, "--retry-failed")
        assert {name: data for name, data in pictures(out).items() if name in done} == done
        assert len(lines(out)) == 3


def test_one_place_in_two_folders_that_both_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "b" / "x", 1)
    images = write_images(tmp_path / "b" / "y", 2)
    images[0].unlink()
    images[1].rename(images[0])
    out = tmp_path / "out"
    assert segment([tmp_path / "b" / "x", tmp_path / "b" / "y"], out) == 0
    outputs = {Path(line["source"]).parent.name: line["output"] for line in lines(out)}
    assert len(set(outputs.values())) == 2
    (tmp_path / "b").rename(tmp_path / "a")
    assert segment([tmp_path / "a" / "y", tmp_path / "a" / "x"], out) == 0
    assert nothing_to_do(capsys, 2)
    assert {Path(line["source"]).parent.name: line["output"] for line in lines(out)} == outputs


def test_times_as_other_file_systems_keep_them() -> None:
    time = 1_700_000_001_123_456_789
    for kept in (
        time,
        time // 100 * 100,
        time // 10**9 * 10**9,
        time // (2 * 10**9) * 2 * 10**9,
        1_700_000_002 * 10**9,
    ):
        assert _same_time(time, kept) and _same_time(kept, time)
    for other in (time + 1, time - 5 * 10**9, None):
        assert not _same_time(time, other)
