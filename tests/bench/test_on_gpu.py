"""The command for a few minutes on a GPU, dry: what it does, in which order, and how it survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from msformer_fast.benchmarks import on_gpu, on_gpu_units
from msformer_fast.benchmarks.on_gpu_crew import Crew
from msformer_fast.benchmarks.on_gpu_units import STAGES
from msformer_fast.benchmarks.options import OPS
from msformer_fast.benchmarks.precision import products
from msformer_fast.benchmarks.records import read_results
from tests.conftest import ROOT

pytest.importorskip("triton")


def dry(folder: Path, only: str, *more: str) -> int:
    return on_gpu.main(["--dry-run", "-o", str(folder), "--only", only, "--jobs", "1", *more])


def lines_of(folder: Path, only: str = "") -> dict[str, dict]:
    """By piece, of what a run has left."""
    lines = [json.loads(line) for line in (folder / "units.jsonl").read_text().splitlines()]
    return {line["unit"]: line for line in lines if line["unit"].startswith(only)}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the children."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))  # a dry run sets it


def test_the_most_valuable_comes_first_and_nothing_is_left_out() -> None:
    units = on_gpu_units.units()
    names = [unit.name for unit in units]
    assert len(names) == len(set(names))
    kinds = ("correct/", "parity", "graphs", "tests", "rows/step", "rows/image", "rows/clustering", "tune/", "search/")
    first = {kind: next(i for i, name in enumerate(names) if name.startswith(kind)) for kind in kinds}
    assert list(first.values()) == sorted(first.values())
    for op in OPS:
        assert {f"correct/{op}/{dtype}" for dtype in ("float32", "bfloat16", "float16", "tf32")} <= set(names)
        assert {f"rows/{op}/{dtype}/257" for dtype in ("float32", "bfloat16", "float16", "tf32")} <= set(names)
    assert all(unit.timed for unit in units if unit.name.startswith(("rows/", "tune/"))), "one at a time"
    quiet = {unit.name.split("/")[1] for unit in units if unit.quiet}
    assert quiet == {"step", "image"}, "nothing runs beside what a user waits for"


@pytest.mark.parametrize(
    ("stage", "last", "spared"),
    [("checks", "correct/cross_scale_attention/float16", 90), ("timing", "tune/stability_loss/backward/bfloat16", 45)],
)
def test_each_call_fits_its_minutes(stage: str, last: str, spared: int) -> None:
    """By the pieces' own estimates, eight side by side where nothing is timed; so many seconds are for the start and
    for compilations. What comes after the last may be cut off."""
    units = [unit for unit in on_gpu_units.units() if unit.stage == stage]
    ends = next(i for i, unit in enumerate(units) if unit.name == last)
    needed = sum(unit.seconds / (1 if unit.timed else 8) for unit in units[: ends + 1])
    assert needed < 60 * STAGES[stage] - spared


def test_what_needs_kernels_says_which() -> None:
    """So that they are compiled before."""
    for unit in on_gpu_units.units():
        assert (unit.launches is not None) == (unit.stage != "search"), unit.name


def test_a_dry_run_goes_on_where_it_stopped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "on gpu"
    assert dry(folder, "rows/stability_loss", "--minutes", "0") == 0  # the time is up at once
    assert "0 of 5 pieces in" in capfd.readouterr().out
    assert dry(folder, "rows/stability_loss/float32/257") == 0
    assert "1 of 1 pieces in" in capfd.readouterr().out
    results = read_results(folder / "results.json")
    assert {row.label for row in results.rows} == {"dry run"} and results.environment["dry_run"] is True
    assert {row.provider for row in results.rows} == {"reference", "torch", "matrix"}, "nothing that Inductor compiles"
    assert (folder / "report.html").exists()

    only = "correct/stability_loss/float32"
    assert dry(folder, only) == 0
    assert "no card: 2 of 2 pieces to do" in capfd.readouterr().out
    check = lines_of(folder)[only]
    assert check["ok"] and check["checks"][0]["same_bits_twice"] and check["checks"][0]["error"] < 1e-5
    assert dry(folder, only) == 0
    assert "no card: 0 of 2 pieces to do" in capfd.readouterr().out
    elsewhere = tmp_path / "elsewhere"
    assert dry(elsewhere, only, "--from", str(folder / "units.jsonl")) == 0
    assert "no card: 0 of 2 pieces to do" in capfd.readouterr().out
    assert {path.name for path in elsewhere.iterdir()} == {"units.jsonl", "results.json", "report.html", "summary.txt"}
    assert dry(elsewhere, only, "--from", str(tmp_path / "missing.jsonl")) == 0
    assert "missing.jsonl: not there" in capfd.readouterr().out


def test_it_runs_from_a_bare_checkout(tmp_path: Path) -> None:
    """As where nothing was installed: without the finders of an editable installation."""
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import on_gpu; on_gpu.main(['--list']); "
        "import msformer_fast.benchmarks as b; print(b.__file__)"
    )
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300, env=bare
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len([unit for unit in on_gpu_units.units() if unit.stage != "search"]) + 1
    assert Path(lines[-1]).resolve() == ROOT / "benchmarks" / "__init__.py"


#: What a bare CUDA image need not have.
ABSENT = ("filelock", "nvtx", "tifffile", "tqdm", "PIL", "skimage", "matplotlib", "pydicom", "nibabel", "sklearn")


def test_it_needs_no_package_that_a_bare_image_lacks(tmp_path: Path) -> None:
    """Torch needs filelock for Inductor alone, which is left out."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.machinery as machinery, sys\nfind = machinery.PathFinder.find_spec\n"
        "def found(cls, name, path=None, target=None):\n"
        f"    return None if name.partition('.')[0] in {ABSENT!r} else find(name, path, target)\n"
        "machinery.PathFinder.find_spec = classmethod(found)\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "benchmarks" / "on_gpu.py")
    command = [sys.executable, script, "--dry-run", "--jobs", "1", "-o", str(tmp_path / "o")]
    only = "correct/stability_loss/float32,rows/stability_loss/float32/257,tune/stability_loss/forward/float32,parity"
    done = subprocess.run(
        [*command, "--only", only], capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: 0" in done.stdout
    assert {"environment", *only.split(",")} <= set(lines_of(tmp_path / "o"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert on_gpu.main(["-o", str(tmp_path)]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_a_shape_that_raises_leaves_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right, shapes = {"case": "", "ok": True, "error": 0.0, "allowed": 1.0, "where": "", "same_bits_twice": True}, []

    def check(op: str, sizes: dict[str, int], dtype: str, device: str) -> dict:
        shapes.append(sizes["side"])
        if len(shapes) == 1:
            raise ValueError("no such shape\nand more")
        return right

    monkeypatch.setattr(on_gpu_units, "_check", check)
    unit = next(unit for unit in on_gpu_units.units() if unit.name == "correct/mix_ffn/float32")
    found = unit.run("cpu", False, 1.0)
    assert shapes == list(on_gpu_units.SIDES) and not found["ok"]
    assert [each["ok"] for each in found["checks"]] == [False, True]
    assert found["checks"][0]["where"] == "ValueError: no such shape"


def test_float32_is_exact_in_convolutions_too() -> None:
    """Which do not follow the precision of products."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    for name, rounds in (("float32", False), ("bfloat16", False), ("tf32", True)):
        with products(name):
            assert torch.backends.cudnn.allow_tf32 is rounds
            assert torch.get_float32_matmul_precision() == ("high" if rounds else "highest")
    assert before == (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())


def crew_that(body: str, folder: Path, count: int = 1) -> Crew:
    """Processes that run ``body`` with a ``task`` in hand and reply with what it leaves in ``answer``."""
    script = folder / "child.py"
    script.write_text(
        f"import os, sys, time\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\nfrom on_gpu_crew import serve\n"
        f"def work(task):\n    answer = {{'done': task['name']}}\n{body}    return answer\n"
        "serve(int(sys.argv[sys.argv.index('--reply') + 1]), work)\n"
    )
    return Crew([sys.executable, str(script)], count, folder / "log.txt")


def all_of(crew: Crew, names: str, seconds: float = 60.0) -> dict[str, dict | str]:
    """Replies, or why there is none, by task."""
    left, found = list(names), {}
    try:
        while len(found) < len(names):
            for member, _ in crew.idle():
                if left:
                    member.give({"name": left.pop(0)}, seconds)
            for ended in crew.wait(1.0):
                found[ended.task["name"]] = ended.failure or ended.reply
    finally:
        crew.stop()
    return found


def test_a_task_that_kills_its_process_costs_itself_alone(tmp_path: Path) -> None:
    found = all_of(crew_that("    if task['name'] == 'b':\n        os.kill(os.getpid(), 9)\n", tmp_path, 2), "abc")
    assert found == {"a": {"done": "a"}, "b": "its process ended with code -9", "c": {"done": "c"}}


def test_a_task_that_hangs_is_ended(tmp_path: Path) -> None:
    body = "    if task['name'] == 'a':\n        time.sleep(600)\n"
    found = all_of(crew_that(body, tmp_path), "ab", seconds=10.0)
    assert found == {"a": "it hung", "b": {"done": "b"}}


def test_a_process_that_says_stop_is_replaced(tmp_path: Path) -> None:
    body = "    answer |= {'stop': task['name'] == 'a', 'process': os.getpid()}\n    print('noise' * 10000)\n"
    found = all_of(crew_that(body, tmp_path), "abc")
    numbers = [found[name]["process"] for name in "abc"]
    assert numbers[0] != numbers[1] == numbers[2]


def test_a_piece_that_costs_its_process_the_context_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the piece itself made of it: here it says that all is well."""
    unit = on_gpu_units.Unit("a", "checks", 5.0, lambda *_: {"ok": True})
    monkeypatch.setattr(on_gpu, "_lost_context", lambda device: "CUDA error: an illegal memory access")
    reply = on_gpu._work({"do": "piece", "unit": "a", "seconds": 1.0}, {"a": unit}, "cuda", False)
    assert reply["stop"] and not reply["found"]["ok"]
    assert "illegal memory access" in reply["found"]["lost_context"]


@pytest.mark.slow
def test_what_was_done_is_there_when_the_command_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "on_gpu.py"), "--dry-run", "--jobs", "1", "-o", str(tmp_path)]
    process = subprocess.Popen([*command, "--only", "correct/stability_loss"], stdout=subprocess.DEVNULL)
    try:
        record = tmp_path / "units.jsonl"
        for _ in range(1200):
            if record.exists() and '"unit": "correct/' in record.read_text():
                break
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert any(name.startswith("correct/stability_loss") for name in lines_of(tmp_path))


@pytest.mark.slow
def test_a_whole_dry_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert dry(tmp_path, "", "--minutes", "60") == 0
    count = len([unit for unit in on_gpu_units.units() if unit.stage != "search"])
    said = capfd.readouterr().out
    assert f"{count} of {count} pieces in" in said and "failed: 0" in said
    last = said.splitlines()[said.splitlines().index("failed: 0") - 1 :]
    assert len(last) <= 40 and max(map(len, last)) <= 120
