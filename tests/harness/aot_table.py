"""The table of what the compilers say of every kernel, in every configuration of its launch table, for every card.

``python -m tests.harness.aot_table OP... [--targets sm_90,gfx942] [--small] [--write]`` compiles the cases of
``tests/aot/OP.py`` and compares them with ``benchmarks/compiled/OP.csv``, or writes that file. A case that does not
compile, spills, or needs more shared memory than a block may have is an error whatever the file says. Figures are
compared only under the version of Triton that made the file.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import itertools
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from tests.harness.aot import TARGETS, refuse_interpreter

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "compiled"
FIELDS = ("case", "target", "registers", "shared_bytes", "warps", "occupancy", "tensor_core", "memory")

#: Registers may grow by this factor before the gate fails, where Triton's version is that of the table.
GROWTH = 1.25


def _compile(job: tuple[str, int, str, bool]) -> dict[str, Any]:
    from tests.harness.aot import compile_case

    op, index, target, small = job
    report = compile_case(_cases(op, target, small)[index], target)
    return dataclasses.asdict(report) | {"ok": report.ok}


def _cases(op: str, target: str, small: bool) -> list[Any]:
    module = importlib.import_module(f"tests.aot.{op}")
    return module.cases(target, small)  # type: ignore[no-any-return]


def compile_op(op: str, targets: list[str], small: bool, processes: int) -> list[dict[str, Any]]:
    """Reports of every case of an op on every target."""
    jobs = [(op, index, target, small) for target in targets for index in range(len(_cases(op, target, small)))]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.map(_compile, jobs, chunksize=4)


def read_table(op: str) -> tuple[str, dict[tuple[str, str], dict[str, str]]]:
    """Triton's version and the rows of the committed table, by case and target."""
    path = FOLDER / f"{op}.csv"
    if not path.exists():
        return "", {}
    with open(path, newline="", encoding="utf-8") as file:
        version = file.readline().removeprefix("# triton ").strip()
        return version, {(row["case"], row["target"]): row for row in csv.DictReader(file)}


def compare(op: str, reports: list[dict[str, Any]]) -> list[str]:
    """What is wrong: failures, spills, cases that the table lacks, registers that grew."""
    import triton

    version, table = read_table(op)
    wrong = []
    for report in reports:
        name = f"{op}: {report['case']} on {report['target']}"
        row = table.get((report["case"], report["target"]))
        if report["error"]:
            wrong.append(f"{name}: {report['error']}")
        elif report["spill_bytes"]:
            wrong.append(f"{name}: spills {report['spill_bytes']} bytes")
        elif row is None:
            wrong.append(f"{name}: not in the table; write it with --write and look at the difference")
        elif version == triton.__version__ and report["registers"] > GROWTH * int(row["registers"]):
            wrong.append(f"{name}: {report['registers']} registers, the table has {row['registers']}")
    return wrong


def write_table(op: str, reports: list[dict[str, Any]]) -> None:
    """The rows of these reports, in place of those of the same case and card; rows of other cards stay."""
    import triton

    targets = {report["target"] for report in reports}
    others = [row for (_, target), row in read_table(op)[1].items() if target not in targets]
    reports = sorted([*others, *reports], key=lambda row: TARGETS.index(row["target"]))
    with open(FOLDER / f"{op}.csv", "w", newline="", encoding="utf-8") as file:
        file.write(f"# triton {triton.__version__}\n")
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(reports)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="+")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--small", action="store_true", help="the cases at the paper's widths only")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="also all reports, with their op")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    refuse_interpreter()
    wrong, everything = [], []
    for op in arguments.ops:
        reports = compile_op(op, arguments.targets.split(","), arguments.small, arguments.processes)
        if arguments.write:
            write_table(op, reports)
        wrong += compare(op, reports)
        everything += [{"op": op, **report} for report in reports]
        for case, rows in itertools.groupby(sorted(reports, key=lambda r: r["case"]), key=lambda r: r["case"]):
            figures = "  ".join(f"{r['target']} {r['registers']} ({r['occupancy']})" for r in rows)
            print(f"{op}: {case}: {figures}")
        print(f"{op}: {len(reports)} compiled, {sum(not r['ok'] for r in reports)} failed")
    print(*wrong, sep="\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(everything), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
