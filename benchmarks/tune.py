"""Search for faster rows of the launch tables, one block size, warp count or stage count at a time.

Nothing tunes unasked: ``benchmarks/on_gpu.py`` runs this on a card and writes down what was found, with the line to put
into the table.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msformer_fast.benchmarks.candidate_rows import replaced
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.clock import Clock
from msformer_fast.benchmarks.judge import GAIN, Subject, why_not
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.benchmarks.tune_tables import Table, TableRow, padded_width

Measure = Callable[[TableRow], float]

#: Least and most of what a row holds. Blocks are powers of 2; 0 stands for a whole dimension and stays.
LIMITS = {"block": (8, 256), "warps": (1, 16), "stages": (1, 4)}


@dataclass
class Found:
    """What a search found.

    Attributes:
        before, after: rows; ``before_seconds``, ``after_seconds``: of the half of the op that launches the kernel.
        tried: every row that was measured, with its seconds, infinite where it did not run or was wrong.
        finished: whether time was left to try all neighbours of ``after``.
    """

    before: TableRow
    after: TableRow
    before_seconds: float
    after_seconds: float
    tried: list[tuple[TableRow, float]]
    finished: bool


def neighbours(row: TableRow, columns: tuple[str, ...]) -> list[TableRow]:
    """Rows that differ in one number: half or twice a block or the warps, one stage more or less."""
    found = []
    for index, (value, kind) in enumerate(zip(row, columns, strict=True)):
        least, most = LIMITS[kind]
        others = () if value == 0 else (value - 1, value + 1) if kind == "stages" else (value // 2, value * 2)
        found += [(*row[:index], other, *row[index + 1 :]) for other in others if least <= other <= most]
    return found


def search(start: TableRow, columns: tuple[str, ...], measure: Measure, until: Callable[[], bool]) -> Found:
    """Go to the fastest neighbour for as long as it is faster by :data:`GAIN` and ``until()`` does not say stop.

    Args:
        measure: seconds of a row; infinite where it does not run.
    """
    seen = {start: measure(start)}
    best, finished = start, False
    while not finished and not until():
        for row in neighbours(best, columns):
            if row not in seen:
                if until():
                    break
                seen[row] = measure(row)
        else:
            near = min(neighbours(best, columns), key=lambda row: seen[row], default=best)
            if seen[near] < (1 - GAIN) * seen[best]:
                best = near
            else:
                finished = True
    fastest = min(seen, key=lambda row: seen[row])
    if seen[fastest] < (1 - GAIN) * seen[best]:  # time ran out among the neighbours
        best = fastest
    return Found(start, best, seen[start], seen[best], list(seen.items()), finished)


def tune(table: Table, part: str, case: Case, seconds: float, rounds: int = 11) -> dict[str, Any] | None:
    """Search the rows of one kernel on a case's device, compiling as it goes; ``None`` where it has none there.

    Returns:
        what :class:`Found` holds, with the target, the table's key and the line to paste.
    """
    subject = Subject(table, part, case)
    if subject.base is None:
        return None
    clock, half = Clock(case.device), table.parts[part]
    ready = bench_of(table.op).prepare(case, "triton")
    truth = ready.results()
    stop = time.monotonic() + seconds

    def measure(row: TableRow) -> float:
        with replaced(subject.module.TABLE, subject.keys, row):
            if why_not(ready, truth, case):
                return math.inf
            found = [clock.seconds(ready.parts[half], ready.before[half]) for _ in range(rounds)]
        return statistics.median(found)

    found = search(subject.base, table.columns, measure, lambda: time.monotonic() > stop)
    ready.close()
    width = padded_width(table, case)
    return {
        "op": table.op,
        "part": part,
        "kind": subject.kind,
        "target": subject.target,
        "case": str(case),
        "before": found.before,
        "after": found.after,
        "before_ms": 1e3 * found.before_seconds,
        "after_ms": 1e3 * found.after_seconds,
        "tried": [(row, 1e3 * value if math.isfinite(value) else None) for row, value in found.tried],
        "finished": found.finished,
        "paste": f'kernels/{table.module}.py: {subject.keys[0]}: ("{subject.target}", {width}): {found.after},',
    }
