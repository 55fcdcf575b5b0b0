"""What a launch may not do, and how it is worded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.harness.ptx.memory import Memory
from tests.harness.ptx.program import Line, Program

OUTSIDE = "access outside of every tensor"
#: What a strided view skips belongs to somebody else.
GAP = "access between the elements of a strided tensor"
#: A vector of 16 bytes off its 16: a false ``tl.multiple_of``, or one on the wrong stride.
MISALIGNED = "misaligned access"
SHARED_OUTSIDE = "access outside of shared memory"
UNWRITTEN = "read of shared memory that was never written"
#: Two touch a place, one of them writes something new, and no barrier lies between.
RACE = "race between warps"
LANE_RACE = "race between lanes of a warp"
#: In one launch a block reads or writes what another wrote, without atomics.
BLOCK_RACE = "race between blocks"
#: What cp.async copies is there only when its group was waited for.
IN_FLIGHT = "shared memory touched while a cp.async is under way"
DIVERGED = "not all lanes arrive"
ENDLESS = "endless loop"
#: No fault: threads that hold the same element disagree in its last bits, where the compiler fused the product of a
#: ``tl.sum(a * b)`` into the addition on one side of a shuffle.
COPIES = "copies of a value differ"

#: In the machine's order.
KINDS = (
    OUTSIDE,
    GAP,
    MISALIGNED,
    SHARED_OUTSIDE,
    UNWRITTEN,
    RACE,
    LANE_RACE,
    BLOCK_RACE,
    IN_FLIGHT,
    DIVERGED,
    ENDLESS,
    COPIES,
)

_INTEGERS = ("kind", "inst", "other", "block", "warp", "lane", "region", "bytes")
RECORD = np.dtype([*((name, "i4") for name in _INTEGERS), ("address", "i8"), ("count", "i8")])


@dataclass(frozen=True)
class Finding:
    """Something that a launch must not do: where it happened first, and how often.

    Attributes:
        kernel, kind: the kernel's name, and one of :data:`KINDS`.
        line, other: the instruction; the one before it that it collides with.
        block, warp, lane: that did it.
        where: the argument and the offset, or the address.
        count: how often.
    """

    kernel: str
    kind: str
    line: Line
    other: Line | None
    block: tuple[int, int, int]
    warp: int
    lane: int
    where: str
    count: int

    def __str__(self) -> str:
        text = f"{self.kernel}: {self.kind} at {_place(self.line)}"
        if self.where:
            text += f", {self.where}"
        if self.other is not None:
            text += f"; the other is {_place(self.other)}"
        return f"{text}; first in block {self.block}, warp {self.warp}, lane {self.lane}; {self.count} times"

    @classmethod
    def of(cls, record: np.void, program: Program, grid: tuple[int, int, int], memory: Memory) -> Finding:
        """A finding of the machine, a record of :data:`RECORD`."""
        kind, address, size = KINDS[record["kind"]], int(record["address"]), int(record["bytes"])
        where = ""
        if record["region"] >= 0:
            where = f"{memory.names[record['region']]} + {address} bytes"
        elif size:
            where = f"address {address:#x}"
        if size:
            where += f", must be a multiple of {size}" if kind == MISALIGNED else f", {size} bytes"

        number = int(record["block"])
        return cls(
            kernel=program.name,
            kind=kind,
            line=program.lines[record["inst"]],
            other=program.lines[record["other"]] if record["other"] >= 0 else None,
            block=(number % grid[0], number // grid[0] % grid[1], number // grid[0] // grid[1]),
            warp=int(record["warp"]),
            lane=int(record["lane"]),
            where=where,
            count=int(record["count"]),
        )


def _place(line: Line) -> str:
    return f"{line.source or '?'}, PTX line {line.number} `{line.text}`"
