"""Named tuples of an op's parameters, tensors and ``None``: cast, and their gradients summed strip by strip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

P = TypeVar("P", bound=tuple[Tensor | None, ...])


def _rebuild(like: P, values: Iterable[Tensor | None]) -> P:
    kind: Any = type(like)
    return kind(*values)


def cast_all(values: P, dtype: torch.dtype) -> P:
    """A named tuple of tensors and ``None``, every tensor in ``dtype``."""
    return _rebuild(values, (None if value is None else value.to(dtype) for value in values))


def zeros_like_all(values: P) -> P:
    """A named tuple of zeros where ``values`` has tensors."""
    return _rebuild(values, (None if value is None else torch.zeros_like(value) for value in values))


def empty_like_all(values: P) -> P:
    """A named tuple of tensors that are not yet written where ``values`` has tensors."""
    return _rebuild(values, (None if value is None else torch.empty_like(value) for value in values))


def contiguous_all(values: P) -> P:
    """A named tuple of tensors and ``None``, every tensor contiguous."""
    return _rebuild(values, (None if value is None else value.contiguous() for value in values))


def cast_like(values: P, like: P) -> P:
    """A named tuple of tensors and ``None``, every tensor in the dtype that its twin has."""
    pairs = zip(values, like, strict=True)
    return _rebuild(values, (None if v is None or twin is None else v.to(twin.dtype) for v, twin in pairs))


def add_to(total: Tensor | None, part: Tensor | None) -> None:
    """``total += part`` where there are both."""
    if total is not None and part is not None:
        total += part
