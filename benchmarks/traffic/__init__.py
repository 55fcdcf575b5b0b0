"""Bytes that each kernel of an op reads and writes, as formulas: what the interpreter counts, at any size.

Each file of an op has ``of_call``, the kernels of the very call that the op's benchmark times, and ``programs_of``, how
many programs its launch table makes share the work. Launch tables need triton, so they are imported inside.
"""

from __future__ import annotations

import importlib.util

#: Launches of a kernel, bytes at distinct addresses that it reads, bytes that it writes.
Kernels = dict[str, tuple[int, int, int]]


def has_launch_tables() -> bool:
    """Whether numbers of programs are known here: whether triton is installed."""
    return importlib.util.find_spec("triton") is not None
