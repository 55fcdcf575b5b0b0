"""Search for faster rows of the launch tables, one block size, warp count or stage count at a time.

Nothing tunes unasked: ``benchmarks/on_gpu.py`` runs this on a card and writes down what was found, with the line to put
into the table.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from msformer_fast.benchmarks import check
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.clock import Clock
from msformer_fast.benchmarks.suite import bench_of

TableRow = tuple[int, ...]
Measure = Callable[[TableRow], float]

#: A row must be this much faster to take the place of another.
GAIN = 0.03

#: Least and most of what a row holds. Blocks are powers of 2; 0 stands for a whole dimension and stays.
LIMITS = {"block": (8, 256), "warps": (1, 16), "stages": (1, 4)}


@dataclass(frozen=True)
class Table:
    """Where an op keeps its rows, what they hold, and which half of the op launches which of its kernels.

    Attributes:
        op: benchmark that runs the kernels.
        module: of ``msformer_fast.kernels``, with the name ``TABLE``.
        columns: "block", "warps" or "stages" for each number of a row.
        parts: of the table's keys, by "forward" or "backward".
    """

    op: str
    module: str
    columns: tuple[str, ...]
    parts: dict[str, str]


_B, _W, _S = "block", "warps", "stages"
TABLES = (
    Table(
        "mix_ffn",
        "mix_ffn",
        (_B, _B, _B, _B, _W, _S),
        dict(expand="forward", contract="forward", wide="backward", token="backward", product="backward"),
    ),
    Table(
        "efficient_attention",
        "efficient_attention_table",
        (_B, _B, _B, _B, _W),
        dict(context="forward", attend="forward", queries="backward", tokens="backward", keys="backward"),
    ),
    Table(
        "guided_score_map",
        "score_map_table",
        (_B, _B, _B, _W, _S),
        dict(gather="forward", weight_sums="backward", map_gradients="backward"),
    ),
    Table(
        "patch_embedding",
        "patch_embedding",
        (_B, _B, _B, _W, _S),
        dict(embed="forward", weight_grads="backward", logit_grads="backward"),
    ),
    Table(
        "cross_scale_attention",
        "cross_scale_attention_table",
        (_B, _B, _W),
        dict(forward="forward", fused="backward", query="backward", key="backward", bias="backward"),
    ),
    Table(
        "linear_clustering_loss",
        "linear_clustering_loss",
        (_B, _B, _B, _W),
        dict(loss="forward", features="backward", weight="backward"),
    ),
    Table("stability_loss", "stability_loss", (_B, _B, _B, _W, _S), dict(forward="forward", backward="backward")),
)


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


@contextlib.contextmanager
def replaced(table: dict[Any, Any], keys: list[Any], row: TableRow) -> Iterator[None]:
    """Inside, every size on every card has this row for these keys of a launch table."""
    before = {key: table[key] for key in keys}
    table.update({key: {("", 1 << 30): row} for key in keys})
    try:
        yield
    finally:
        table.update(before)


def tune(table: Table, part: str, case: Case, seconds: float, rounds: int = 11) -> dict[str, Any] | None:
    """Search the rows of one kernel on a case's device; ``None`` where this case does not launch it.

    Returns:
        what :class:`Found` holds, with the target, the table's key and the line to paste.
    """
    import torch

    from msformer_fast.kernels.launch import choose, padded, product_kind, target_of

    module = importlib.import_module(f"msformer_fast.kernels.{table.module}")
    kind = product_kind(case.torch_dtype, "ieee")
    keys = [key for key in module.TABLE if key[:2] == (part, kind) and "large" not in key]
    target = target_of(torch.device(case.device))
    width = padded(case["channels"] if table.op != "cross_scale_attention" else 32)
    if not keys:
        return None
    try:
        start = choose(module.TABLE[keys[0]], width, target)
    except ValueError:
        return None  # no row for this card: other kernels do the work there
    bench, clock, half = bench_of(table.op), Clock(case.device), table.parts[part]
    subject = bench.prepare(case, "triton")
    truth = subject.results()
    stop = time.monotonic() + seconds

    def measure(row: TableRow) -> float:
        with replaced(module.TABLE, keys, row):
            try:
                error, _ = check.error_of(subject.results(), truth)
                if error > check.allowed(case.dtype, None):
                    return math.inf
                found = []
                for _ in range(rounds):
                    subject.before[half]()
                    found.append(clock.seconds(subject.parts[half]))
            except Exception as failure:
                if "illegal" in str(failure) or "device-side" in str(failure):
                    raise  # the context is lost: whoever started this goes on in another process
                return math.inf
        return statistics.median(found)

    found = search(start, table.columns, measure, lambda: time.monotonic() > stop)
    subject.close()
    return {
        "op": table.op,
        "part": part,
        "kind": kind,
        "target": target,
        "case": str(case),
        "before": found.before,
        "after": found.after,
        "before_ms": 1e3 * found.before_seconds,
        "after_ms": 1e3 * found.after_seconds,
        "tried": [(row, 1e3 * value if math.isfinite(value) else None) for row, value in found.tried],
        "finished": found.finished,
        "paste": f'kernels/{table.module}.py: {keys[0]}: ("{target}", {width}): {found.after},',
    }
