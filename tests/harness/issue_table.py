"""The instructions that a training step issues on a card, kernel by kernel.

``python -m tests.harness.issue_table [--targets sm_80,sm_90] [--write]`` records the launches of a step of the network
at 257 x 257 pixels with C = K = 100 and one block a branch, compiles each as on that card, counts
(:mod:`tests.harness.issue`), and prints, or writes ``benchmarks/issued.csv``. A multiprocessor issues four
instructions a cycle; how long one waits for another, for memory or for a pipe that is taken, is not in it. No card has
run anything.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from msformer_fast.benchmarks.cards import CARDS
from msformer_fast.benchmarks.compiler_reports import ISSUED, ISSUED_FILE
from msformer_fast.benchmarks.ledger import place_in_step
from msformer_fast.benchmarks.precision import products as rounded
from msformer_fast.benchmarks.traffic import Launch
from tests.harness.aot import Case, build, refuse_interpreter, said_of
from tests.harness.issue.control_flow import ControlFlow
from tests.harness.issue.machine_code import MachineCode

FIELDS = ("target", "products", "op", "branch", "part", "kernel", "launches", "million_instructions")

#: Programs of a launch that are followed; the others are taken to be like them.
FOLLOWED = 12

#: Kinds of products of a step; bfloat16 is under autocast.
PRODUCTS = ("float32", "tf32", "bfloat16")

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.bool: "*i1",
}


class Job(NamedTuple):
    """Launches of one compilation.

    Attributes:
        module, kernel: where it stands, and its name.
        target: the card's architecture.
        signature, constexprs, options: as of :class:`tests.harness.aot.Case`.
        launches: of each the grid, integers in the order of the compiled kernel's parameters, and where in a step it
            is made: op, branch, part.
    """

    module: str
    kernel: str
    target: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, int]
    launches: list[tuple[tuple[int, ...], tuple[int, ...], tuple[str, str, str]]]


def jobs_of(target: str, products: str) -> list[Job]:
    """The compilations of a step, each with its launches."""
    from msformer_fast.benchmarks.traffic.recorded import recorded_launches
    from msformer_fast.benchmarks.training_step import training_step

    multiprocessors = next(card.multiprocessors for card in CARDS.values() if card.target == target)
    side, channels, patch = ISSUED
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=products == "bfloat16")
    with rounded(products), autocast, recorded_launches(multiprocessors, target) as launches:
        training_step("triton", side, channels, channels, depth=1, patch=patch)()
    jobs: dict[str, Job] = {}
    for launch in launches:
        job = _job(launch, target, place_in_step(launch, side, channels))
        key = repr(job[:-1])
        jobs.setdefault(key, job._replace(launches=[])).launches.extend(job.launches)
    return list(jobs.values())


def _job(launch: Launch, target: str, place: tuple[str, str, str]) -> Job:
    """A launch as Triton specialises it: integers that are 1 are constants, multiples of 16 are known to be so."""
    function, given = launch.function, launch.arguments
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    numbers = []
    for parameter in function.params:
        name, value = parameter.name, given.get(parameter.name, parameter.default)
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and type(value) is int and value == 1):
            constexprs[name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            wide = "i32" if -(2**31) <= value < 2**31 else "i64"
            signature[name] = f"{wide}:16" if specialised and value % 16 == 0 else wide
        numbers.append(value if isinstance(value, int) else 0)
    options = {name: value for name, value in given.items() if name not in function.arg_names}
    kernel = function.fn
    launches = [(launch.grid, (*numbers,), place)]
    return Job(kernel.__module__, kernel.__name__, target, signature, constexprs, options, launches)


def instructions_of(job: Job) -> list[float]:
    """Instructions that all warps of each of its launches issue."""
    case = Case(job.kernel, getattr(importlib.import_module(job.module), job.kernel), *job[3:6])
    compiled = build(case, job.target)
    flow, code = ControlFlow(compiled.asm["ptx"]), MachineCode(said_of(compiled.asm["cubin"], "nvdisasm", "-gi", "-c"))
    warps = compiled.metadata.num_warps
    return [warps * _of_a_launch(flow, code, grid, numbers) for grid, numbers, _ in job.launches]


def _of_a_launch(flow: ControlFlow, code: MachineCode, grid: Sequence[int], numbers: Sequence[int]) -> float:
    columns, rows, depth = (*grid, 1, 1)[:3]
    programs = columns * rows * depth
    chosen = sorted({index * programs // min(programs, FOLLOWED) for index in range(min(programs, FOLLOWED))})
    parameters = (*numbers, 0, 0, 0)  # Triton's own scratch memories come last
    issued = 0.0
    for index in chosen:
        place = index % columns, index // columns % rows, index // (columns * rows)
        issued += code.issued(flow.executed(parameters, place, (columns, rows, depth)))
    return issued * programs / len(chosen)


def _counts(job: Job) -> list[float] | str:
    try:
        return instructions_of(job)
    except Exception as error:  # told beside the others' figures
        return f"{type(error).__name__}: {error}"


def rows_of(
    targets: Sequence[str], products: Sequence[str], processes: int, kernels: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for every kernel of a step, or of these names, on every card and in every kind of products."""
    jobs = [(each, job) for target in targets for each in products for job in jobs_of(target, each)]
    jobs = [(each, job) for each, job in jobs if not kernels or job.kernel in kernels]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        counts = pool.map(_counts, [job for _, job in jobs], chunksize=1)
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for (each, job), found in zip(jobs, counts, strict=True):
        if isinstance(found, str):
            sys.exit(f"{job.kernel} on {job.target}, {each}: {found}")
        for (_, _, place), count in zip(job.launches, found, strict=True):
            key = job.target, each, *place, f"{job.module.rpartition('.')[2]}.{job.kernel}"
            row = rows.setdefault(key, dict(zip(FIELDS, (*key, 0, 0.0), strict=True)))
            row["launches"] += 1
            row["million_instructions"] += count / 1e6
    return [row | {"million_instructions": round(row["million_instructions"], 3)} for row in rows.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="sm_80,sm_90")
    parser.add_argument("--products", default=",".join(PRODUCTS))
    parser.add_argument("--kernels", help="names of those to count; all by default")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="also the rows")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    refuse_interpreter()
    kernels = arguments.kernels.split(",") if arguments.kernels else ()
    if arguments.write and kernels:
        parser.error("--write takes all kernels")
    rows = rows_of(arguments.targets.split(","), arguments.products.split(","), arguments.processes, kernels)
    for row in rows:
        print(*(row[name] for name in FIELDS))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows), encoding="utf-8")
    if arguments.write:
        import triton

        side, channels, _ = ISSUED
        with open(ISSUED_FILE, "w", newline="", encoding="utf-8") as file:
            file.write(f"# triton {triton.__version__}; {side} x {side} pixels, C = K = {channels}\n")
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
