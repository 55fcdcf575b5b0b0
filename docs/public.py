"""Which names are public: those of ``__all__``; of the modules among them theirs, or all without an underscore."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import msformer_fast as mf


def names_of(module: ModuleType) -> list[str]:
    """Public names of one module."""
    own = getattr(module, "__all__", None)
    if own is not None:
        return [name for name in own if not name.startswith("__")]
    values = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return [name for name, value in values.items() if getattr(value, "__module__", None) == module.__name__]


def public_names() -> list[str]:
    """Every public function and class by its dotted name, modules last in ``__all__`` replaced by what they hold."""
    found = []
    for name in names_of(mf):
        value = getattr(mf, name)
        if isinstance(value, ModuleType):
            found += [f"{value.__name__}.{each}" for each in names_of(value)]
        else:
            found.append(f"msformer_fast.{name}")
    return found


def resolve(name: str) -> Any:
    """The object of a dotted name; of a function and a file of one name the function, as after a plain import.

    Raises:
        AttributeError: there is none.
    """
    value: Any = mf
    first, *parts = name.split(".")
    if first != "msformer_fast":
        raise AttributeError(name)
    for count, part in enumerate(parts, 1):
        if not hasattr(value, part) and isinstance(value, ModuleType):
            path = ".".join([first, *parts[:count]])
            if importlib.util.find_spec(path) is not None:
                importlib.import_module(path)
        value = getattr(value, part)
    return value


def same_object(one: str, other: str) -> bool:
    """Whether two dotted names are one name, or name the same function or class."""
    if one == other:
        return True
    if one.rpartition(".")[2] != other.rpartition(".")[2]:
        return False
    try:
        first, second = resolve(one), resolve(other)
    except (AttributeError, ImportError):
        return False
    return first is second and callable(first)
