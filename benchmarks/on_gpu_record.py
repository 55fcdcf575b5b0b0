"""What a run on a card leaves behind: ``units.jsonl``, a line for each piece when it is done, and pages made of it.

One file, appended to and flushed: whatever ends the run, a line is whole or it is not there. A line says which code,
card and libraries it comes from, and counts only for those.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

Line = dict[str, Any]

NAME = "units.jsonl"

#: Folders of a checkout whose files decide what a piece finds.
FOLDERS = ("msformer_fast", "kernels", "benchmarks", "tests")


class Here(NamedTuple):
    """Where a line comes from.

    Attributes:
        code: a hash of every Python file of the checkout: there may be no ``.git``, and a fix must inherit no "ok".
        card: its name; None in a dry run.
    """

    code: str
    card: str | None
    torch: str
    triton: str
    dry_run: bool


def here(root: Path, dry: bool) -> Here:
    """This code on this machine."""
    import torch

    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "not installed"
    card = None if dry or not torch.cuda.is_available() else torch.cuda.get_device_name(0)
    return Here(code_of(root), card, torch.__version__, version, dry)


def code_of(root: Path) -> str:
    """A hash of the files below :data:`FOLDERS` by name and content: Python, and tables of settings."""
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix == ".py" or path.parent.name == "candidates":
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


class Record:
    """The lines of a folder.

    Attributes:
        here: what new lines are of, and which of the old ones count.
    """

    def __init__(self, folder: Path, here: Here, earlier: Path | None = None) -> None:
        self.folder, self.here = folder, here
        self._lines = read_lines(folder / NAME)
        if earlier is not None and earlier.resolve() != (folder / NAME).resolve():
            known = {(line["unit"], line["time"]) for line in self._lines}
            for line in read_lines(earlier):
                if (line["unit"], line["time"]) not in known:
                    self._append(line)

    def add(self, name: str, found: Line) -> None:
        """A piece that has been done."""
        self._append({"unit": name, "time": time.time(), **self.here._asdict(), **short(found)})

    def _append(self, line: Line) -> None:
        from msformer_fast.files import plain

        # A run that was cut off may have left half a line behind.
        path = self.folder / NAME
        whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
        with open(path, "ab") as file:
            file.write((b"" if whole else b"\n") + json.dumps(plain(line), allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines.append(line)

    def units(self) -> dict[str, Line]:
        """The latest line of each piece that counts."""
        return latest(self._lines, self.here)

    def done(self, name: str) -> bool:
        """Finished and well: what failed is tried again by the next command."""
        line = self.units().get(name)
        return line is not None and bool(line["ok"])


def short(value: Any) -> Any:
    """The same with six digits of every number that is no integer: thousands of rounds are kept."""
    if isinstance(value, dict):
        return {name: short(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [short(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def read_lines(path: Path) -> list[Line]:
    """Of a file that may be missing, or end in half a line."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and {"unit", "time", *Here._fields} <= set(line):
                    found.append(line)
    return found


def latest(lines: Iterable[Line], of: Here) -> dict[str, Line]:
    """By piece, the last of those lines that come from one code and machine."""
    return {line["unit"]: line for line in lines if all(line[name] == value for name, value in of._asdict().items())}


def results_of(units: dict[str, Line], tf32: bool = False) -> Any:
    """Rows and environment as ``msformer-fast bench`` writes them, of the pieces of one code and machine.

    Args:
        tf32: those whose float32 products were rounded so; else all others.
    """
    from msformer_fast.benchmarks.records import Refused, Results, Row

    chosen = {name: unit for name, unit in units.items() if ("tf32" in name.split("/")) == tf32}
    rows, refused = [], []
    operations: dict[str, float] = {}
    bandwidth = 0.0
    for name, unit in chosen.items():
        # Its other rows are there already, from rounds without Inductor's.
        kept = [row for row in unit.get("rows", ()) if row["provider"] == "compiled" or not name.endswith("/compiled")]
        rows += [Row(**row) for row in kept]
        refused += [Refused(**row) for row in unit.get("refused", ())]
        ceilings = unit.get("ceilings") or {"bandwidth": 0.0, "operations": {}}
        bandwidth = max(bandwidth, ceilings["bandwidth"])
        for dtype, value in ceilings["operations"].items():
            operations[dtype] = max(value, operations.get(dtype, 0.0))
    facts: dict[str, Any] = dict(units.get("environment", {}).get("facts", {}))
    facts |= {"float32_matmul_precision": "high" if tf32 else "highest", "convolutions_tf32": tf32}
    if operations:
        facts["ceilings"] = {"bandwidth": bandwidth, "operations": operations}
    return Results(facts, {"command": "on_gpu"}, rows, refused)


def write_pages(folder: Path, units: dict[str, Line]) -> None:
    """``results.json`` and ``report.html``; those with tf32 products in ``results-tf32.json``."""
    from msformer_fast.benchmarks.report import write_report
    from msformer_fast.files import write_json

    results, tf32 = results_of(units), results_of(units, tf32=True)
    write_json(folder / "results.json", results.to_json())
    if tf32.rows:
        write_json(folder / "results-tf32.json", tf32.to_json())
    with contextlib.suppress(ImportError):
        write_report(results, folder / "report.html")
