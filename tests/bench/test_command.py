"""``msformer-fast bench``: what it prints, writes, compares and refuses; the times are made up where they decide."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from msformer_fast.benchmarks import run as runs
from msformer_fast.benchmarks.records import read_results
from msformer_fast.cli import main

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU"),
]

#: Arguments of a run of a second.
SMALL = ["stability_loss", "--sides", "33", "--channels", "32", "--seconds", "0.01", "--threads", "1"]
TWO = ["--providers", "reference", "torch"]


@pytest.fixture
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings in no time."""
    from msformer_fast.benchmarks import command
    from msformer_fast.benchmarks.clock import Ceilings

    monkeypatch.setattr(command, "measure_ceilings", lambda *_: Ceilings(1e10, {"float32": 1e11}))


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the times up: noise of 3 per cent, and how many times slower the last provider is, run by run."""

    def plant(*slower: float) -> None:
        draw, queue = random.Random(1), list(slower)

        def in_turn(clock, calls, *, budget, least, most):
            factor = queue.pop(0) if queue else 1.0
            scales = [1.0] * (len(calls) - 2) + [factor, 0.01]  # the anchor is the last
            return [[scale * draw.lognormvariate(0, 0.03) for _ in range(15)] for scale in scales]

        monkeypatch.setattr(runs, "in_turn", in_turn)

    return plant


@pytest.mark.usefixtures("small_ceilings")
def test_a_run_prints_a_table_and_writes_figures_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SMALL, *TWO, "--seed", "5", "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "no GPU here: the CPU's backends are measured, GPUs predicted" in out
    assert "stability_loss: channels 32, patch 4, side 33, float32" in out
    results = read_results(tmp_path / "out" / "results.json")
    assert len(results.rows) == 6 and results.options["seed"] == 5
    assert results.environment["ceilings"] == {"bandwidth": 1e10, "operations": {"float32": 1e11}}
    for row in results.rows:
        assert f"{1e3 * row.median:.3f}" in out and row.provider in out
    predicted = out[out.index("predicted, not measured") :]
    assert "H100" in predicted and "MI300X" in predicted
    page = (tmp_path / "out" / "report.html").read_text()
    assert "stability_loss" in page and "predicted" in page


@pytest.mark.usefixtures("small_ceilings")
@pytest.mark.parametrize("allocator", ["keep", "system"])
def test_the_allocator_is_set_or_left(allocator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr("msformer_fast.process.keep_freed_memory", lambda: kept.append(1))
    assert main(["bench", *SMALL, *TWO, "-o", str(tmp_path), "--allocator", allocator]) == 0
    assert len(kept) == (allocator == "keep")
    assert read_results(tmp_path / "results.json").options["allocator"] == allocator


@pytest.mark.usefixtures("small_ceilings")
def test_results_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text("mine")
    assert main(["bench", *SMALL, "-o", str(tmp_path)]) == 2
    assert "results.json" in capsys.readouterr().err and (tmp_path / "results.json").read_text() == "mine"
    assert main(["bench", *SMALL, *TWO, "-o", str(tmp_path), "--overwrite"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["rows"]
    assert main(["bench", *SMALL, *TWO, "-o", str(tmp_path), "--overwrite", "--parts", "both"]) == 0
    assert {row.part for row in read_results(tmp_path / "results.json").rows} == {"both"}


@pytest.mark.usefixtures("small_ceilings")
def test_an_earlier_run_is_compared_with(
    tmp_path: Path, times: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Unchanged; slower for good; and slower once, which a second look takes back."""
    base = ["--base", str(tmp_path / "0" / "results.json")]
    times()
    assert main(["bench", *SMALL, *TWO, "-o", str(tmp_path / "0")]) == 0
    assert main(["bench", *SMALL, *TWO, "-o", str(tmp_path / "1"), *base]) == 0
    assert "6 of 6 rows as before, within noise" in capsys.readouterr().out

    times(1.0, 1.5, 1.0, 1.0, 1.5, 1.0)  # forward, backward, both, and once more
    assert main(["bench", *SMALL, *TWO, "-o", str(tmp_path / "2"), *base]) == 1
    out = capsys.readouterr().out
    (slower,) = (line for line in out.splitlines() if line.startswith("slower"))
    assert "stability_loss" in slower and slower.endswith("backward, torch")
    assert "5 of 6 rows as before" in out

    times(1.0, 1.5, 1.0)
    assert main(["bench", *SMALL, *TWO, "-o", str(tmp_path / "3"), *base]) == 0
    assert "6 of 6 rows as before" in capsys.readouterr().out


@pytest.mark.usefixtures("small_ceilings")
def test_a_run_from_another_machine_is_named(
    tmp_path: Path, times: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    times()
    assert main(["bench", *SMALL, *TWO, "-o", str(tmp_path / "0")]) == 0
    path = tmp_path / "0" / "results.json"
    found = json.loads(path.read_text())
    found["environment"]["processor"] = "Some Other Processor"
    path.write_text(json.dumps(found))
    assert main(["bench", *SMALL, *TWO, "-o", str(tmp_path / "1"), "--base", str(path)]) == 0
    assert "another machine (Some Other Processor)" in capsys.readouterr().out


@pytest.mark.usefixtures("small_ceilings")
def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, done = runs.Runner.run, []

    def run(self, bench, case):
        if done:
            raise KeyboardInterrupt
        done.append(case)
        return original(self, bench, case)

    monkeypatch.setattr(runs.Runner, "run", run)
    assert main(["bench", "clustering_loss", *SMALL, *TWO, "-o", str(tmp_path)]) == 130
    assert {row.bench for row in read_results(tmp_path / "results.json").rows} == {"clustering_loss"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "'nothing' is not known; choose from clustering_loss"),
        (["--providers", "cudnn"], "--providers: 'cudnn' is not known; choose from reference, torch"),
        (
            ["mix_ffn", "--providers", "triton"],
            "--providers triton: kernels run on the CPU in Triton's interpreter only",
        ),
        (["--dtypes", "float64"], "--dtypes: 'float64' is not known; choose from float32, bfloat16, float16"),
        (["--device", "cuda"], "--device cuda: this PyTorch sees no GPU; use cpu"),
        (["mix_ffn", "--parts", "step"], "--parts: 'step' is not known; choose from forward, backward, both"),
        (["--sides", "8"], "--sides: 8 is not usable"),
        (["--channels", "70"], "--channels: 70 is not usable"),
        (["--seconds", "0"], "--seconds must be positive"),
        (["--base", "absent.json"], "absent.json: cannot be read as results of a benchmark"),
        (["step", "--dtypes", "bfloat16"], "no case fits these options"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "msformer-fast-bench" / "results.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not JSON", "cannot be read as results of a benchmark"),
        ('{"rows": []}', "its schema must be"),
        ('{"schema": "msformer_fast benchmark 1", "rows": [{"bench": 3}]}', "broken results of a benchmark"),
    ],
)
def test_a_broken_earlier_run_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "base.json"
    path.write_text(text)
    assert main(["bench", *SMALL, "--base", str(path), "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
