"""Everything worth doing in a few minutes on a GPU, in one command, the most valuable first.

    python benchmarks/on_gpu.py [-o DIR] [--minutes 9]

Runs from a bare checkout, nothing installed but torch, triton, einops, numpy, scipy (pytest and matplotlib where they
are). Order: parity with the authors' recorded run, every kernel against float64 on the real card, a whole step, a whole
image, each op against its rivals, tests that need a GPU, and a search for faster launch settings. Each piece is written
when it is done (``DIR/units``); the same command goes on where the last one stopped. A piece that crashes or hangs
takes its process with it, not the others: it is written down, and a fresh process goes on. ``DIR/results.json`` has
the rows of ``msformer-fast bench``, ``DIR/report.html`` shows them, ``DIR/checks.json`` and ``DIR/tuned.json`` hold
the rest.

``--dry-run`` does all of it on a CPU at tiny sizes, kernels in Triton's interpreter: a test of this program, no figure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msformer_fast.benchmarks.on_gpu_units import Unit

ROOT = Path(__file__).resolve().parent.parent

#: Seconds before the end in which no piece begins.
SPARE = 15.0

#: A child that finishes no piece for this many seconds, and this many times what the piece was to take, hangs.
PATIENCE, TIMES = 60.0, 4.0

#: How a child ends when a piece, already written down, has cost it its CUDA context.
LOST_CONTEXT = 3


def _find_package() -> None:
    """Make a bare checkout importable: its folders stand where an installation would have put them."""
    try:
        import msformer_fast.kernels
    except ImportError:
        sys.path.insert(0, str(ROOT))
        import msformer_fast

        msformer_fast.__path__.append(str(ROOT))


def main(argv: Sequence[str] | None = None) -> int:
    """0: everything that ran is well; 1: something is not; 2: it cannot be done here."""
    arguments = _parser().parse_args(argv)
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    _find_package()
    if arguments.units:
        return _child(arguments)
    return _drive(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-o", "--output", default="on-gpu", metavar="DIR", help="folder (%(default)s)")
    add("--minutes", type=float, default=9.0, help="for everything (%(default)s)")
    add("--jobs", type=int, default=4, help="processes that check side by side; timed pieces run alone (%(default)s)")
    add("--only", default="", help="pieces whose name begins so")
    add("--dry-run", action="store_true", help="on a CPU, at tiny sizes: tests this program")
    add("--list", action="store_true", help="name the pieces and do nothing")
    add("--units", help=argparse.SUPPRESS)  # of a child: names, with commas
    add("--until", type=float, help=argparse.SUPPRESS)
    return parser


def _drive(arguments: argparse.Namespace) -> int:
    import torch

    from msformer_fast.benchmarks.on_gpu_units import units
    from msformer_fast.benchmarks.records import environment
    from msformer_fast.errors import InputError
    from msformer_fast.files import check_output_folder, write_json

    chosen = [unit for unit in units() if unit.name.startswith(arguments.only)]
    if arguments.list:
        print("\n".join(f"{unit.name:<50} about {unit.seconds:.0f} s" for unit in chosen))
        return 0
    if not arguments.dry_run and not torch.cuda.is_available():
        print("on_gpu: error: this PyTorch sees no GPU; --dry-run tests the program without one", file=sys.stderr)
        return 2
    end = time.time() + 60 * arguments.minutes
    device = "cpu" if arguments.dry_run else "cuda"
    try:
        folder = check_output_folder(arguments.output)
        facts = environment(device) | {"dry_run": arguments.dry_run}
        _same_machine(folder / "environment.json", facts)
    except InputError as error:
        print(f"on_gpu: error: {error}", file=sys.stderr)
        return 2
    write_json(folder / "environment.json", facts)
    open_ = [unit for unit in chosen if not _done(folder, unit.name)]
    print(f"{facts.get('card') or 'dry run'}: {len(open_)} of {len(chosen)} pieces to do", flush=True)
    while open_ and time.time() < end - SPARE:
        timed = open_[0].timed
        count = next((i for i, unit in enumerate(open_) if unit.timed != timed), len(open_))
        batch, open_ = open_[:count], open_[count:]
        _run_batch(arguments, folder, batch, 1 if timed else arguments.jobs, end)
        _collect(folder, facts)
    return _summary(folder, [unit.name for unit in chosen])


def _same_machine(path: Path, facts: dict[str, Any]) -> None:
    from msformer_fast.errors import InputError

    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name in ("card", "commit", "dry_run"):
        if before.get(name) != facts.get(name):
            raise InputError(
                f"{path.parent}: holds results of {name} {before.get(name)!r}, this is {facts.get(name)!r}; name "
                "another folder"
            )


def _file(folder: Path, name: str) -> Path:
    return folder / "units" / (name.replace("/", "-") + ".json")


def _done(folder: Path, name: str) -> bool:
    """Finished and well: what failed is tried again by the next command."""
    path = _file(folder, name)
    return path.exists() and bool(json.loads(path.read_text(encoding="utf-8"))["ok"])


def _run_batch(arguments: argparse.Namespace, folder: Path, batch: Sequence[Unit], jobs: int, end: float) -> None:
    """The pieces in children, each of which takes a share; a crash or a hang costs the piece in hand, not the rest."""
    from msformer_fast.files import write_json

    (folder / "units").mkdir(exist_ok=True)
    began = time.time()

    def left_of(share: Sequence[Unit]) -> list[Unit]:
        return [unit for unit in share if not _written_since(_file(folder, unit.name), began)]

    running = [_Child(arguments, folder, share, end) for share in (batch[i::jobs] for i in range(jobs)) if share]
    while running:
        time.sleep(0.2)
        for child in list(running):
            late, hangs = time.time() > end, child.hangs(left_of(child.share))
            if child.process.poll() is None and not late and not hangs:
                continue
            running.remove(child)
            child.process.kill()
            code, left = child.process.wait(), left_of(child.share)
            if late or not left or code == 0:
                continue
            if code != LOST_CONTEXT:
                reason = "it hung" if hangs else f"its process ended with code {code}"
                lost = {"unit": left[0].name, "ok": False, "crashed": reason, "time": time.time()}
                write_json(_file(folder, left[0].name), lost)
                print(f"{left[0].name}: FAILED, {reason}", flush=True)
                left = left[1:]
            if left:
                running.append(_Child(arguments, folder, left, end))


def _written_since(path: Path, moment: float) -> bool:
    return path.exists() and bool(json.loads(path.read_text(encoding="utf-8"))["time"] >= moment)


class _Child:
    """A process that does its share of the pieces."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, share: Sequence[Unit], end: float) -> None:
        self.share = list(share)
        names = ",".join(unit.name for unit in share)
        command = [sys.executable, str(Path(__file__).resolve()), "-o", str(folder), "--units", names]
        dry = ["--dry-run"] if arguments.dry_run else []
        self.process = subprocess.Popen([*command, "--until", str(end), *dry])
        self._left, self._since = len(self.share), time.time()

    def hangs(self, left: Sequence[Unit]) -> bool:
        """Whether the piece in hand takes far too long."""
        if len(left) != self._left:
            self._left, self._since = len(left), time.time()
        return bool(left) and time.time() - self._since > PATIENCE + TIMES * left[0].seconds


def _child(arguments: argparse.Namespace) -> int:
    """Runs the named pieces one after the other, and writes each when it is done."""
    import traceback

    from msformer_fast.benchmarks.on_gpu_units import units
    from msformer_fast.files import write_json

    known = {unit.name: unit for unit in units()}
    folder = Path(arguments.output)
    for name in arguments.units.split(","):
        unit, started = known[name], time.time()
        seconds = min(unit.seconds, arguments.until - SPARE - started)
        if seconds <= 0:
            return 0
        device = "cpu" if arguments.dry_run else "cuda"
        try:
            found = unit.run(device, arguments.dry_run, seconds)
        except Exception:
            found = {"ok": False, "error": traceback.format_exc()[-4000:]}
        lost = _lost_context(device)
        if lost is not None:
            found |= {"ok": False, "lost_context": lost}
        write_json(_file(folder, name), found | {"unit": name, "time": time.time(), "took": time.time() - started})
        last = found.get("lost_context") or found.get("error", "").strip().splitlines()[-1:]
        verdict = f"skipped, {found['skipped']}" if "skipped" in found else "ok" if found["ok"] else f"FAILED {last}"
        print(f"{name}: {verdict} ({time.time() - started:.0f} s)", flush=True)
        if lost is not None:
            return LOST_CONTEXT
    return 0


def _lost_context(device: str) -> str | None:
    """What a kernel has done to the process, after which nothing more can be run in it; None where all is well."""
    if device == "cpu":
        return None
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as failure:
        return " ".join(str(failure).split())[:300]
    return None


def _collect(folder: Path, facts: dict[str, Any]) -> None:
    """One file of rows, one of checks, one of launch settings, and the page, from the pieces that are there."""
    from msformer_fast.benchmarks.records import Refused, Results, Row
    from msformer_fast.benchmarks.report import write_report
    from msformer_fast.files import write_json

    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "units").glob("*.json"))]
    rows = [Row(**row) for unit in found for row in unit.get("rows", ())]
    refused = [Refused(**row) for unit in found for row in unit.get("refused", ())]
    ceilings: dict[str, Any] = {}
    for unit in found:
        if unit.get("ceilings"):
            ceilings["bandwidth"] = max(unit["ceilings"]["bandwidth"], ceilings.get("bandwidth", 0))
            ceilings.setdefault("operations", {}).update(unit["ceilings"]["operations"])
    results = Results(facts | ({"ceilings": ceilings} if ceilings else {}), {"command": "on_gpu"}, rows, refused)
    write_json(folder / "results.json", results.to_json())
    write_json(
        folder / "checks.json", [unit for unit in found if unit["unit"].startswith(("correct", "parity", "tests"))]
    )
    write_json(folder / "tuned.json", [unit["found"] for unit in found if unit.get("found")])
    with contextlib.suppress(ImportError):
        write_report(results, folder / "report.html")


def _summary(folder: Path, names: list[str]) -> int:
    states = {name: json.loads(_file(folder, name).read_text()) for name in names if _file(folder, name).exists()}
    failed = [name for name, state in states.items() if not state["ok"]]
    print(f"{len(states)} of {len(names)} pieces done, {len(failed)} failed; {folder / 'results.json'}")
    for name in failed:
        print(f"  failed: {name}")
    if len(states) < len(names):
        print("the same command goes on with the others")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
