"""Runs over many images: what is written, what is done again and what is not, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import msformer_fast.cohort.plan as plan_module
from msformer_fast.cli import main
from msformer_fast.cohort.job import run_task
from msformer_fast.cohort.journal import SETTINGS as SETTINGS_FILE
from msformer_fast.cohort.run import run_cohort
from msformer_fast.cohort.task import Options, Task
from msformer_fast.cohort.workers import LocalEngine
from msformer_fast.errors import BackendError, InputError

from .cohort_samples import OPTIONS, SETTINGS, Inline, finish, lines, pictures, same_run, start, write_images


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)


def segment(images: Any, out: Path, *words: str) -> int:
    inputs = [str(each) for each in (images if isinstance(images, list) else [images])]
    return main(["segment", *inputs, "-o", str(out), "--threads", "1", *OPTIONS, *words])


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every image as `segment` alone would do it, with a line each, and everything told at the end."""
    images = write_images(tmp_path / "in", 3)
    (tmp_path / "in" / "notes.txt").touch()
    out = tmp_path / "out"
    assert segment(tmp_path / "in", out) == 0
    captured = capsys.readouterr()
    assert "3 of 3 images done (3 now, " in captured.out
    assert "left out: 1 file that cannot be an image" in captured.err
    assert "3 of 3 images, " in captured.err
    for path in images:
        assert segment(path, tmp_path / "alone") == 0
    alone = pictures(tmp_path / "alone")
    assert len(alone) == 9
    assert {name: data for name, data in pictures(out).items() if name in alone} == alone
    for path, line in zip(images, lines(out), strict=True):
        record = json.loads((out / f"{path.stem}.json").read_text())
        assert (line["source"], line["output"], line["status"]) == (str(path), path.stem, "done")
        assert line["confidence"] == pytest.approx(record["foreground"]["confidence"], abs=1e-4)
        assert line["pixels"] == (np.asarray(Image.open(out / f"{path.stem}_mask.png")) > 0).sum()
        assert (line["image_size"], line["network_size"]) == ([48, 60], [39, 49])
        assert record["line"] == line
    page = (out / "index.html").read_text()
    assert all(path.name in page for path in images)
    assert json.loads((out / SETTINGS_FILE).read_text())["channels"] == 6


def test_one_stem_in_several_places(inline: None, tmp_path: Path) -> None:
    (first,) = write_images(tmp_path / "in", 1)
    Image.open(first).save(tmp_path / "in" / "image000.bmp")
    write_images(tmp_path / "in" / "below", 1)
    out = tmp_path / "out"
    assert segment(tmp_path / "in", out, "--recursive") == 0
    masks = sorted(str(path.relative_to(out)) for path in out.rglob("*_mask.png"))
    assert masks == ["below/image000_mask.png", "image000.bmp_mask.png", "image000.png_mask.png"]


@pytest.mark.parametrize(
    "name",
    [
        "a b.png",
        "line\nbreak.png",
        "-dash.png",
        "--help.png",
        "käse 日本語.png",
        "'\"<b>&.png",
        os.fsdecode(b"\xff\xfe.png"),
    ],
)
def test_odd_names(inline: None, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = write_images(tmp_path / "in", 1)
    try:
        path.rename(tmp_path / "in" / name)
    except (OSError, UnicodeError):
        pytest.skip("this file system does not take such a name")
    (tmp_path / "in" / f"bad{name}").write_bytes(b"no image")
    out = tmp_path / "out"
    assert segment(tmp_path / "in", out) == 1
    assert (out / f"{name[:-4]}_mask.png").exists()
    assert [line["source"] for line in lines(out) if line["status"] == "done"] == [str(tmp_path / "in" / name)]
    err = capsys.readouterr().err
    assert sum(row.startswith("failed: ") for row in err.splitlines()) == 1
    assert segment(tmp_path / "in", out) == 1
    assert len(lines(out)) == 2


def test_going_on_does_only_what_is_left(inline: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "in", 4)
    good = images[1].read_bytes()
    images[1].write_bytes(good[:500])
    out = tmp_path / "out"
    assert segment(images[:2], out) == 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert segment(tmp_path / "in", out) == 1
    err = capsys.readouterr().err
    assert "2 of 4 images are through, 2 to do" in err
    assert "failed before and left alone: 1 image; --retry-failed" in err
    assert f"failed: {images[1]}: damaged" in err
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())

    images[1].write_bytes(good)
    assert segment(tmp_path / "in", out) == 1  # failures are left alone until that is asked for
    assert segment(tmp_path / "in", out, "--retry-failed") == 0
    assert [line["status"] for line in lines(out)] == ["done"] * 4
    assert segment(tmp_path / "in", tmp_path / "other") == 0
    same_run(out, tmp_path / "other")


def test_changed_images_are_done_again_and_missing_ones_kept(
    inline: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "in", 3)
    out = tmp_path / "out"
    assert segment(images, out) == 0
    images[0].write_bytes(images[1].read_bytes())
    images[2].unlink()
    assert segment(images[:2], out) == 0
    assert "done again: 1 image changed since" in capsys.readouterr().err
    assert (out / "image000_mask.png").read_bytes() == (out / "image001_mask.png").read_bytes()
    assert len(lines(out)) == 3  # what is no longer there keeps its result


def test_outputs_that_were_deleted_are_made_again(inline: None, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 2)
    out = tmp_path / "out"
    assert segment(images, out) == 0
    kept = (out / "image001.json").stat().st_ino
    for path in out.glob("image000*"):
        path.unlink()
    assert segment(images, out) == 0
    assert (out / "image000_mask.png").exists()
    assert (out / "image001.json").stat().st_ino == kept
    assert len(lines(out)) == 2


def test_a_result_without_its_line_is_found(inline: None, tmp_path: Path) -> None:
    """As where a run is killed between the last file of an image and its line."""
    images = write_images(tmp_path / "in", 2)
    out = tmp_path / "out"
    assert segment(images, out) == 0
    whole = lines(out)
    (out / "results.jsonl").write_bytes(b"")
    before = (out / "image000.json").stat().st_ino
    assert segment(images, out) == 0
    assert (out / "image000.json").stat().st_ino == before
    assert lines(out) == whole
    (out / "results.jsonl").write_bytes(b"")
    record = json.loads((out / "image000.json").read_text())
    (out / "image000.json").write_text(json.dumps(record | {"run": "of other settings"}))
    assert segment(images, out) == 0
    assert (out / "image000.json").stat().st_ino != before


def test_refusals(inline: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "in", 2)
    out = tmp_path / "out"
    assert segment(images, out) == 0
    capsys.readouterr()
    for words, said in {
        ("--rule", "lungs"): "rule 'auto' there, 'lungs' here",
        ("--axis", "1"): "axis 2 there, 1 here",
        ("--no-resume",): "holds a run already",
        ("--jobs", "0"): "jobs: got 0",
        ("--threads", "0"): "threads: got 0",
        ("--engine", "slurm"): "engine: got 'slurm'",
        ("--axis", "3"): "axis: got 3",
        ("--window", "40", "0"): "window: got a width of 0",
        ("--too-large", "pray"): "too_large: got 'pray'",
        ("--max-memory", "0.001"): "leave none for images",
    }.items():
        assert segment(images, out, *words) == 2, words
        err = capsys.readouterr().err
        assert said in err, err
        assert err.count("\n") == 1
    for words, said in {
        ("--rule", "x"): "rule must be",
        ("--backend", "x"): "backend",
        ("--size", "7"): "size",
    }.items():
        assert segment(images, tmp_path / "new", *words) == 2, words
        assert said in capsys.readouterr().err
        assert not [path for path in (tmp_path / "new").iterdir() if path.name != ".lock"]  # nothing to go on with
    mine = tmp_path / "mine" / "image001_mask.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert segment(images, mine.parent) == 2
    assert "image001_mask.png: exists already" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert segment(tmp_path / "in", tmp_path / "in") == 2
    assert "is the folder of the images too" in capsys.readouterr().err


def test_overwriting_begins_anew(inline: None, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 2)
    out = tmp_path / "out"
    assert segment(images, out) == 0
    assert segment(images, out, "--overwrite", "--rule", "lesion") == 0
    assert {line["rule"] for line in lines(out)} == {"lesion"}
    assert len(lines(out)) == 2


def test_lists_and_patterns(inline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", 3)
    (tmp_path / "list.csv").write_text("image\nin/image002.png\nin/nothing.png\n")
    monkeypatch.chdir(tmp_path)
    assert segment("list.csv", tmp_path / "listed") == 1
    assert [(line["output"], line["status"]) for line in lines(tmp_path / "listed")] == [
        ("in/image002", "done"),
        ("in/nothing", "failed"),
    ]
    assert segment("in/image00[01].png", tmp_path / "matched") == 0
    assert [line["output"] for line in lines(tmp_path / "matched")] == ["image000", "image001"]


def test_two_jobs_give_what_one_gives(tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 6)
    for jobs in (1, 2):
        summary = run_cohort(images, tmp_path / str(jobs), settings=SETTINGS, jobs=jobs, threads=1)
        assert summary.made == 6
    same_run(tmp_path / "1", tmp_path / "2")


def test_an_unforeseen_error_is_told_without_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_images(tmp_path, 1)

    def broken(*_: object, **__: object) -> None:
        raise KeyError("Patient^Name")

    monkeypatch.setattr("msformer_fast.cohort.job.open_image", broken)
    line = run_task(Task(str(path), "x", str(tmp_path), SETTINGS))
    assert line["status"] == "failed"
    assert line["reason"].startswith("unexpected KeyError in ")
    assert "Patient" not in line["reason"]

    def unable(*_: object, **__: object) -> None:
        raise BackendError("no such backend")

    monkeypatch.setattr("msformer_fast.cohort.job.open_image", unable)
    with pytest.raises(BackendError):
        run_task(Task(str(path), "x", str(tmp_path), SETTINGS))


def test_processes_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the GPUs' memory and the cores allow; one on a machine without."""
    monkeypatch.setattr(plan_module, "usable_cores", lambda: 16)
    plan = plan_module.Plan({"size": 257}, None, None, 10**11, 100)
    assert plan.jobs == plan.with_gpus(()) == 1
    assert plan.with_gpus((80 * 10**9,)) == 4
    assert plan.with_gpus((80 * 10**9,) * 2) == 8
    assert plan.with_gpus((3 * 10**9,) * 2) == 2
    for device, expected in {"cpu": 1, "cuda": 4, "cuda:1": 1, "cuda:7": 1}.items():
        named = plan_module.Plan({"size": 257, "device": device}, None, None, 10**11, 100)
        assert named.with_gpus((80 * 10**9, 3 * 10**9)) == expected
    monkeypatch.setattr(plan_module, "usable_cores", lambda: 2)
    assert plan.with_gpus((80 * 10**9,) * 2) == 2
    assert plan_module.Plan({"size": 257}, None, None, 10**11, 1).with_gpus((80 * 10**9,)) == 1
    assert plan_module.Plan({"size": 257}, 8, None, 10**11, 3).jobs == 3


def test_processes_take_gpus_in_turn() -> None:
    engine = LocalEngine(4, 1)
    task = Task("/x.png", "x", "/out", SETTINGS | {"device": None})
    assert engine._on_device(task, 3) is task
    engine._gpus = (1, 1)
    assert [engine._on_device(task, slot).settings["device"] for slot in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    named = Task("/x.png", "x", "/out", SETTINGS)
    assert engine._on_device(named, 1) is named


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="axis: got 3"):
        Options(axis=3).check()


def test_the_command_that_goes_on_is_quoted(tmp_path: Path) -> None:
    """Runs as a process, since a signal belongs to one."""
    write_images(tmp_path / "in put", 8)
    process = start(tmp_path / "in put", "-o", tmp_path / "out", "--threads", "1")
    from .cohort_samples import wait_for_lines

    wait_for_lines(tmp_path / "out", 1, process)
    process.terminate()
    code, out, err = finish(process)
    if code == 130:
        assert f"'{tmp_path}/in put'" in err
    else:
        assert (code, "8 of 8" in out) == (0, True)
