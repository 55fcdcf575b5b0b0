"""What is worth doing in a few minutes on a GPU, in pieces that stand alone, the most valuable first."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msformer_fast.benchmarks import check, tune
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.clock import Ceilings, Clock, measure_ceilings
from msformer_fast.benchmarks.options import OPS
from msformer_fast.benchmarks.records import Results, clocks
from msformer_fast.benchmarks.run import Runner
from msformer_fast.benchmarks.suite import bench_of

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "dim8_img65.npz"

#: Sizes of the checks: no block divides them. Of a dry run, in Triton's interpreter, tiny ones.
SIDES, DRY_SIDE = (67, 130), 10


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        name: also of its file.
        seconds: about what it takes.
        timed: nothing else may run beside it.
        run: (device, dry, seconds) to what is written; "ok" says whether all is well.
    """

    name: str
    seconds: float
    timed: bool
    run: Callable[[str, bool, float], dict[str, Any]]


def units() -> list[Unit]:
    """All of them, in order."""
    found = [Unit("parity", 20, False, _parity)]
    found += [_correct(op, dtype) for dtype in ("float32", "bfloat16") for op in OPS]
    found += [_rows("step", "float32", 40, (257, 513))]
    found += [_rows("image", "float32", 30, (257,))]
    found += [_rows(op, "float32", 12, (257,)) for op in OPS]
    found += [Unit("tests", 60, False, _tests)]
    found += [_correct(op, dtype) for dtype in ("tf32", "float16") for op in OPS]
    found += [_rows(op, "bfloat16", 10, (257,)) for op in OPS]
    found += [_tune(table, part, "float32") for table in tune.TABLES for part in table.parts]
    found += [_rows(op, "float32", 15, (1025,)) for op in OPS]
    found += [_tune(table, part, "bfloat16") for table in tune.TABLES for part in table.parts]
    return found


def _sizes(op: str, side: int, channels: int, dry: bool) -> dict[str, int]:
    """Of a case of an op: its own fixed ones, smaller where everything is."""
    fixed = dict(bench_of(op).sizes)  # type: ignore[attr-defined]
    if dry:
        fixed = {name: min(value, 4) for name, value in fixed.items()}
    return fixed | {"side": side, "channels": channels}


def _correct(op: str, dtype: str) -> Unit:
    def run(device: str, dry: bool, seconds: float) -> dict[str, Any]:
        wide = bench_of(op).paper
        shapes = [(DRY_SIDE, 32)] if dry else [(SIDES[0], wide), (SIDES[1], 64)]
        stored = "float32" if dry or dtype == "tf32" else dtype  # the interpreter knows neither tf32 nor bfloat16
        with _products(dtype):
            found = [_check(op, _sizes(op, *shape, dry), stored, device) for shape in shapes]
        return {"ok": all(each["ok"] for each in found), "checks": found}

    return Unit(f"correct/{op}/{dtype}", 15, False, run)


@contextlib.contextmanager
def _products(dtype: str) -> Iterator[None]:
    """Products of float32 as the name says, inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check(op: str, sizes: dict[str, int], dtype: str, device: str) -> dict[str, Any]:
    """The kernels against float64, beside PyTorch's own error; and two runs against each other, to the bit."""
    bench, case = bench_of(op), Case.of(op, sizes, dtype, device, seed=int.from_bytes(os.urandom(3), "big"))
    truth = bench.truth(case)
    plain, _ = check.error_of(bench.prepare(case, bench.plain).results(), truth)
    subject = bench.prepare(case, "triton")
    first, second = subject.results(), subject.results()
    error, where = check.error_of(first, truth)
    same = all(torch.equal(first[name], second[name]) for name in first)
    limit = check.allowed(dtype, plain)
    return {
        "case": str(case),
        "seed": case.seed,
        "error": error,
        "where": where,
        "allowed": limit,
        "plain_error": plain,
        "same_bits_twice": same,
        "ok": error <= limit and same,
    }


def _rows(name: str, dtype: str, seconds: float, sides: tuple[int, ...]) -> Unit:
    def run(device: str, dry: bool, seconds: float) -> dict[str, Any]:
        bench, clock = bench_of(name), Clock(device)
        wide = bench.paper
        ceilings: Ceilings | None = None if dry else measure_ceilings(clock, [dtype])
        results = Results({}, {})
        budget = seconds / (2 * len(sides) * len(bench.parts))
        only = None if not dry else ["reference", "torch", "sdpa", "triton"]
        runner = Runner(results, clock, ceilings, budget, only, say=lambda _: None, dry=dry)
        for side in (33,) if dry else sides:
            if name in OPS:
                sizes = _sizes(name, side, 32 if dry else wide, dry)
            else:
                sizes = {"side": side, "channels": 8 if dry else wide, "depth": 2, "patch": 8 if dry else 32}
                sizes |= {"iterations": 4 if dry else 30} if name == "image" else {}
            runner.run(bench, Case.of(name, sizes, dtype, device))
        wrong = [each for each in results.refused if each.reason.startswith("wrong")]
        return {
            "ok": bool(results.rows) and not wrong,
            "rows": [dataclasses.asdict(row) for row in results.rows],
            "refused": [dataclasses.asdict(each) for each in results.refused],
            "ceilings": ceilings and ceilings._asdict(),
            "clocks": clocks(),
        }

    size = "-".join(map(str, sides))
    return Unit(f"rows/{name}/{dtype}/{size}", seconds, True, run)


def _tune(table: tune.Table, part: str, dtype: str) -> Unit:
    def run(device: str, dry: bool, seconds: float) -> dict[str, Any]:
        wide = bench_of(table.op).paper
        shape = (DRY_SIDE, 32) if dry else (257, wide)
        case = Case.of(table.op, _sizes(table.op, *shape, dry), "float32" if dry else dtype, device)
        # In the interpreter, which has rows of its own, the first row is measured and nothing is searched.
        found = tune.tune(table, part, case, 0 if dry else seconds, rounds=1 if dry else 11)
        return {"ok": True, "found": found}

    return Unit(f"tune/{table.op}/{part}/{dtype}", 20, True, run)


def _parity(device: str, dry: bool, seconds: float) -> dict[str, Any]:
    """The recorded run of the authors' code, through the kernels."""
    from msformer_fast.parity import compare

    if not GOLDEN.exists():
        return {"ok": True, "skipped": "no recorded run beside this code"}
    backend = "torch" if dry else "triton"
    rows = compare(GOLDEN, backend=backend, dtype=torch.float32, device=device)
    worst = max(rows, key=lambda row: row.error / (row.bound or float("inf")))
    failed = [dataclasses.asdict(row) for row in rows if not row.passed]
    return {"ok": not failed, "quantities": len(rows), "worst": dataclasses.asdict(worst), "failed": failed}


def _tests(device: str, dry: bool, seconds: float) -> dict[str, Any]:
    """The tests that need a GPU."""
    if not (ROOT / "tests" / "conftest.py").exists():
        return {"ok": True, "skipped": "no tests beside this code"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_capture.py"]
    if dry:
        command.append("--collect-only")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 60))
    return {"ok": done.returncode == 0, "output": (done.stdout + done.stderr)[-6000:]}
