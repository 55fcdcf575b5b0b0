"""Named tuples of tensors and ``None`` as a registered op takes them: the tensors alone, and which they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from torch import Tensor

T = TypeVar("T", bound=tuple[Tensor | None, ...])


def pack(values: tuple[Tensor | None, ...]) -> tuple[list[Tensor], list[bool]]:
    """The tensors, and for every entry whether it is one."""
    return [value for value in values if value is not None], [value is not None for value in values]


def unpack(kind: type[T], tensors: Sequence[Tensor], present: Sequence[bool]) -> T:
    """The named tuple ``kind`` that was packed."""
    given, make = iter(tensors), cast(Any, kind)
    return make(*(next(given) if there else None for there in present))
