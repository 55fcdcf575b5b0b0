"""Figures in the pages name where they come from, and those that can be counted are what is counted now."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

sys.path.append(str(ROOT / "docs"))
import check_figures
import provenance
from provenance import FIGURES, PAGES, marked

#: Figures that somebody measured, or counted, in a table.
MEASURED = re.compile(r"\d (?:ms|s|µs|MB|GB|kB)\b|\b0\.\d{3}\b|\d e-\d\d|\d%|\d %")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs launch tables")


def test_every_mark_is_known_and_every_set_stands_somewhere() -> None:
    assert marked().keys() == FIGURES.keys()
    assert set(check_figures.QUICK) == {name for name, each in FIGURES.items() if each.quick}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_of_figures_name_their_source(page: Path) -> None:
    """A table with measured numbers stands below a mark of its section, or in a section of nothing measured."""
    text = page.read_text(encoding="utf-8")
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
        for table in re.finditer(r"(?:^\|.*\n)+", section, re.MULTILINE):
            if MEASURED.search(table[0]):
                assert provenance.MARK.search(section[: table.start()]), f"{page.name}: {section.splitlines()[0]}"


def test_commits_are_those_of_the_history() -> None:
    for each in FIGURES.values():
        assert re.fullmatch(r"[0-9a-f]{7}", each.commit), each
    if not (ROOT / ".git").exists():
        pytest.skip("no history here")
    for each in FIGURES.values():
        done = subprocess.run(["git", "cat-file", "-t", each.commit], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == "commit", each


def test_the_readme_names_command_and_commit() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for name in provenance.MARK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        assert FIGURES[name].command in readme and FIGURES[name].commit in readme


@needs_triton
@pytest.mark.parametrize(
    "name", ["ledger", "predicted", "issued", "bench-predicted", "volumes-forward", "volumes-backward"]
)
def test_counted_figures_are_as_shown(name: str) -> None:
    assert check_figures.differing(name) == []


@needs_triton
def test_a_figure_that_no_longer_matches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = check_figures.block
    monkeypatch.setattr(check_figures, "block", lambda *which: shown(*which).replace("| 1065 MB |", "| 1165 MB |"))
    (line,) = check_figures.differing("ledger")
    assert line.startswith("ledger: efficient attention, four blocks: shown 1165 MB, now 1064")
    monkeypatch.setattr(check_figures, "block", lambda *which: shown(*which).replace("times fewer bytes", "times less"))
    assert "no such words" in check_figures.differing("predicted")[0]


@pytest.mark.parametrize(
    ("shown", "value", "expected"),
    [
        ("1065 MB", 1064.7e6, True),
        ("1065 MB", 1065.6e6, False),
        ("4.1 GB", 4.094e9, True),
        ("0.2 MB", 206364, True),
        ("0.3 MB", 206364, False),
        ("4,477", 4477.2, True),
        ("84", 84, True),
        ("84", 85, False),
        ("1.04", 1.0432, True),
        ("-", 3, False),
        ("Dice 0.9", "Dice 0.9", True),
    ],
)
def test_a_figure_matches_to_the_digits_shown(shown: str, value: float | str, expected: bool) -> None:
    assert check_figures.agrees(shown, value) == expected
