"""The command for a few minutes on a GPU, dry: what it does, in which order, and how it survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from msformer_fast.benchmarks import on_gpu, on_gpu_units
from msformer_fast.benchmarks.options import OPS
from msformer_fast.benchmarks.records import read_results
from tests.conftest import ROOT

pytest.importorskip("triton")


def dry(folder: Path, only: str, *more: str) -> int:
    return on_gpu.main(["--dry-run", "-o", str(folder), "--only", only, *more])


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the children."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))  # a dry run sets it


def test_the_most_valuable_comes_first_and_nothing_is_left_out() -> None:
    units = on_gpu_units.units()
    names = [unit.name for unit in units]
    assert len(names) == len(set(names))
    first = {
        kind: next(i for i, name in enumerate(names) if name.startswith(kind))
        for kind in ("parity", "correct/", "rows/step", "rows/image", "rows/clustering", "tune/")
    }
    assert list(first.values()) == sorted(first.values())
    for op in OPS:
        assert {f"correct/{op}/{dtype}" for dtype in ("float32", "bfloat16", "float16", "tf32")} <= set(names)
        assert any(name.startswith(f"rows/{op}/") for name in names)
    assert all(unit.timed for unit in units if unit.name.startswith(("rows/", "tune/"))), "nothing runs beside these"


def test_what_is_checked_before_tuning_fits_nine_minutes() -> None:
    """By the pieces' own estimates, four side by side where nothing is timed."""
    units = on_gpu_units.units()
    before = units[: next(i for i, unit in enumerate(units) if unit.name.startswith("tune/"))]
    assert sum(unit.seconds / (1 if unit.timed else 4) for unit in before) < 9 * 60


def test_a_dry_run_goes_on_where_it_stopped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "on gpu"
    assert dry(folder, "rows/stability_loss", "--minutes", "0") == 0  # the time is up at once
    assert "0 of 3 pieces done" in capfd.readouterr().out
    assert dry(folder, "rows/stability_loss/float32/257") == 0
    assert "1 of 1 pieces done, 0 failed" in capfd.readouterr().out
    results = read_results(folder / "results.json")
    assert {row.label for row in results.rows} == {"dry run"} and results.environment["dry_run"] is True
    assert {row.provider for row in results.rows} == {"reference", "torch"}
    assert (folder / "report.html").exists()

    assert dry(folder, "correct/stability_loss/float32") == 0
    assert "dry run: 1 of 1 pieces to do" in capfd.readouterr().out
    (check,) = json.loads((folder / "checks.json").read_text())
    assert check["ok"] and check["checks"][0]["same_bits_twice"] and check["checks"][0]["error"] < 1e-5
    assert dry(folder, "correct/stability_loss/float32") == 0
    assert "dry run: 0 of 1 pieces to do" in capfd.readouterr().out


def test_another_machine_or_commit_is_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"card": "another card"}))
    assert dry(tmp_path, "parity") == 2
    assert "holds results of card 'another card', this is None; name another folder" in capsys.readouterr().err


def test_it_runs_from_a_bare_checkout(tmp_path: Path) -> None:
    """As where nothing was installed: without the finders of an editable installation."""
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import on_gpu; on_gpu.main(['--list']); "
        "import msformer_fast.benchmarks as b; print(b.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(on_gpu_units.units()) + 1
    assert Path(lines[-1]) == ROOT / "benchmarks" / "__init__.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert on_gpu.main(["-o", str(tmp_path)]) == 2
    assert "--dry-run" in capsys.readouterr().err


class _Arguments:
    dry_run = True
    units = ""
    until = 0.0


def child_that(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> dict[str, dict]:
    """The driver with children that run ``body`` instead; what they have written."""
    script = folder / "child.py"
    script.write_text(
        "import json, os, sys, time\nnames = sys.argv[sys.argv.index('--units') + 1].split(',')\n"
        "folder = sys.argv[sys.argv.index('-o') + 1]\n"
        "def write(name, ok=True):\n"
        "    with open(f'{folder}/units/{name}.json', 'w') as file:\n"
        "        json.dump({'unit': name, 'ok': ok, 'time': time.time()}, file)\n"
        f"for name in names:\n{body}"
    )
    monkeypatch.setattr(on_gpu, "__file__", str(script))
    units = [on_gpu_units.Unit(name, 0.0, True, lambda *_: {}) for name in names]
    on_gpu._run_batch(_Arguments(), folder, units, jobs=1, end=on_gpu.time.time() + 60)  # type: ignore[arg-type]
    return {path.stem: json.loads(path.read_text()) for path in (folder / "units").glob("*.json")}


def test_a_piece_that_kills_its_process_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "    if name == 'b':\n        os.kill(os.getpid(), 9)\n    write(name)\n"
    found = child_that(body, tmp_path, monkeypatch, ["a", "b", "c"])
    assert {name: state["ok"] for name, state in found.items()} == {"a": True, "b": False, "c": True}
    assert found["b"]["crashed"] == "its process ended with code -9"


def test_a_lost_context_was_written_by_the_piece_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"    write(name, name != 'a')\n    if name == 'a':\n        sys.exit({on_gpu.LOST_CONTEXT})\n"
    found = child_that(body, tmp_path, monkeypatch, ["a", "b"])
    assert {name: state["ok"] for name, state in found.items()} == {"a": False, "b": True}


def test_a_child_stops_where_a_kernel_has_cost_it_its_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the piece itself made of it: here it says that all is well."""
    done = []
    units = [
        on_gpu_units.Unit(name, 5.0, True, lambda *_, name=name: done.append(name) or {"ok": True}) for name in "ab"
    ]
    monkeypatch.setattr(on_gpu_units, "units", lambda: units)
    monkeypatch.setattr(on_gpu, "_lost_context", lambda device: "CUDA error: an illegal memory access")
    (tmp_path / "units").mkdir()
    arguments = ["--dry-run", "-o", str(tmp_path), "--units", "a,b", "--until", str(on_gpu.time.time() + 600)]
    assert on_gpu.main(arguments) == on_gpu.LOST_CONTEXT
    found = json.loads((tmp_path / "units" / "a.json").read_text())
    assert done == ["a"] and not found["ok"] and "illegal memory access" in found["lost_context"]
    assert "a: FAILED CUDA error: an illegal memory access" in capsys.readouterr().out


def test_a_piece_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "PATIENCE", 1.0)
    body = "    if name == 'a':\n        time.sleep(600)\n    write(name)\n"
    found = child_that(body, tmp_path, monkeypatch, ["a", "b"])
    assert found["a"]["crashed"] == "it hung" and found["b"]["ok"]


@pytest.mark.slow
def test_a_whole_dry_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert dry(tmp_path, "", "--jobs", "1") == 0
    count = len(on_gpu_units.units())
    assert f"{count} of {count} pieces done, 0 failed" in capfd.readouterr().out
