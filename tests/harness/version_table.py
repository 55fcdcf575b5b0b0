"""Which versions of Triton compile the kernels, as each would for a card, and what comes of it.

``python -m tests.harness.version_table [VERSION ...] [--targets sm_90] [--all] [--write]`` installs each version into a
folder of its own, compiles the launch tables there (the paper's widths, or ``--all``) and prints a markdown table;
``--write`` puts it into ``docs/versions.md``. Runs for minutes a version.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.harness.aot_table import FOLDER, GROWTH, read_table

ROOT = FOLDER.parents[1]
PAGE = ROOT / "docs" / "versions.md"

#: The oldest that is promised, one of each few after it, and the newest.
VERSIONS = ("3.3.1", "3.4.0", "3.6.0", "3.8.0", "3.9.0")
HEAD = (
    "Triton",
    "target",
    "compiled",
    "do not compile",
    "with a stack",
    "largest stack",
    f"over {GROWTH} times the registers",
)


def install(version: str, folder: Path) -> Path:
    """Folder to put in front of the module path, with this version in it."""
    target = folder / version
    if not (target / "triton").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        subprocess.run([*command, f"triton=={version}"], check=True)
    return target


def compile_with(path: Path, ops: Iterable[str], target: str, everything: bool) -> list[dict[str, Any]]:
    """Reports of all cases of these ops on a target, compiled by the Triton that lies in ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "reports.json"
        command = [sys.executable, "-m", "tests.harness.aot_table", *ops, "--targets", target, "--json", str(found)]
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"PYTHONPATH": str(path), "TRITON_CACHE_DIR": str(Path(folder) / "cache")}
        small = [] if everything else ["--small"]
        done = subprocess.run([*command, *small], cwd=ROOT, env=environment, capture_output=True, text=True)
        if not found.exists():
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        return json.loads(found.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def row_of(version: str, target: str, reports: list[dict[str, Any]]) -> tuple[str, ...]:
    """One line of the table."""
    tables = {op: read_table(op)[1] for op in {report["op"] for report in reports}}
    compiled = [report for report in reports if not report["error"]]
    stacks = [report["spill_bytes"] for report in compiled if report["spill_bytes"]]
    grown = 0
    for report in compiled:
        row = tables[report["op"]].get((report["case"], report["target"]))
        grown += row is not None and report["registers"] > GROWTH * int(row["registers"])
    failed = len(reports) - len(compiled)
    largest = f"{max(stacks)} bytes" if stacks else "-"
    return version, target, str(len(compiled)), str(failed), str(len(stacks)), largest, str(grown)


def markdown(rows: Iterable[tuple[str, ...]]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(rows: Iterable[tuple[str, ...]], name: str) -> None:
    """Replace the table between the markers of this name in the page."""
    before = PAGE.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
    after, count = re.subn(pattern, lambda m: m[1] + markdown(rows) + m[2], before, flags=re.S)
    if count != 1:
        raise RuntimeError(f"{PAGE} has no place for the table {name!r}")
    PAGE.write_text(after, encoding="utf-8")


def main() -> int:
    from tests.aot.test_gate import OPS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--targets", default="sm_90", help="with commas (%(default)s)")
    parser.add_argument("--ops", default=",".join(OPS), help="with commas; default all")
    parser.add_argument("--all", action="store_true", help="all widths, not the paper's alone")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "triton-versions")
    arguments = parser.parse_args()

    rows = []
    for version in arguments.versions:
        path = install(version, arguments.folder)
        for target in arguments.targets.split(","):
            reports = compile_with(path, arguments.ops.split(","), target, arguments.all)
            rows.append(row_of(version, target, reports))
            print(markdown(rows[-1:]).splitlines()[-1], flush=True)
            for report in reports:
                if not report["ok"]:
                    what = report["error"] or f"a stack of {report['spill_bytes']} bytes"
                    print(f"  {report['op']}: {report['case']}: {what[:200]}", flush=True)

    if arguments.write:
        write(rows, "all widths" if arguments.all else "widths of the paper")
    return 0 if all(row[3] == "0" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
