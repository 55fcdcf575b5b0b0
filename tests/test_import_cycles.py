"""No module of the package leads back to itself: which files must be read before one is a question with an answer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from .conftest import ROOT

FOLDERS = {
    "msformer_fast": ROOT / "msformer_fast",
    "msformer_fast.kernels": ROOT / "kernels",
    "msformer_fast.benchmarks": ROOT / "benchmarks",
}


def modules() -> dict[str, Path]:
    """Name and file of every module."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def named(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """What the import statements of a file name: at its top, inside functions, and for type checkers alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"line {node.lineno}: imports name the whole path"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def imports_of(module: str, tree: ast.AST, known: set[str]) -> set[str]:
    """The modules that must be there for this one: those it names, and the packages that hold them.

    A package that holds the module itself does not count: it is being imported already.
    """
    found = set()
    for name in named(tree, known):
        parts = name.split(".")
        packages = (".".join(parts[:length]) for length in range(1, len(parts)))
        found |= {name, *(package for package in packages if not f"{module}.".startswith(f"{package}."))}
    return found & known


def check(files: dict[str, str]) -> None:
    """Raises CycleError, which names the modules of a cycle in their order."""
    graph = {name: imports_of(name, ast.parse(text), set(files)) for name, text in files.items()}
    TopologicalSorter(graph).prepare()


def test_no_import_leads_back() -> None:
    files = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    assert {"msformer_fast", "msformer_fast.kernels.launch", "msformer_fast.benchmarks.traffic"} <= set(files)
    try:
        check(files)
    except CycleError as error:
        pytest.fail("imports lead back: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize(
    "files",
    [
        {"p.a": "import p.b", "p.b": "def f():\n    from p import a"},
        {"p.a": "from p.b import x", "p.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a"},
        {"p.q": "from p.q.a import x", "p.q.a": "import p.b", "p.b": "from p.q.c import y", "p.q.c": ""},
    ],
    ids=["inside a function", "for a type checker", "through the package of what is named"],
)
def test_a_cycle_is_found(files: dict[str, str]) -> None:
    with pytest.raises(CycleError):
        check(files)


def test_a_package_may_gather_what_it_holds() -> None:
    check({"p": "from p.a import x", "p.a": "from p.b import y", "p.b": ""})
