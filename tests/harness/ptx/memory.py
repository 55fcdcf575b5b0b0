"""Global memory as a launch sees it: each argument's storage at addresses of its own."""

from __future__ import annotations

import ctypes
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tests.harness.ptx.program import Program, Unsupported

REGION = np.dtype([(name, "i8") for name in ("base", "size", "host", "valid", "cells")])
CELL_BYTES = 40

_PACK = {
    **{"i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q"},
    **{"u1": "?", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"},
    **{"fp16": "e", "fp32": "f", "f32": "f", "fp64": "d"},
}


class Memory:
    """Regions far from each other, so that no stray access to one hits another, and an overflow of int32 shows."""

    BITS, MIDDLE = 40, 1 << 39

    def __init__(self) -> None:
        self.names: list[str] = []
        self._regions: list[tuple[int, int, int, int]] = []  # base, size, host, valid
        self._kept: list[np.ndarray] = []

    def add(self, name: str, host: int, size: int, valid: np.ndarray | None = None) -> int:
        """The address of ``size`` bytes at ``host``. ``valid``: which of them belong to an element, None for all."""
        base = ((len(self._regions) + 1) << self.BITS) + self.MIDDLE + host % 4096
        if valid is not None:
            valid = np.ascontiguousarray(valid, np.uint8)
            self._kept.append(valid)
        self._regions.append((base, size, host, 0 if valid is None else valid.ctypes.data))
        self.names.append(name)
        return base

    def contents(self) -> list[bytes]:
        return [ctypes.string_at(host, size) for _, size, host, _ in self._regions]

    def restore(self, contents: list[bytes]) -> None:
        for (_, size, host, _), before in zip(self._regions, contents, strict=True):
            ctypes.memmove(host, before, size)

    def table(self, granule: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Records of :data:`REGION`, and the cells that they point to: what is known of each granule, nothing yet."""
        cells = [np.zeros((size // granule + 2) * CELL_BYTES, np.uint8) for _, size, _, _ in self._regions]
        rows = [(*region, each.ctypes.data) for region, each in zip(self._regions, cells, strict=True)]
        return np.array(rows, REGION), cells


class Arguments:
    """The parameters of a launch, and the memory of its tensors.

    Args:
        kinds, names: types as Triton writes them (``*fp32``, ``i32``, ``constexpr``), and names.
        values: in the same order; tuples hold several.
    """

    def __init__(self, kinds: Sequence[Any], names: Sequence[str], values: Sequence[Any]) -> None:
        self.memory = Memory()
        self._packed: list[bytes] = []
        tensors: list[tuple[str, Tensor, int]] = []  # name, tensor, index of its value
        for kind, name, value in _flat(kinds, names, values):
            if kind.startswith("*"):
                tensors.append((name, value if isinstance(value, Tensor) else value.base, len(self._packed)))
                self._packed.append(b"")
            else:
                self._packed.append(_packed(kind, value))

        storages: dict[int, list[tuple[str, Tensor, int]]] = defaultdict(list)
        for number, each in enumerate(tensors):
            storages[each[1].untyped_storage().data_ptr() if each[1].numel() else -1 - number].append(each)
        for group in storages.values():
            self._map(group)

    def _map(self, group: list[tuple[str, Tensor, int]]) -> None:
        """A region for a storage, from the first to the last byte that any of its tensors has."""
        spans = [_span(tensor) for _, tensor, _ in group]
        low, high = min(start for start, _ in spans), max(end for _, end in spans)
        valid = np.zeros(high - low, np.uint8)
        for (_, tensor, _), (start, _) in zip(group, spans, strict=True):
            if tensor.numel():
                size = tensor.element_size()
                strides = (*(stride * size for stride in tensor.stride()), 1)
                np.lib.stride_tricks.as_strided(valid[start - low :], (*tensor.shape, size), strides)[...] = 1

        names = ", ".join(dict.fromkeys(name for name, _, _ in group))
        base = self.memory.add(names, low, high - low, None if valid.all() else valid)
        for (_, _, index), (start, _) in zip(group, spans, strict=True):
            self._packed[index] = struct.pack("<Q", base + start - low)

    def parameters(self, program: Program) -> bytes:
        """What the kernel reads; pointers to scratch memory, which come last, are null."""
        *offsets, size = program.param_offsets()
        buffer = bytearray(size)
        for at, value in zip(offsets, self._packed, strict=False):
            buffer[at : at + len(value)] = value
        return bytes(buffer)


def _flat(kinds: Sequence[Any], names: Sequence[str], values: Sequence[Any]) -> Iterator[tuple[str, str, Any]]:
    """Type, name and value of all that is no constant, tuples opened."""
    for kind, name, value in zip(kinds, names, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, [f"{name}[{i}]" for i in range(len(kind))], value)
        elif kind != "constexpr":
            yield kind, name, value


def _packed(kind: str, value: Any) -> bytes:
    if kind == "bf16":
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
        return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF)
    if kind not in _PACK:
        raise Unsupported(f"an argument of type {kind}")
    return struct.pack("<" + _PACK[kind], value)


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte, and one past the last, of a tensor's elements in host memory."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()
