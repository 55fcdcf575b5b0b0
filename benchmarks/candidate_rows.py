"""Launch settings that only a card can judge, prepared ahead of time: ``candidates/<op>.csv``.

A row of a launch table names blocks, warps and, in some tables, stages. A candidate names another row, or more stages
where the table has none, or more or fewer programs that share the work of a persistent grid. Each was compiled ahead
of time without a spill (``python -m tests.bench.candidate_table`` writes the files); the tuner measures those with the
largest predicted gain first.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

FOLDER = Path(__file__).resolve().parent / "candidates"

FIELDS = (
    *("part", "kind", "name", "row", "stages", "grid", "gain", "registers", "shared_bytes", "warps", "resident_warps"),
    *("spill_bytes", "versions"),
)

TableRow = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """One alternative for one kernel of an op.

    Attributes:
        part, kind: key of the launch table: the kernel, and the kind of its products.
        name: what is different, in words.
        row: of the launch table.
        stages: where the table has no column for them and these are not its own; else 0.
        grid: programs of a persistent grid, in times the launcher's own number.
        gain: predicted, the present row's time over this one's; see the script that writes the file.
        registers, shared_bytes, warps, resident_warps, spill_bytes: what the compiler says on sm_90; of a thread, of a
            block, of a block, of a multiprocessor, of a thread.
        versions: of Triton under which it compiles without a spill.
    """

    part: str
    kind: str
    name: str
    row: TableRow
    stages: int
    grid: float
    gain: float
    registers: int
    shared_bytes: int
    warps: int
    resident_warps: int
    spill_bytes: int
    versions: tuple[str, ...]

    @property
    def text(self) -> str:
        """Short, and different for every candidate of a part and kind."""
        more = (f", {self.stages} stages" if self.stages else "") + (
            f", grid x {self.grid:g}" if self.grid != 1 else ""
        )
        return str(self.row) + more


@functools.cache
def candidates_of(op: str) -> tuple[Candidate, ...]:
    """Those of an op, the largest predicted gain first; none where there is no file."""
    path = FOLDER / f"{op}.csv"
    if not path.exists():
        return ()
    found = []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            numbers = {n: int(row[n]) for n in (*FIELDS[7:12], "stages")}
            found.append(
                Candidate(
                    part=row["part"],
                    kind=row["kind"],
                    name=row["name"],
                    row=tuple(map(int, row["row"].split())),
                    grid=float(row["grid"]),
                    gain=float(row["gain"]),
                    versions=tuple(row["versions"].split()),
                    **numbers,
                )
            )
    return tuple(sorted(found, key=lambda each: -each.gain))


@contextlib.contextmanager
def replaced(table: dict[Any, Any], keys: list[Any], row: TableRow) -> Iterator[None]:
    """Inside, every size on every card has this row for these keys of a launch table."""
    before = {key: table[key] for key in keys}
    table.update({key: {("", 1 << 30): row} for key in keys})
    try:
        yield
    finally:
        table.update(before)


@contextlib.contextmanager
def staged(kernel: Any, stages: int) -> Iterator[None]:
    """Inside, every launch of a kernel takes so many stages, whatever its launcher says."""
    run = kernel.run

    def with_stages(*args: Any, **options: Any) -> Any:
        return run(*args, **{**options, "num_stages": stages})

    with mock.patch.object(kernel, "run", with_stages):
        yield


@contextlib.contextmanager
def scaled_grids(module: Any, factor: float) -> Iterator[None]:
    """Inside, launchers of a module count ``factor`` times the device's multiprocessors, and size their grids so."""
    count = module.multiprocessors_of
    with mock.patch.object(module, "multiprocessors_of", lambda device: max(1, round(factor * count(device)))):
        yield


def kernel_of(path: str) -> Any:
    """A kernel by ``module.function`` of ``msformer_fast.kernels``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"msformer_fast.kernels.{module}"), name)
