"""Everything worth doing in a few minutes on a GPU, the most valuable first.

    python benchmarks/on_gpu.py checks -o DIR     # four minutes: is everything right?
    python benchmarks/on_gpu.py timing -o DIR     # six minutes: how fast, and what would be faster?

Runs from a bare checkout, nothing installed but torch, triton, einops, numpy, scipy (pytest and matplotlib where they
are). First every kernel that the pieces need is compiled, side by side on all cores, into Triton's own cache; a piece
begins as soon as its kernels are there. ``checks``: every op, forward and backward, against float64, then parity with
the authors' recorded run, CUDA graphs, the tests that need a GPU. ``timing``: the step and an image with and without
graphs, each op against its rivals, launch settings that were prepared for this card. Inductor is left out but for one
piece. ``search`` looks for other launch settings, for who has half an hour.

Each piece is a line of ``DIR/units.jsonl`` when it is done, so what was done is kept however the command ends; the
same command goes on where the last one stopped. ``--from FILE`` brings an earlier ``units.jsonl``: its lines count
where code, card and libraries are the same. A piece that crashes or hangs costs itself alone. ``results.json`` has the
rows of ``msformer-fast bench``, ``report.html`` shows them, ``summary.txt`` is what is printed last.

``--dry-run`` does all of it on a CPU at tiny sizes, kernels in Triton's interpreter: a test of this program, no figure.
``--rehearse sm_90`` only compiles, for a card that is not here.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msformer_fast.benchmarks.on_gpu_plan import Plan
    from msformer_fast.benchmarks.on_gpu_record import Record
    from msformer_fast.benchmarks.on_gpu_units import Unit

ROOT = Path(__file__).resolve().parent.parent

#: Seconds before the end in which no piece begins.
SPARE = 8.0

#: A process that is not done with a task after this many seconds, and this many times what it was to take, hangs.
PATIENCE, TIMES = 90.0, 4.0


def find_package() -> None:
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
    find_package()
    if arguments.reply is not None:
        return _serve(arguments)
    return _drive(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("stage", nargs="?", choices=("checks", "timing", "search", "all"), default="all", help="(%(default)s)")
    add("-o", "--output", default="on-gpu", metavar="DIR", help="folder (%(default)s)")
    add("--from", dest="earlier", metavar="FILE", help="units.jsonl of an earlier call")
    add("--minutes", type=float, help="for everything (checks 3.8, timing 5.8, all 9)")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s); timed pieces run one at a time")
    add("--only", default="", help="pieces whose name begins so; several with commas")
    add("--dry-run", action="store_true", help="on a CPU, at tiny sizes: tests this program")
    add("--rehearse", metavar="TARGET", help="only compile, for this architecture, without a card")
    add("--list", action="store_true", help="name the pieces and do nothing")
    add("--reply", type=int, help=argparse.SUPPRESS)  # of a child: where its replies go
    return parser


def _drive(arguments: argparse.Namespace) -> int:
    import torch

    from msformer_fast.benchmarks.on_gpu_plan import Plan
    from msformer_fast.benchmarks.on_gpu_record import Record, here
    from msformer_fast.benchmarks.on_gpu_units import STAGES, units
    from msformer_fast.benchmarks.records import environment
    from msformer_fast.errors import InputError
    from msformer_fast.files import check_output_folder

    began = time.time()
    stages = ["checks", "timing"] if arguments.stage == "all" else [arguments.stage]
    begins = tuple(arguments.only.split(","))
    chosen = [unit for unit in units() if unit.stage in stages and unit.name.startswith(begins)]
    if arguments.list:
        print("\n".join(f"{unit.name:<50} about {unit.seconds:.0f} s" for unit in chosen))
        return 0
    dry, rehearsal = arguments.dry_run, arguments.rehearse is not None
    if not dry and not rehearsal and not torch.cuda.is_available():
        print("on_gpu: error: this PyTorch sees no GPU; --dry-run tests the program without one", file=sys.stderr)
        return 2
    minutes = arguments.minutes if arguments.minutes is not None else sum(STAGES[stage] for stage in stages)
    end = began + 60 * minutes
    try:
        folder = check_output_folder(arguments.output)
    except InputError as error:
        print(f"on_gpu: error: {error}", file=sys.stderr)
        return 2
    if arguments.earlier and not Path(arguments.earlier).exists():
        print(f"{arguments.earlier}: not there; nothing is taken from it", flush=True)
    record = Record(folder, here(ROOT, dry), Path(arguments.earlier) if arguments.earlier else None)
    if not rehearsal:
        facts = environment("cpu" if dry else "cuda") | {"dry_run": dry, "code": record.here.code}
        record.add("environment", {"ok": True, "facts": facts})
    open_ = chosen if rehearsal else [unit for unit in chosen if not record.done(unit.name)]
    print(f"{record.here.card or 'no card'}: {len(open_)} of {len(chosen)} pieces to do", flush=True)
    plan = Plan(open_, compiles=not dry, pieces=max(1, arguments.jobs // 2), only_compile=rehearsal)
    _run(arguments, plan, record, end)
    from msformer_fast.benchmarks.on_gpu_record import write_pages
    from msformer_fast.benchmarks.on_gpu_summary import summary
    from msformer_fast.files import write_text

    if not rehearsal:
        write_pages(folder, record.units())
    lines = summary(record, [unit.name for unit in chosen], plan, time.time() - began, arguments.jobs)
    write_text(folder / "summary.txt", "\n".join(lines) + "\n")
    print("\n".join(lines))
    failed = [name for name in (unit.name for unit in chosen) if not record.units().get(name, {"ok": True})["ok"]]
    return 1 if failed or plan.broken else 0


def _run(arguments: argparse.Namespace, plan: Plan, record: Record, end: float) -> None:
    """Give tasks to processes until nothing is left to do, or no time."""
    from msformer_fast.benchmarks.on_gpu_crew import Crew

    if plan.finished or time.time() > end - SPARE:
        return
    command = [sys.executable, str(Path(__file__).resolve())]
    command += ["--dry-run"] * arguments.dry_run
    command += ["--rehearse", arguments.rehearse] if arguments.rehearse else []
    seconds = {unit.name: unit.seconds for unit in plan.units}
    os.environ.setdefault("OMP_NUM_THREADS", "2")  # of the processes: there is one for every core
    crew, began = Crew(command, arguments.jobs, record.folder / "log.txt"), time.time()
    try:
        while not plan.finished and time.time() < end:
            if time.time() < end - SPARE:
                for member, timer in crew.idle(alone=plan.times):
                    if (task := plan.next(timer)) is None:
                        continue
                    if task["do"] == "piece":
                        task["seconds"] = min(seconds[task["unit"]], max(1.0, end - SPARE - time.time()))
                    member.give(task, PATIENCE + TIMES * seconds.get(task.get("unit", ""), 20.0))
            elif not plan.pieces_running:
                break
            for ended in crew.wait(min(1.0, max(0.0, end - time.time()))):
                plan.ended(*ended)
                if ended.task["do"] == "piece":
                    _note(record, ended.task["unit"], ended.reply, ended.failure)
                elif not plan.kernels_open and plan.compile_seconds == 0.0:
                    plan.compile_seconds = time.time() - began
                    print(f"all kernels compiled after {plan.compile_seconds:.0f} s", flush=True)
    finally:
        crew.stop()
        plan.compile_seconds = plan.compile_seconds or time.time() - began


def _note(record: Record, name: str, reply: dict[str, Any] | None, failure: str) -> None:
    """Write down a piece that is over, and say so in a line."""
    from msformer_fast.benchmarks.on_gpu_summary import failures

    found = {"ok": False, "crashed": failure} if reply is None else reply["found"]
    record.add(name, found)
    why = next(iter(failures(name, found)), "")
    verdict = f"skipped, {found['skipped']}" if "skipped" in found else "ok" if found["ok"] else f"FAILED {why}"
    print(f"{name}: {verdict[:200]} ({found.get('took', 0):.0f} s)", flush=True)


def _serve(arguments: argparse.Namespace) -> int:
    """A child: tasks from the standard input, one after the other."""
    import contextlib

    from msformer_fast.benchmarks.on_gpu_crew import serve
    from msformer_fast.benchmarks.on_gpu_units import units

    known = {unit.name: unit for unit in units()}
    device = "cpu" if arguments.dry_run or arguments.rehearse else "cuda"
    with contextlib.ExitStack() as stack:
        if arguments.rehearse:
            from msformer_fast.benchmarks.precompile import as_on

            stack.enter_context(as_on(arguments.rehearse))
        serve(arguments.reply, lambda task: _work(task, known, device, arguments.dry_run))
    return 0


def _work(task: dict[str, Any], known: dict[str, Unit], device: str, dry: bool) -> dict[str, Any]:
    """One task; what is replied."""
    from msformer_fast.benchmarks.precompile import compile_spec, recording
    from msformer_fast.files import plain

    started = time.time()
    if task["do"] == "compile":
        try:
            return {"seconds": compile_spec(task)}
        except Exception as error:
            return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    unit = known[task["unit"]]
    _tidy(device)
    if task["do"] == "list":
        kernels: dict[str, Any] = {}
        try:
            with recording(kernels):
                assert unit.launches is not None
                unit.launches(device)
        except Exception as error:
            traceback.print_exc()
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return {"kernels": list(kernels.values()), "error": text}
        finally:
            _tidy(device)
        return {"kernels": list(kernels.values())}
    try:
        found = unit.run(device, dry, task["seconds"])
    except Exception:
        found = {"ok": False, "error": traceback.format_exc()[-4000:]}
    lost = _lost_context(device)
    if lost is not None:
        found |= {"ok": False, "lost_context": lost}
    return plain({"found": found | {"took": time.time() - started}, "stop": lost is not None})


def _tidy(device: str) -> None:
    """Give back what an earlier task held: other processes share the card."""
    if device == "cpu":
        return
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()


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


if __name__ == "__main__":
    sys.exit(main())
