"""What a PTX program is, once parsed: arrays that the machine runs, and where each instruction stands."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


class Unsupported(NotImplementedError):
    """The PTX holds something that the machine does not know."""


#: Bytes that a lane's value has; a predicate is one bit of a mask.
BYTES = {
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "u16x2", "s16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64", "f32x2"), 8),
    "b128": 16,
    "pred": 0,
}
SPACES = {"global": 0, "shared": 1, "param": 2}

#: Special registers, in the order in which the machine sets them.
SPECIALS = (
    *(f"%{name}.{axis}" for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"),
    "%laneid",
    "%warpid",
)

_INTEGERS = ("op", "guard", "negated", "first", "count", "n", "size", "flags", "target", "space")
INSTRUCTION = np.dtype([*((name, "i4") for name in _INTEGERS), ("imm", "i8")])
OPERAND = np.dtype([("at", "i4"), ("width", "i4")])


@dataclass
class Line:
    """Where an instruction stands: in the PTX, and in the source."""

    number: int
    text: str
    source: str = ""


@dataclass
class Program:
    """A kernel, ready to run.

    Attributes:
        name: of the kernel.
        params: type and name of every parameter.
        code, operands: records of :data:`INSTRUCTION` and :data:`OPERAND`.
        image: a warp's file as it starts; registers begin at ``registers_at``, constants lie before.
        specials: places of the special registers.
        shared_granule, global_granule: bytes of the narrowest access; what is known of memory is known by granule.
        threads: of a block, 0 where the PTX does not say.
        lines: parallel to ``code``.
    """

    name: str
    params: list[tuple[str, str]]
    code: np.ndarray
    operands: np.ndarray
    image: np.ndarray
    registers_at: int
    specials: list[int]
    shared_granule: int
    global_granule: int
    threads: int
    lines: list[Line] = field(default_factory=list)

    def param_offsets(self) -> list[int]:
        """Where each parameter begins, and how long they are together."""
        return offsets_of([kind for kind, _ in self.params])


def offsets_of(kinds: list[str]) -> list[int]:
    """Offsets of values of these types one after the other, each aligned to its size; then the end."""
    offsets, at = [], 0
    for kind in kinds:
        at = -(-at // BYTES[kind]) * BYTES[kind]
        offsets.append(at)
        at += BYTES[kind]
    return [*offsets, at]
