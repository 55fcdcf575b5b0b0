"""What is worth doing in a few minutes on a GPU, in pieces that stand alone, the most valuable first."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msformer_fast.benchmarks import check
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.clock import Ceilings, Clock, measure_ceilings
from msformer_fast.benchmarks.judge import judge, launch_all
from msformer_fast.benchmarks.options import OPS
from msformer_fast.benchmarks.precision import products
from msformer_fast.benchmarks.records import Results, clocks
from msformer_fast.benchmarks.run import Runner
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.benchmarks.tune import tune
from msformer_fast.benchmarks.tune_tables import TABLES, Table
from msformer_fast.process import cudnn_settings

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "dim8_img65.npz"

#: Sizes of the checks: no block divides them. Of a dry run, in Triton's interpreter, tiny ones.
SIDES, DRY_SIDE = (67, 130), 10

#: Channels beside the paper's; pixels of what is timed.
NARROW, SIDE = 64, 257

#: What a call can be asked for, and what it may take.
STAGES = {"checks": 3.8, "timing": 5.8, "search": 30.0}


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        name: also in the record.
        stage: a name of :data:`STAGES`.
        seconds: about what it takes, kernels compiled.
        run: (device, dry, seconds) to what is written; "ok" says whether all is well.
        launches: (device) to nothing; launches every kernel that ``run`` will, so that they can be compiled before.
        timed: no other piece runs beside it, compilations may: the device's own seconds count.
        quiet: nothing at all runs beside it: the host's seconds count too.
    """

    name: str
    stage: str
    seconds: float
    run: Callable[[str, bool, float], dict[str, Any]]
    launches: Callable[[str], object] | None = None
    timed: bool = False
    quiet: bool = False


def units() -> list[Unit]:
    """All of them, in order."""
    return [*_checks(), *_timing(), *_search()]


def _checks() -> Iterator[Unit]:
    """What may be wrong: kernels first, the exact ones before those that round more."""
    yield from (_correct(op, "float32") for op in OPS)
    yield Unit("parity", "checks", 15, _parity, lambda device: _parity_of(device, "triton", steps=0))
    yield Unit("graphs", "checks", 15, _graphs, lambda device: _launch("step", "float32", device, 129))
    yield from (_correct(op, "bfloat16") for op in OPS)
    yield Unit("tests", "checks", 60, _tests, _launch_tests)
    yield from (_correct(op, dtype) for dtype in ("tf32", "float16") for op in OPS)
    yield from (_correct(op, "float32", narrow=True) for op in OPS)


def _timing() -> Iterator[Unit]:
    """What is fast: a share for each precision, and for tuning, before anything gets a second one."""
    yield _rows("step", "float32", 20, (257, 513), quiet=True)
    yield _rows("image", "float32", 20, (257,), quiet=True)
    yield from (_rows(op, "float32", 5, (257,)) for op in OPS)
    yield from _tunes("float32")
    yield from (_rows(op, "bfloat16", 5, (257,)) for op in OPS)
    yield _rows("step", "tf32", 12, (257,), quiet=True)
    yield from _tunes("bfloat16")
    yield from (_rows(op, dtype, 4, (257,)) for dtype in ("tf32", "float16") for op in OPS)
    yield _rows("step", "float32", 60, (257,), only=("reference", "triton", "compiled"), quiet=True)
    yield from _tunes("tf32")
    yield from (_rows(op, "float32", 8, (1025,)) for op in OPS)
    yield Unit("swin_unetr", "timing", 40, _swin_unetr, _launch_swin_unetr, timed=True)


def _search() -> Iterator[Unit]:
    """For who has more time: neighbours of the rows, compiled as they come."""
    for dtype in ("float32", "bfloat16"):
        yield from (_tune(table, part, dtype, deep=True) for table in TABLES for part in table.parts)


def _tunes(dtype: str) -> Iterator[Unit]:
    yield from (_tune(table, part, dtype) for table in TABLES for part in table.parts)


def _sizes(name: str, side: int, channels: int, dry: bool) -> dict[str, int]:
    """Of a case: its own fixed ones, smaller where everything is."""
    if name in ("step", "image"):
        sizes = {"side": side, "channels": channels, "depth": 2, "patch": 8 if dry else 32}
        return sizes | ({"iterations": 4 if dry else 30} if name == "image" else {})
    fixed = dict(bench_of(name).sizes)  # type: ignore[attr-defined]
    if dry:
        fixed = {name: min(value, 4) for name, value in fixed.items()}
    return fixed | {"side": side, "channels": channels}


def _stored(dtype: str, dry: bool = False) -> str:
    """Of tensors; the interpreter knows neither tf32 nor bfloat16."""
    return "float32" if dry or dtype == "tf32" else dtype


def _launch(name: str, dtype: str, device: str, side: int, channels: int = 0) -> None:
    """Launch every kernel of a case, forward and backward."""
    bench = bench_of(name)
    case = Case.of(name, _sizes(name, side, channels or bench.paper, False), _stored(dtype), device)
    with products(dtype):
        for provider in bench.providers():
            if provider.startswith("triton") and "captured" not in provider:
                subject = bench.prepare(case, provider)
                subject.results()
                subject.close()


def _correct(op: str, dtype: str, narrow: bool = False) -> Unit:
    """Every output and gradient against float64. One width, so that both shapes run the same kernels."""

    def shapes(dry: bool) -> list[tuple[int, int]]:
        wide = NARROW if narrow else bench_of(op).paper
        return [(DRY_SIDE, 32)] if dry else [(side, wide) for side in SIDES]

    def run(device: str, dry: bool, seconds: float) -> dict[str, Any]:
        found = []
        with products(dtype):
            for shape in shapes(dry):
                try:
                    found.append(_check(op, _sizes(op, *shape, dry), _stored(dtype, dry), device))
                except Exception as error:
                    if "CUDA error" in str(error) or "HIP error" in str(error):
                        raise  # the context is lost, and nothing that follows says anything
                    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                    found.append({"case": f"{op}: {shape}, {dtype}", "ok": False, "error": None, "where": text[:300]})
                    found[-1]["trace"] = traceback.format_exc()[-3000:]
        return {"ok": all(each["ok"] for each in found), "checks": found}

    def launches(device: str) -> None:
        for side, channels in shapes(False):
            _launch(op, dtype, device, side, channels)

    return Unit(f"correct/{op}/{dtype}" + f"/{NARROW}" * narrow, "checks", 6, run, launches)


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


#: Of this process, by dtype and kind of products.
_measured: dict[tuple[str, str], Ceilings] = {}


def _ceilings(clock: Clock, stored: str, dtype: str) -> Ceilings:
    """Measured once: a second is a piece's fifth part."""
    if (stored, dtype) not in _measured:
        _measured[stored, dtype] = measure_ceilings(clock, [stored])
    return _measured[stored, dtype]


def _takes_part(name: str, only: tuple[str, ...], dry: bool) -> list[str]:
    """Everyone who is worth a card's time, or those that are named: Inductor compiles for minutes."""
    whole = name not in OPS
    if dry and whole:
        return ["reference", "torch"]
    left_out = ("native", "compiled", "torch" if whole else "torch-lean")
    names = bench_of(name).providers()
    return [each for each in names if each in only or not (only or any(word in each for word in left_out))]


def _rows(name: str, dtype: str, seconds: float, sides: tuple[int, ...], *, only: tuple[str, ...] = (),
          quiet: bool = False) -> Unit:  # fmt: skip
    """Everyone but Inductor against the clock, or those that are named."""

    def run(device: str, dry: bool, seconds: float) -> dict[str, Any]:
        bench, clock, stored = bench_of(name), Clock(device), _stored(dtype, dry)
        results, chosen = Results({}, {}), _takes_part(name, only, dry)
        parts = bench.parts if name in OPS else bench.parts[-1:]
        budget = seconds / (3 * len(sides) * len(parts))
        with products(dtype):
            ceilings = None if dry else _ceilings(clock, stored, dtype)
            runner = Runner(results, clock, ceilings, budget, chosen, parts, say=lambda _: None, dry=dry)
            for side in (33,) if dry else sides:
                channels = bench.paper if not dry else 32 if name in OPS else 8
                runner.run(bench, Case.of(name, _sizes(name, side, channels, dry), stored, device))
        wrong = [each for each in results.refused if each.reason.startswith("wrong")]
        return {
            "ok": bool(results.rows) and not wrong,
            "rows": [dataclasses.asdict(row) for row in results.rows],
            "refused": [dataclasses.asdict(each) for each in results.refused],
            "ceilings": ceilings and ceilings._asdict(),
            "clocks": clocks(),
            "late": clock.late,
        }

    size = "-".join(map(str, sides))
    unit = f"rows/{name}/{dtype}/{size}" + "/compiled" * ("compiled" in only)
    launched = "step" if name == "image" else name
    return Unit(
        unit,
        "timing",
        seconds,
        run,
        # Sizes specialise nothing: a small map has the kernels of a large one.
        lambda device: _launch(launched, dtype, device, min(*sides, SIDE)),
        timed=True,
        quiet=quiet,
    )


def _tune(table: Table, part: str, dtype: str, deep: bool = False) -> Unit:
    wide = bench_of(table.op).paper

    def run(device: str, dry: bool, seconds: float) -> dict[str, Any]:
        shape = (DRY_SIDE, 32) if dry else (257, wide)
        case = Case.of(table.op, _sizes(table.op, *shape, dry), _stored(dtype, dry), device)
        with products(dtype):
            # In the interpreter, which has rows of its own, the first row is measured and nothing is searched.
            if dry:
                found = judge(table, part, case, rounds=1, most=0)
            elif deep:
                found = tune(table, part, case, seconds)
            else:
                found = judge(table, part, case)
        return {"ok": True, "found": found}

    def launches(device: str) -> None:
        with products(dtype):
            case = Case.of(table.op, _sizes(table.op, 257, wide, False), _stored(dtype), device)
            launch_all(table, part, case)

    name = f"{'search' if deep else 'tune'}/{table.op}/{part}/{dtype}"
    return Unit(name, "search" if deep else "timing", 40 if deep else 3, run, None if deep else launches, timed=True)


def _parity(device: str, dry: bool, seconds: float) -> dict[str, Any]:
    """The recorded run of the authors' code, through the kernels."""
    if not GOLDEN.exists():
        return {"ok": True, "skipped": "no recorded run beside this code"}
    rows = _parity_of(device, "torch" if dry else "triton")
    worst = max(rows, key=lambda row: row.error / (row.bound or float("inf")))
    failed = [dataclasses.asdict(row) for row in rows if not row.passed]
    return {"ok": not failed, "quantities": len(rows), "worst": dataclasses.asdict(worst), "failed": failed}


def _parity_of(device: str, backend: str, steps: int | None = None) -> list[Any]:
    from msformer_fast.parity import compare

    with products("float32"):
        return compare(GOLDEN, backend=backend, dtype=torch.float32, device=device, steps=steps)


def _graphs(device: str, dry: bool, seconds: float) -> dict[str, Any]:
    """The loop with and without CUDA graphs, at the paper's widths: the same to the bit."""
    from msformer_fast import MSFormer, self_guide

    width, side, count = (8, 33, 5) if dry else (100, 129, 12)
    image = torch.rand(1, 3, side, side, device=device)
    found = []
    with products("float32"), cudnn_settings(deterministic=True):
        for capture in ("never", "never" if device == "cpu" else "always"):
            model = MSFormer(3, width, width, 2, 8 if dry else 32, seed=1, backend="torch" if dry else "triton")
            guided = self_guide(model.to(device), image, max_iterations=count, min_labels=0, capture=capture)
            losses = [(each.total, each.clustering, each.stability, each.label_count) for each in guided.history]
            found.append((losses, guided.labels.cpu(), [value.cpu() for value in model.state_dict().values()]))
    (losses, labels, states), (late_losses, late_labels, late_states) = found
    same = {
        "losses": losses == late_losses,
        "labels": torch.equal(labels, late_labels),
        "parameters": all(map(torch.equal, states, late_states)),
    }
    return {"ok": all(same.values()) and len(losses) == count, "same": same, "losses": losses, "late": late_losses}


def _swin_unetr(device: str, dry: bool, seconds: float) -> dict[str, Any]:
    """MONAI's network on a volume, plain, with flash attention, and accelerated; where MONAI is installed."""
    if importlib.util.find_spec("monai") is None:
        return {"ok": True, "skipped": "MONAI is not installed"}
    from msformer_fast.benchmarks.swin_unetr import ROUNDING, SIDE, WIDTHS, measured

    found: dict[str, list[dict[str, Any]]] = {}
    for width in (12,) if dry else WIDTHS:
        for training in (False,) if dry else (False, True):
            size, budget, least = ((64, 32, 32), 0.0, 1) if dry else ((SIDE,) * 3, seconds / 4, 5)
            rows = measured(size, width, training, device, budget=budget, least=least)
            found[f"width {width}, {'training' if training else 'inference'}"] = [row._asdict() for row in rows]
    ok = all(row["difference"] < ROUNDING for rows in found.values() for row in rows)
    return {"ok": ok, "rows of Swin UNETR": found}


def _launch_swin_unetr(device: str) -> None:
    if importlib.util.find_spec("monai") is not None:
        from msformer_fast.benchmarks.swin_unetr import WIDTHS, call, networks

        for width in WIDTHS:
            call(networks(width, device, True)["ours"], torch.randn(1, 1, 64, 64, 64, device=device), True)


def _launch_tests(device: str) -> None:
    """Most of what they launch: the networks of ``tests/test_capture.py``."""
    from msformer_fast import MSFormer, self_guiding_losses

    with products("float32"):
        for sizes, image in (((16, 20, 2, 16), (65, 63)), ((6, 20, 1, 4), (33, 35)), ((6, 12, 1, 4), (33, 35))):
            model = MSFormer(3, *sizes, backend="triton").to(device)
            scores = model(torch.rand(1, 3, *image, device=device))
            self_guiding_losses(scores, backend="triton").total.backward()


#: Runs pytest where nothing is installed.
PYTEST = (
    "import sys; sys.path.insert(0, 'benchmarks'); import on_gpu, pytest; on_gpu.find_package(); "
    "sys.exit(pytest.main(sys.argv[1:]))"
)


def _tests(device: str, dry: bool, seconds: float) -> dict[str, Any]:
    """The tests that need a GPU."""
    if not (ROOT / "tests" / "conftest.py").exists():
        return {"ok": True, "skipped": "no tests beside this code"}
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    names = [path.relative_to(ROOT).as_posix() for path in files if path.name != "test_on_gpu.py"]
    command = [sys.executable, "-c", PYTEST, "-q", "-m", "gpu", "-p", "no:cacheprovider", *names]
    if dry:
        command.append("--collect-only")
    environment = {name: value for name, value in os.environ.items() if dry or name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 150), env=environment)
    output = (done.stdout + done.stderr)[-6000:]
    return {"ok": done.returncode == 0 and ("passed" in output or dry), "output": output}
