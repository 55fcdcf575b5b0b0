"""This package's own modules on the reference backend, which another backend replaces."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from msformer_fast.swaps.kinds import SwapKind
from msformer_fast.swaps.probe import Make


def is_own(module: nn.Module) -> bool:
    """Whether a module is of this package."""
    return type(module).__module__.startswith("msformer_fast.")


def _recognise(module: nn.Module) -> bool | str:
    return is_own(module) and getattr(module, "backend", None) == "reference"


def _with_backend(module: nn.Module, backend: str | None) -> nn.Module:
    """A module of the same parts; parts with a backend of their own are swapped by themselves."""
    made = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__["backend"] = backend
    return made


def _ways(module: nn.Module) -> Iterable[Make]:
    return [_with_backend]


OWN = SwapKind('msformer_fast, backend="reference"', _recognise, _ways, None, enters=True)
