"""Bytes that each kernel reads and writes, from recorded launches on tensors without data, at any size.

Launches need triton, so whoever records them imports :mod:`msformer_fast.benchmarks.traffic.recorded` inside.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

#: By the kernel's name: launches, bytes that it reads, each address counted once a launch, bytes that it writes.
Kernels: TypeAlias = dict[str, tuple[int, int, int]]


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes:
        function: the kernel.
        op, shape: the registered op in whose body it was made, without its namespace, and the shape of the op's first
            tensor.
        grid: programs along each axis.
        loads, stores: bytes of each tensor that it loads from, or stores to, by the name of the argument.
        arguments: all of them by name.
    """

    function: Any
    op: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    loads: dict[str, int]
    stores: dict[str, int]
    arguments: dict[str, Any]

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        name: str = self.function.fn.__name__
        return name

    @property
    def programs(self) -> int:
        """Of the whole grid."""
        return math.prod(self.grid)


#: Bytes that an argument moves where that is not its size, from the launch and the argument's name.
Bytes: TypeAlias = Callable[[Launch, str], int]
#: By kernel and argument.
Partly: TypeAlias = Mapping[tuple[str, str], Bytes]


def has_launch_tables() -> bool:
    """Whether numbers of programs are known here: whether triton is installed."""
    return importlib.util.find_spec("triton") is not None
