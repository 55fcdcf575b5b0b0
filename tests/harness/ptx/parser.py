"""PTX text, parsed into the arrays that the machine runs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.harness.ptx.divergence import meetings
from tests.harness.ptx.instructions import Arithmetic, Exchanges, Matrices
from tests.harness.ptx.program import (
    BYTES,
    INSTRUCTION,
    OPERAND,
    SPECIALS,
    Line,
    Program,
    Unsupported,
    offsets_of,
)
from tests.harness.ptx.rows import split


class _Parser(Arithmetic, Exchanges, Matrices):
    def __init__(self, text: str, lookup: Callable[[str], int]) -> None:
        super().__init__(lookup)
        files = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)
        self.files = {number: os.path.basename(path) for number, path in files}
        self.labels: dict[str, int] = {}
        self.last_label = ""
        self.source = ""

    def location(self, text: str) -> None:
        """``.loc``: the source line of what follows, and the line that called it."""
        places = [re.search(r"\.loc\s+(\d+)\s+(\d+)", text), re.search(r"inlined_at\s+(\d+)\s+(\d+)", text)]
        named = [f"{self.files.get(place[1], '?')}:{place[2]}" for place in places if place]
        if places[0][2] != "0":
            self.source = ", called from ".join(named)

    def body(self, lines: list[tuple[int, str]]) -> None:
        """Statements end in a semicolon, wherever that is; labels and scopes may stand before them."""
        pending, first = "", 0
        for number, text in lines:
            text = text.strip()
            if re.match(r"\.loc\s", text):
                self.location(text)
                continue
            text = text.split("//")[0].strip()
            while text:
                label = None if pending else re.match(r"(\$?[\w$]+):\s*", text)
                if label:
                    self.last_label = label[1]
                    self.labels[label[1]] = len(self.instructions)
                    text = text[label.end() :]
                elif not pending and text[0] == "{":
                    self.scope_number += 1
                    self.scopes.append({})
                    text = text[1:].strip()
                elif not pending and text[0] == "}":
                    self.scopes.pop()
                    text = text[1:].strip()
                elif ";" in text:
                    head, text = (part.strip() for part in text.split(";", 1))
                    whole = " ".join(f"{pending} {head}".split())
                    self.line = Line(first if pending else number, whole, self.source)
                    pending = ""
                    if whole:
                        self.statement(whole)
                else:
                    first = first if pending else number
                    pending, text = f"{pending} {text}".strip(), ""

    def statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self.declare(*re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text).groups())
            return
        if text.startswith((".pragma", ".local")):  # a use of local memory is refused where it comes
            return
        if text.startswith(".branchtargets"):
            self.tables[self.last_label] = split(text.removeprefix(".branchtargets").strip())
            return
        if text.startswith("."):
            raise Unsupported(text)

        self.guard = None
        guarded = re.match(r"@(!?)([%\w.$]+)\s+", text)
        if guarded:
            name = self.register(guarded[2])
            if name is None:
                raise Unsupported(f"guard {guarded[2]}")
            self.guard = (name, bool(guarded[1]))
            text = text[guarded.end() :]
        opcode, _, operands = text.partition(" ")
        try:
            self.instruction(opcode, split(operands.strip()))
        except Unsupported as error:
            raise Unsupported(f"PTX line {self.line.number}: {text}: {error}") from None
        except (KeyError, StopIteration, IndexError, ValueError, TypeError, AttributeError) as error:
            raise Unsupported(f"PTX line {self.line.number}: {text} ({type(error).__name__}: {error})") from error

    def instruction(self, opcode: str, ops: list[str]) -> None:
        name, *parts = opcode.split(".")
        method = getattr(self, f"on_{name}", None)
        if method is None:
            self.plain(name, parts, ops)
        else:
            method([part for part in parts if not part.startswith(("L1::", "L2::", "level::"))], ops)

    def finish(self, name: str, params: list[tuple[str, str]], threads: int) -> Program:
        """Give every row its place, and write the records."""
        self.line, self.guard = Line(0, "end of kernel"), None
        self.emit("exit", [])

        places, registers_at, size = self._places()
        image = np.zeros(size, np.uint8)
        for key, (bits, width) in self.constants.items():
            row = np.full(32, bits, f"u{width}") if width else np.array([bits], np.uint32)
            image[places[key] : places[key] + row.nbytes] = row.view(np.uint8)

        code = np.zeros(len(self.instructions), INSTRUCTION)
        for record, fields in zip(code, self.instructions, strict=True):
            self._fill(record, fields, places)
        branches = np.flatnonzero(code["op"] == self.lookup("bra"))
        ends = np.flatnonzero(code["op"] == self.lookup("exit"))
        for branch, meeting in meetings(code, branches, ends).items():
            code[branch]["imm"] = meeting

        return Program(
            name=name,
            params=params,
            code=code,
            operands=np.array([(places[row], width) for row, width in self.operands], OPERAND),
            image=image,
            registers_at=registers_at,
            specials=[places[key] for key in SPECIALS],
            shared_granule=self.granules[1],
            global_granule=self.granules[0],
            threads=threads,
            lines=self.lines,
        )

    def _places(self) -> tuple[dict[str, int], int, int]:
        """Where each row lies, where registers begin, and the bytes of all: constants, special registers, registers."""
        places, at = {}, 0
        for key, (_, width) in self.constants.items():
            places[key] = at
            at = -(-(at + 32 * max(width, 1)) // 64) * 64
        for key in SPECIALS:
            places[key] = at
            at += 32 * 4
        registers_at = at
        for key, width in sorted(self.rows.items(), key=lambda row: row[1] == 0):
            places[key] = at
            at += 32 * width if width else 4
        return places, registers_at, -(-at // 64) * 64

    def _fill(self, record: np.void, fields: dict[str, Any], places: dict[str, int]) -> None:
        for field, value in fields.items():
            if field == "guard":
                record["guard"] = -1 if value is None else places[value[0]]
                record["negated"] = value is not None and value[1]
            elif field == "target" and isinstance(value, str):
                record["target"] = self.labels[value]
            else:
                record[field] = value


def parse(text: str, lookup: Callable[[str], int]) -> Program:
    """The kernel of a PTX module.

    Args:
        text: of the module, which holds one kernel.
        lookup: the machine's number of an instruction, -1 where it knows none.

    Raises:
        Unsupported: the machine cannot run it; the message names the line.
    """
    lines = list(enumerate(text.splitlines(), start=1))
    parser = _Parser(text, lookup)
    entry = next(i for i, (_, line) in enumerate(lines) if ".entry" in line)
    for _, line in lines[:entry]:
        if line.startswith(".extern .shared"):
            parser.symbols[re.search(r"([\w$]+)\[\]", line)[1]] = 0
        elif re.match(r"\.(visible\s+|weak\s+)?\.?func", line):
            raise Unsupported(f"a function: {line}")
        elif line.startswith(".shared"):
            raise Unsupported(f"shared memory of the module's own: {line}")

    name = re.search(r"\.entry\s+([\w$]+)", lines[entry][1])[1]
    start = next(i for i in range(entry, len(lines)) if lines[i][1].strip() == "{")
    end = next(i for i in range(start, len(lines)) if lines[i][1].rstrip() == "}")
    head = "\n".join(line for _, line in lines[entry:start])

    params = []
    for declaration in re.findall(r"\.param\s+([^,()]*?)(?=,|\n\)|\)|$)", head, re.S):
        words = declaration.split()
        kind = words[0].lstrip(".")
        if kind not in BYTES:
            raise Unsupported(f"parameter {declaration}")
        params.append((kind, words[-1]))
    for (_, param), at in zip(params, offsets_of([kind for kind, _ in params]), strict=False):
        parser.symbols[param] = at

    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", head)
    parser.body(lines[start + 1 : end])
    return parser.finish(name, params, int(threads[1]) if threads else 0)
