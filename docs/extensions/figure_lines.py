"""A line where figures stand, that names command, commit and machine; and a table of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provenance import FIGURES, MARK, ROOT, marked


def _lines(app: Any, name: str, source: list[str]) -> None:
    source[0] = MARK.sub(lambda match: f"{{.made-by}}\nMade by {FIGURES[match[1]].line()}\n", source[0])
    if name == "results/figures":
        source[0] = source[0].replace("<!-- all figures -->", table())


def table() -> str:
    """Every set, in Markdown."""
    where = marked()
    rows = ["| figures | on | made by | checked by the script |", "| --- | --- | --- | --- |"]
    for name, each in FIGURES.items():
        pages = ", ".join(_link(page) for page in where.get(name, []))
        rows.append(f"| {each.what} | {pages} | {each.line()} | {'yes' if each.quick else 'no'} |")
    return "\n".join(rows)


def _link(page: Path) -> str:
    if page.name == "README.md":
        return "the README"
    place = page.relative_to(ROOT / "docs").as_posix()
    return f"[{place.removesuffix('.md')}](/{place})"


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", _lines)
    return {"parallel_read_safe": True}
