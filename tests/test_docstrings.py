"""Docstrings of public names say shapes, dtypes, errors and source, or lead to the docstring that does."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

import msformer_fast as mf

from .conftest import ROOT

sys.path.append(str(ROOT / "docs"))
from public import public_names, resolve, same_object

PUBLIC = {name: resolve(name) for name in public_names()}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
MODULES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value) and issubclass(value, nn.Module)}

#: Where another docstring says the rest.
REFERENCE = re.compile(r":(?:func|class|mod):`[~.]?([\w.]+)`")
SHAPE = re.compile(r"\((?:[A-Za-z]\w*|\.\.\.|\d+)(?:, [^()]+)*\)|scalar")
DTYPE = re.compile(r"float|bool|integer|uint8|int32|dtype|floating point")
#: What takes no input that could be wrong, or hands it on.
NO_ERRORS = {
    "msformer_fast.foreground.clusters_in",
    "msformer_fast.margin.find_margin",
    "msformer_fast.formats.is_image_file",
    "msformer_fast.formats.stem",
    "msformer_fast.process.cudnn_settings",
    "msformer_fast.process.keep_freed_memory",
    "msformer_fast.process.limit_memory",
    "msformer_fast.process.usable_cores",
    "msformer_fast.profiling.nvtx_range",
}
#: Base classes, of no paper.
NO_SOURCE = {"msformer_fast.nn.DropIn", "msformer_fast.nn.Fused"}


def doc(value: Any) -> str:
    return inspect.getdoc(value) or ""


def referred(value: Any, seen: tuple[Any, ...] = ()) -> Iterator[str]:
    """The docstring, and those that it leads to."""
    text = doc(value)
    yield text
    for name in REFERENCE.findall(text):
        home = sys.modules[value.__module__]
        for candidate in (name, f"{value.__module__}.{name}", f"msformer_fast.ops.{name}", f"msformer_fast.nn.{name}"):
            try:
                other = resolve(candidate)
            except (AttributeError, ImportError):
                continue
            if other is not value and other not in seen and not inspect.ismodule(other):
                yield from referred(other, (*seen, value))
                break
        else:
            other = getattr(home, name, None)
            if callable(other) and other not in seen:
                yield from referred(other, (*seen, value))


def said(value: Any, what: re.Pattern[str] | str) -> bool:
    return any(re.search(what, text) for text in referred(value))


def of_arrays(function: Callable[..., Any]) -> bool:
    return bool(re.search(r"Tensor|NDArray|\bArray\b", str(function.__annotations__)))


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if callable(value)])
def test_there_is_one(name: str) -> None:
    text = doc(PUBLIC[name])
    assert text and text[0] != "_" and not text.startswith(f"{name.rpartition('.')[2]}("), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function = FUNCTIONS[name]
    whole = "\n".join(referred(function))
    parameters = inspect.signature(function).parameters
    for parameter in parameters if len(parameters) > 1 else ():  # of one argument the first sentence speaks
        assert re.search(rf"\b{parameter}\b", whole), parameter
    if of_arrays(function):
        assert said(function, SHAPE), "no shape"
        assert said(function, DTYPE), "no dtype"
    if name not in NO_ERRORS:
        assert said(function, r"Raises|rrors"), "no errors"


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    module = MODULES[name]
    whole = "\n".join(referred(module))
    for parameter in inspect.signature(module.__init__).parameters:
        if parameter not in ("self", "args", "kwargs"):
            assert re.search(rf"\b{parameter}\b", whole), parameter
    if name not in NO_SOURCE:
        assert said(module, r"Shape: "), "no shape"
        assert said(module, DTYPE), "no dtype"
        assert said(module, r"Raises:"), "no errors"
        assert said(module, r"Source: |MIDL 2023"), "no source"


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.startswith("msformer_fast.ops.")])
def test_ops_name_their_source(name: str) -> None:
    assert name.endswith(".batch_statistics") or said(FUNCTIONS[name], "Source: "), name  # moments are of no paper


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.startswith("msformer_fast.metrics.")])
def test_metrics_name_their_source(name: str) -> None:
    assert said(FUNCTIONS[name], "Source: |IEEE|MS-Former|MONAI"), name


def test_every_name_is_in_the_pages() -> None:
    """By a directive of its own, or of the module that it is a public name of."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    by_name = re.findall(r"auto(?:function|class|exception|data):: ([\w.]+)", pages)
    by_module = re.findall(r"automodule:: ([\w.]+)\n +:members:", pages)
    for name in PUBLIC:
        value = PUBLIC[name]
        if name.rpartition(".")[0] in by_module or any(same_object(name, each) for each in by_name):
            continue
        short = name.rpartition(".")[2]
        assert any(getattr(resolve(each), short, None) is value for each in by_module), name
    assert set(by_module) >= {"msformer_fast.ops", "msformer_fast.nn", "msformer_fast.foreground"}
    assert {*mf.__all__} - {"__version__"} <= {name.split(".")[1] for name in PUBLIC} | {"reference"}
