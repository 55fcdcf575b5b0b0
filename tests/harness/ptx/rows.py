"""The rows of a warp's file: registers, constants, and what an operand of an instruction stands for."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from tests.harness.ptx.program import BYTES, SPECIALS, Line, Unsupported

#: A row's name, and the bytes that a lane has there.
Row = tuple[str, int]


def split(text: str) -> list[str]:
    """Operands, at the commas outside of braces and brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def immediate(text: str) -> int | None:
    """The bits of a number, or None. "0f" and "0d" are floats by their bits."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
        return int(text[2:], 16)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return int(text.rstrip("U"), 0)
    if re.fullmatch(r"-?\d+\.\d*", text):
        return struct.unpack("<Q", struct.pack("<d", float(text)))[0]
    return None


class Rows:
    """Names of a kernel, and the instructions that use them.

    Args:
        lookup: the machine's number of an instruction, -1 where it knows none.
    """

    def __init__(self, lookup: Callable[[str], int]) -> None:
        self.lookup = lookup
        self.instructions: list[dict[str, Any]] = []
        self.operands: list[Row] = []
        self.lines: list[Line] = []
        self.rows: dict[str, int] = {}  # row's name -> bytes a lane
        self.constants: dict[str, tuple[int, int]] = {}  # row's name -> bits, bytes
        self.symbols: dict[str, int] = {}
        self.tables: dict[str, list[str]] = {}  # targets of indexed branches
        self.scopes: list[dict[str, str]] = [{}]
        self.scope_number = 0
        self.line = Line(0, "")
        self.guard: tuple[str, bool] | None = None

    def declare(self, kind: str, names: str) -> None:
        """``.reg`` in the scope that is open: single names, or ``%r<100>``."""
        for name in map(str.strip, names.split(",")):
            ranged = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
            if ranged:
                for i in range(int(ranged[2])):
                    self.scopes[-1][f"{ranged[1]}{i}"] = f"{ranged[1]}{i}"
                    self.rows[f"{ranged[1]}{i}"] = BYTES[kind]
            else:
                unique = f"{name}@{self.scope_number}" if len(self.scopes) > 1 else name
                self.scopes[-1][name] = unique
                self.rows[unique] = max(2, BYTES[kind]) if kind != "pred" else 0

    def register(self, name: str) -> str | None:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    def constant(self, value: int, width: int) -> Row:
        bits = value & (1 << 8 * width) - 1 if width else (2**32 - 1 if value & 1 else 0)
        key = f"#{width}:{bits:x}"
        self.constants[key] = (bits, width)
        return key, width

    def value(self, text: str, width: int) -> Row:
        """An operand's row. ``width``: of a number, in bytes."""
        text = text.strip()
        if text == "_":
            self.rows.setdefault(f"_{width}", width)
            return f"_{width}", width
        name = self.register(text)
        if name is not None:
            return name, self.rows[name]
        if text in SPECIALS:
            return text, 4
        number = immediate(text)
        if number is not None:
            if re.match(r"-?\d+\.\d*$", text) and width == 4:
                number = struct.unpack("<I", struct.pack("<f", float(text)))[0]
            return self.constant(number, width)
        symbol, _, offset = text.partition("+")
        if symbol.strip() in self.symbols:
            return self.constant(self.symbols[symbol.strip()] + int(offset or "0", 0), width)
        raise Unsupported(f"operand {text!r}")

    def values(self, texts: list[str], widths: int | list[int]) -> list[Row]:
        widths = [widths] * len(texts) if isinstance(widths, int) else widths
        return [self.value(text, width) for text, width in zip(texts, widths, strict=True)]

    def group(self, text: str, width: int) -> list[Row]:
        """Rows of ``{%a, %b}``, or of a single operand."""
        inside = text.strip()[1:-1] if text.strip().startswith("{") else text
        return [self.value(each, width) for each in split(inside)]

    def address(self, text: str) -> tuple[Row, int]:
        """Row of the base and the offset of ``[%base+offset]``."""
        pattern = r"([%\w$.@]+)\s*(?:([+-])\s*(-?\d+|0x[0-9a-fA-F]+))?"
        base, sign, offset = re.fullmatch(pattern, text.strip()[1:-1].strip()).groups()
        return self.value(base, 8), int(f"{sign or '+'}1") * int(offset or "0", 0)

    def emit(self, key: str, rows: list[Row], **fields: Any) -> None:
        """Append an instruction, by the machine's name of it."""
        number = self.lookup(key)
        if number < 0:
            raise Unsupported(f"instruction {key}")
        first, count = len(self.operands), len(rows)
        self.instructions.append(dict(op=number, first=first, count=count, guard=self.guard, **fields))
        self.operands += rows
        self.lines.append(self.line)
