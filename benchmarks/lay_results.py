"""Lay what ``on_gpu.py`` brought home into ``benchmarks/results/CARD/``, and draw the tables of the pages from there.

    python -m msformer_fast.benchmarks.lay_results UNITS.jsonl...    # of one call or several
    python -m msformer_fast.benchmarks.lay_results                   # only draw the tables again

A card's folder holds ``units.jsonl``, of each piece the latest line of the newest code, and ``proposed_rows.txt``, the
rows of launch tables that were faster by more than the rounds spread, where they would stand. Tables in ``README.md``
and ``docs/benchmarks.md`` stand between ``<!-- gpu:PART -->`` and ``<!-- /gpu:PART -->``; no figure there is typed.
Lines of a dry run are refused.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from msformer_fast.benchmarks.gpu_tables import PARTS, Units, text_of
from msformer_fast.benchmarks.on_gpu_record import NAME, Here, Line, latest, read_lines
from msformer_fast.errors import InputError
from msformer_fast.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/benchmarks.md")
MARK = re.compile(r"(<!-- gpu:(\w+) -->\n)(.*?)(<!-- /gpu:\2 -->)", re.S)


def lay(paths: Sequence[Path], root: Path = ROOT) -> list[Path]:
    """Add lines to the folders of their cards.

    Returns:
        the folders that changed.

    Raises:
        InputError: a file is missing or holds no line of a card.
    """
    lines: dict[str, list[Line]] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: not there; name a {NAME} that on_gpu.py has written")
        found = [line for line in read_lines(path) if line["card"] and not line["dry_run"]]
        if not found:
            raise InputError(f"{path}: holds no piece that a card has done; a dry run is no measurement")
        for line in found:
            lines.setdefault(line["card"], []).append(line)
    folders = []
    for card, new in lines.items():
        folder = root / "benchmarks" / "results" / folder_of(card)
        known = read_lines(folder / NAME)
        units = newest([*known, *new])
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / NAME, "".join(json.dumps(line) + "\n" for line in units.values()))
        write_text(folder / "proposed_rows.txt", proposals(units))
        folders.append(folder)
    return folders


def folder_of(card: str) -> str:
    """A card's name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", card).strip("-")


def newest(lines: Sequence[Line]) -> Units:
    """By piece, the latest lines of the code that ran last: what another code found is no figure of this one."""
    ordered = sorted(lines, key=lambda line: line["time"])
    return latest(ordered, Here(**{name: ordered[-1][name] for name in Here._fields}))


def cards(root: Path = ROOT) -> dict[str, Units]:
    """What each card's folder holds."""
    folders = sorted((root / "benchmarks" / "results").glob(f"*/{NAME}"))
    return {path.parent.name: {line["unit"]: line for line in read_lines(path)} for path in folders}


def redrawn(page: str, found: dict[str, Units]) -> str:
    """A page with its marked parts drawn anew.

    Raises:
        InputError: a mark names a part that there is none of.
    """

    def part(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        if name not in PARTS:
            raise InputError(f"gpu:{name}: no such part; there are {', '.join(PARTS)}")
        return f"{begin}{text_of(name, found)}\n{end}"

    return MARK.sub(part, page)


def proposals(units: Units) -> str:
    """Rows of launch tables that were faster, where they would stand, as a difference for a person to apply."""
    blocks = []
    for unit in units.values():
        found = unit.get("found") or {}
        faster = [each for each in found.get("candidates", ()) if each.get("faster")]
        if not faster:
            continue
        best = max(faster, key=lambda each: each["gain"])
        settings, key = best["settings"], tuple(found["key"])
        spread = f"{best['gain']:.2f} times faster ({best['low']:.2f} to {best['high']:.2f})"
        lines = [
            f"--- kernels/{found['module']}.py, TABLE[{', '.join(map(repr, key))}]",
            f"# {spread}: {found['half']} of {found['case']}",
        ]
        place = f'("{found["target"]}", {found["width"]})'
        if tuple(settings["row"]) != tuple(found["before"]):
            lines += [f"-    now {tuple(found['before'])}", f"+    {place}: {tuple(settings['row'])},"]
        if settings["stages"]:
            lines.append(f"+    num_stages={settings['stages']} for {place}, where the launcher says 1")
        if settings["grid"] != 1:
            lines.append(f"+    {settings['grid']:g} times the programs for {place}")
        blocks.append((best["gain"], "\n".join(lines)))
    blocks.sort(key=lambda block: -block[0])
    none = "No candidate was faster by more than the rounds spread.\n"
    return "\n\n".join(text for _, text in blocks) + "\n" if blocks else none


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="*", type=Path, help="units.jsonl of a call")
    arguments = parser.parse_args(argv)
    try:
        folders = lay(arguments.units)
        found = cards()
        for name in PAGES:
            page = (ROOT / name).read_text(encoding="utf-8")
            if (drawn := redrawn(page, found)) != page:
                write_text(ROOT / name, drawn)
                print(f"{name}: redrawn")
    except InputError as error:
        print(f"lay_results: error: {error}", file=sys.stderr)
        return 2
    for folder in folders:
        print(f"{folder.relative_to(ROOT)}:\n{(folder / 'proposed_rows.txt').read_text(encoding='utf-8')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
