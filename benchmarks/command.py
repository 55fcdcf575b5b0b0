"""``msformer-fast bench``: what this machine gains, in a table, a JSON file and a page."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from msformer_fast.benchmarks import compare
from msformer_fast.benchmarks.case import Bench, Case, Wanted, check_names, refuse_device
from msformer_fast.benchmarks.clock import Clock, measure_ceilings
from msformer_fast.benchmarks.options import DTYPES, NAMES, QUICK_SECONDS, SECONDS
from msformer_fast.benchmarks.precision import convolutions_as_products
from msformer_fast.benchmarks.records import Results, clocks, environment, name_of_machine, read_results
from msformer_fast.benchmarks.run import Runner
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.errors import InputError
from msformer_fast.profiling import enable_nvtx


@convolutions_as_products()
def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    from msformer_fast.files import check_output_folder, write_json
    from msformer_fast.outputs import refuse_existing

    device = _device(arguments.device)
    dtypes = check_names(
        "--dtypes", arguments.dtypes or (["float32", "bfloat16"] if device == "cuda" else ["float32"]), DTYPES
    )
    benches = [bench_of(name) for name in arguments.benches or NAMES]
    _check(arguments, benches, device)
    base = read_results(arguments.base) if arguments.base else None
    folder = check_output_folder(arguments.output)
    record, page = folder / "results.json", folder / "report.html"
    if not arguments.overwrite:
        refuse_existing([record, page])

    if arguments.nvtx:
        enable_nvtx()
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    wanted = Wanted(arguments.quick, _tuple(arguments.sides), _tuple(arguments.channels), seed)
    work = [(bench, case) for bench in benches for case in bench.cases(device, dtypes, wanted)]
    if not work:
        raise InputError("bench: no case fits these options; whole steps and images run in float32 alone")
    clock = Clock(device)
    ceilings = measure_ceilings(clock, dtypes)
    facts = environment(device) | {"ceilings": ceilings._asdict()}
    options = {name: value for name, value in vars(arguments).items() if name != "run"} | {"seed": seed}
    results = Results(facts, options)
    seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)
    only = arguments.providers or (None if not arguments.quick else _without_compiled(benches))
    runner = Runner(results, clock, ceilings, seconds, only, arguments.parts)
    _print_machine(facts, device)
    _work(runner, work, lambda: write_json(record, results.to_json()))

    if device == "cuda":
        facts["clocks_after"] = clocks()  # a hot card is slower than it was
    changes = _compare(runner, base, work, arguments.threshold) if base else None
    write_json(record, results.to_json())
    _print(results, changes, device, page, work)
    print(record)
    return 1 if any(change.verdict == "slower" for change in changes or ()) else 0


def _device(asked: str | None) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no GPU; use cpu")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _check(arguments: argparse.Namespace, benches: Sequence[Bench], device: str) -> None:
    known = list(dict.fromkeys(name for bench in benches for name in bench.providers()))
    for name in check_names("--providers", arguments.providers or [], known):
        reason = refuse_device(Case.of("", {}, device=device), name)
        if reason is not None:
            raise InputError(f"--providers {name}: {reason}; without it the table has predictions for GPUs")
    check_names("--parts", arguments.parts or [], dict.fromkeys(part for bench in benches for part in bench.parts))
    for option in ("sides", "channels"):
        for value in getattr(arguments, option) or []:
            least = 33 if option == "sides" else 32
            if value < least or (option == "channels" and value % 32 and value != 100):
                raise InputError(f"--{option}: {value} is not usable; sides from 33, channels 100 or multiples of 32")
    if arguments.seconds is not None and arguments.seconds <= 0:
        raise InputError(f"--seconds must be positive, got {arguments.seconds}")


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return tuple(values) if values else None


def _without_compiled(benches: Sequence[Bench]) -> list[str]:
    return [name for bench in benches for name in bench.providers() if not name.endswith("compiled")]


def _print_machine(facts: dict[str, Any], device: str) -> None:
    rates = ", ".join(f"{value / 1e12:.2f} TFLOP/s {name}" for name, value in facts["ceilings"]["operations"].items())
    speed = facts["ceilings"]["bandwidth"] / 1e9
    print(f"{name_of_machine(facts)}, torch {facts['versions']['torch']}, {facts['threads']} threads: ", end="")
    print(f"copies {speed:.0f} GB/s, products {rates}", flush=True)
    if device == "cpu":
        print("no GPU here: the CPU's backends are measured, GPUs predicted", flush=True)


def _work(runner: Runner, work: Sequence[tuple[Bench, Case]], save: Any) -> None:
    """Every case, saved after each, so that an interrupted run keeps what it has."""
    with tqdm(total=len(work), unit="case", disable=not sys.stderr.isatty(), leave=False) as bar:
        runner.say = bar.write if not bar.disable else (lambda text: print(text, file=sys.stderr, flush=True))
        for bench, case in work:
            bar.set_description(f"{case.bench} {case['side']}")
            runner.run(bench, case)
            save()
            bar.update()


def _compare(
    runner: Runner, base: Results, work: Sequence[tuple[Bench, Case]], threshold: float
) -> list[compare.Change]:
    """What changed since ``base``; a case where something did is measured again before it is called so."""
    here, there = name_of_machine(runner.results.environment), name_of_machine(base.environment)
    if here != there:
        print(f"the earlier run is from another machine ({there}): what differs may be the machine")
    first = compare.compare(runner.results.rows, base.rows, threshold)
    doubtful = {change.now.case for change in first if change.verdict != "same"}
    if not doubtful:
        return first
    again = Results(runner.results.environment, {})
    second = dataclasses.replace(runner, results=again)
    _work(second, [(bench, case) for bench, case in work if case in doubtful], lambda: None)
    return compare.confirmed(first, compare.compare(again.rows, base.rows, threshold))


def _print(
    results: Results,
    changes: Sequence[compare.Change] | None,
    device: str,
    page: Path,
    work: Sequence[tuple[Bench, Case]],
) -> None:
    from msformer_fast.benchmarks import predict, table
    from msformer_fast.benchmarks.report import write_report

    print("\n".join(table.lines(results)))
    predictions = predict.predict(work) if device == "cpu" else []
    if predictions:
        print("\n" + "\n".join(predict.table(predictions)))
    if changes is not None:
        print("\ncompared with the earlier run:\n" + "\n".join(compare.table(changes)))
    write_report(results, page, changes=changes, predictions=predictions)
    print(f"\n{page}")
