"""The public names: what is documented is there after a plain import, and what functions return has a name."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

import numpy as np
import pytest
from torch import nn

import msformer_fast as mf
from msformer_fast.cli import _parser
from msformer_fast.cohort.command import _OF_THE_COMMAND
from msformer_fast.options import apply_preset

from .conftest import ROOT

PACKAGE = ROOT / "msformer_fast"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]

#: Labels of the profiler and of benchmarks, which look like names of Python.
LABELS = re.compile(r"msformer_fast\.(\w+\.(forward|backward)\b|BENCH\.)")


def mentioned(text: str) -> set[str]:
    names = re.findall(r"(?<![\w.])(?:mf|msformer_fast)((?:\.[A-Za-z_]\w*)+)", text)
    return {name for name in (f"msformer_fast{name}" for name in names) if not LABELS.match(name)}


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def commands(text: str) -> set[str]:
    """Modules that are run, ``python -m NAME``."""
    return set(re.findall(r"python\s+-m\s+(msformer_fast[\w.]*)", text))


IN_DOCUMENTS = {str(path): path.read_text(encoding="utf-8") for path in DOCUMENTS}
IN_DOCSTRINGS = "\n".join(text for path in SOURCES for text in docstrings(path))


def test_what_the_documents_name_is_there_after_the_plain_import() -> None:
    """Each by attributes alone, in a fresh process; and none only because another was loaded before."""
    names = {name for text in IN_DOCUMENTS.values() for name in mentioned(text) - commands(text)}
    assert {"msformer_fast.process.keep_freed_memory", "msformer_fast.foreground.foreground"} <= names
    code = """
import json, sys
import msformer_fast
for name in json.load(sys.stdin):
    value = msformer_fast
    for part in name.split(".")[1:]:
        value = getattr(value, part)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(sorted(names)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    loaded_by_name = {*mf._HOME, *mf._MODULES, "__version__"}
    assert {name.split(".")[1] for name in names} <= loaded_by_name


def test_what_docstrings_name_exists() -> None:
    names = mentioned(IN_DOCSTRINGS) - commands(IN_DOCSTRINGS)
    for name in sorted(names):
        assert pkgutil.resolve_name(name) is not None
    assert {name.split(".")[1] for name in names} <= {*mf._HOME, *mf._MODULES}


def test_modules_that_are_run_exist() -> None:
    for name in commands("\n".join(IN_DOCUMENTS.values()) + IN_DOCSTRINGS):
        assert find_spec(name) is not None, name


def test_the_lists_agree() -> None:
    assert mf.__all__ == sorted(mf.__all__)
    assert {*mf.__all__} - {"__version__"} - {*mf._MODULES} == {*mf._HOME}
    (block,) = (node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    for_checkers = {alias.name for node in block.body for alias in node.names} - {"Any"}
    assert for_checkers == {*mf.__all__} - {"__version__"}


def functions_of(module: ModuleType) -> Iterator[Callable[..., Any]]:
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    for name in names:
        value = getattr(module, name)
        if inspect.isfunction(value) and value.__module__.startswith(module.__name__):
            yield value
        elif inspect.isclass(value) and issubclass(value, nn.Module) and "forward" in vars(value):
            yield value.forward


def public_functions() -> dict[str, Callable[..., Any]]:
    """Functions of the package and of its public modules, and the forwards of public neural modules."""
    modules = [mf, *(getattr(mf, name) for name in mf.__all__ if name in mf._MODULES)]
    return {f"{each.__module__}.{each.__qualname__}": each for module in modules for each in functions_of(module)}


def returned(function: Callable[..., Any]) -> Any:
    annotation = function.__annotations__["return"]
    return eval(annotation, vars(sys.modules[function.__module__])) if isinstance(annotation, str) else annotation


def classes_in(annotation: Any) -> Iterator[type]:
    """Classes of this package that an annotation names, and those of their fields."""
    for part in get_args(annotation):
        yield from classes_in(part)
    if inspect.isclass(annotation) and annotation.__module__.startswith("msformer_fast"):
        yield annotation
        fields = {
            **getattr(annotation, "__dataclass_fields__", {}),
            **dict.fromkeys(getattr(annotation, "_fields", ())),
        }
        hints = typing.get_type_hints(annotation) if fields else {}
        for name in fields:
            yield from classes_in(hints[name])


PUBLIC = public_functions()


def test_what_functions_return_can_be_named() -> None:
    classes = {kind for function in PUBLIC.values() for kind in classes_in(returned(function))}
    assert {mf.Segmentation, mf.Scores, mf.Losses, mf.Guided, mf.Iteration, mf.CohortSummary, mf.Patches} <= classes
    for kind in classes:
        assert getattr(mf, kind.__name__, None) is kind, kind


@pytest.mark.parametrize("name", PUBLIC)
def test_no_function_returns_a_bare_tuple(name: str) -> None:
    """But sizes and lists of numbers: what is told apart by more than its place has a name."""
    annotation = returned(PUBLIC[name])
    parts = [] if get_origin(annotation) is np.ndarray else get_args(annotation)  # an array's shape is a tuple there
    for part in (annotation, *parts):
        assert get_origin(part) is not tuple or {*get_args(part)} <= {int, ...}, part


def test_named_tuples_unpack_as_before() -> None:
    image, mask = mf.phantom.lesion((40, 50), seed=0)
    assert image.shape == (40, 50, 3) and mask.shape == (40, 50)
    assert isinstance(mf.phantom.chest((40, 50)), mf.Phantom)


def test_segment_cohort_has_the_options_of_the_command_line() -> None:
    """The same names, the same defaults; and the two folders' names."""
    arguments = _parser().parse_args(["segment", "scans"])
    apply_preset(arguments)
    given = {**vars(arguments), "points": None, "not_points": None, "boxes": None}  # one option each, given again
    options = {name: value for name, value in given.items() if name not in _OF_THE_COMMAND}
    parameters = inspect.signature(mf.segment_cohort).parameters
    defaults = {name: each.default for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert defaults.pop("report") is None and defaults.pop("notice") is None
    assert defaults == options
    assert parameters["output"].default == "results"


def test_segment_takes_what_segment_cohort_does() -> None:
    """Settings of one image have the same names and defaults in both."""
    one, many = (inspect.signature(each).parameters for each in (mf.segment, mf.segment_cohort))
    shared = one.keys() & many.keys()
    assert len(shared) == 24
    assert {name: one[name].default for name in shared} == {name: many[name].default for name in shared}
