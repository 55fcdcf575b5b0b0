"""How often each instruction of a kernel's PTX is executed, from the launch's arguments alone.

Only what decides branches is computed: counters of loops, numbers of tiles, the program's place in the grid. A branch
that depends on data or on the thread is not taken, so that both its ways count where they lie one behind the other.
"""

from __future__ import annotations

import bisect
import collections
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

#: Line that an instruction was made of, then the lines of the calls that were inlined around it, the nearest first.
Place = tuple[int, ...]
#: What an instruction does, and its place.
Anchor = tuple[str, Place]

#: Kinds of PTX instructions that the assembler makes one machine instruction of, by how they begin.
KINDS = {
    "ld.global": "load",
    "st.global": "store",
    "cp.async.ca": "copy",
    "cp.async.cg": "copy",
    "mma.sync": "matrix",
    "wgmma.mma_async": "matrix",
    "ldmatrix": "shared load",
    "shfl.sync": "shuffle",
    "bar.sync": "barrier",
    "barrier.sync": "barrier",
    "ex2.approx": "exp2",
    "fma.rn.f32": "fma",
    "fma.rn.f64": "fma",
}


_REGISTER = re.compile(r"%[\w.]+")


class _Instruction(NamedTuple):
    """One instruction.

    Attributes:
        guard: ``"%p3"``, ``"!%p3"``, or nothing.
        opcode, operands, place: as it stands.
        kind: of those in :data:`KINDS`, or nothing.
        is_scalar: whether :func:`_value` computes it, if its sources are known.
    """

    guard: str
    opcode: str
    operands: tuple[str, ...]
    place: Place
    kind: str
    is_scalar: bool

    def sources(self) -> list[str]:
        """Registers that it reads."""
        return _REGISTER.findall(" ".join((self.guard, *self.operands[1:])))

    def results(self) -> list[str]:
        """Registers that it writes."""
        writes = self.operands and not self.opcode.startswith(("st.", "bra"))
        return _REGISTER.findall(self.operands[0]) if writes else []


class ControlFlow:
    """The control flow of one kernel.

    Args:
        ptx: as Triton makes it, with the lines of the source.
    """

    def __init__(self, ptx: str) -> None:
        self._code: list[_Instruction] = []
        self._labels: dict[str, int] = {}
        # LLVM says where loops begin, in a comment at the label or in the lines after it.
        self._headers = set(re.findall(r"^([$\w]+):(?:\s*//[^\n]*\n)*?\s*//[^\n]*Loop Header", ptx, re.MULTILINE))
        self._parse(ptx)
        self._followed = self._slice()

    def executed(self, parameters: Sequence[int], program: Sequence[int], grid: Sequence[int]) -> dict[Anchor, int]:
        """How often a warp executes what both codes have, by kind and place.

        Args:
            parameters: of the compiled kernel in their order; for pointers and floats any number.
            program: its place in the grid, three numbers.
            grid: the programs along each axis, three numbers.

        Raises:
            ValueError: how often a loop runs depends on data.
        """
        known = {f"%ctaid.{axis}": at for axis, at in zip("xyz", program, strict=True)}
        known |= {f"%nctaid.{axis}": size for axis, size in zip("xyz", grid, strict=True)}
        times = self._run(parameters, known)
        found: collections.Counter[Anchor] = collections.Counter()
        for instruction, count in zip(self._code, times, strict=True):
            if instruction.kind:
                found[instruction.kind, instruction.place] += count
        return found

    def _parse(self, ptx: str) -> None:
        body = re.sub(r"//[^\n]*", "", ptx[ptx.index("{", ptx.index(".entry")) + 1 :])
        place: Place = (0,)
        calls: dict[tuple[str, ...], Place] = {}  # the latest place at each line and column
        for line in filter(None, (part.strip() for part in re.split(r"\n|(?<=;)", body))):
            if loc := re.match(r"\.loc\s+(\d+\s+\d+\s+\d+)(?:.*inlined_at\s+(\d+\s+\d+\s+\d+))?", line):
                at, call = (tuple(text.split()) if text else None for text in loc.groups())
                place = (int(at[1]), *(calls[call] if call else ()))
                calls[at] = place
            elif label := re.fullmatch(r"([$\w]+):", line):
                self._labels[label[1]] = len(self._code)
            elif text := re.fullmatch(r"\{?\s*(?:@(!?%?\w+)\s+)?([a-z][\w.:]*)\s*(.*);", line):
                guard, opcode, rest = text.groups(default="")
                operands = tuple(each.strip() for each in re.split(r",(?![^{]*\})", rest))
                kind = next((kind for start, kind in KINDS.items() if opcode.startswith(start)), "")
                self._code.append(_Instruction(guard, opcode, operands, place, kind, _is_scalar(guard, opcode)))

    def _slice(self) -> list[int]:
        """Where the branches stand, and what decides them, or spoils what does: an integer's register may be a load's
        too."""
        makers: dict[str, list[int]] = collections.defaultdict(list)
        for index, each in enumerate(self._code):
            for name in each.results():
                makers[name].append(index)
        pending = {each.guard.lstrip("!") for each in self._code if each.opcode.startswith("bra")}
        decides = [False] * len(self._code)
        while pending:
            for index in makers.get(pending.pop(), ()):
                if not decides[index]:
                    decides[index] = True
                    pending.update(self._code[index].sources() if self._code[index].is_scalar else ())
        ends = ("bra", "ret", "exit")
        return [index for index, each in enumerate(self._code) if decides[index] or each.opcode.startswith(ends)]

    def _run(self, parameters: Sequence[int], known: dict[str, int]) -> list[int]:
        times = [0] * len(self._code)
        # Entries into straight runs of code, counted at their beginning and end.
        begins: collections.Counter[int] = collections.Counter()
        ends: collections.Counter[int] = collections.Counter()
        at, steps = 0, 0
        begins[0] += 1
        while at < len(self._followed):
            steps += 1
            assert steps < 10**6, "a loop that does not end"
            index = self._followed[at]
            each = self._code[index]
            if each.opcode.startswith("bra"):
                if self._is_taken(each, known):
                    ends[index] += 1
                    start = self._labels[each.operands[0]]
                    begins[start] += 1
                    at = bisect.bisect_left(self._followed, start)
                    continue
                if each.operands[0] in self._headers and each.guard.lstrip("!") not in known:
                    raise ValueError(f"how often the loop to {each.operands[0]} runs depends on data")
            elif each.opcode.startswith(("ret", "exit")):
                if self._is_taken(each, known):
                    ends[index] += 1
                    break
            elif each.is_scalar and all(source in known for source in each.sources()):
                known[each.operands[0]] = _value(each, known, parameters)
            else:
                for name in each.results():
                    known.pop(name, None)
            at += 1
        else:
            ends[len(self._code) - 1] += 1
        running = 0
        for index in range(len(self._code)):
            running += begins[index]
            times[index] = running
            running -= ends[index]
        return times

    def _is_taken(self, branch: _Instruction, known: Mapping[str, int]) -> bool:
        if not branch.guard:
            return True
        value = known.get(branch.guard.lstrip("!"))
        return value is not None and bool(value) is not branch.guard.startswith("!")


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    **dict.fromkeys(("lt", "lo"), lambda a, b: a < b),
    **dict.fromkeys(("le", "ls"), lambda a, b: a <= b),
    **dict.fromkeys(("gt", "hi"), lambda a, b: a > b),
    **dict.fromkeys(("ge", "hs"), lambda a, b: a >= b),
}
_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "min": min,
    "max": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "div": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),  # towards zero
    "rem": lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
}


def _is_scalar(guard: str, opcode: str) -> bool:
    name, *suffixes = opcode.split(".")
    if guard or (name == "ld" and suffixes[:1] != ["param"]):
        return False
    if name not in (*_BINARY, *("ld", "selp", "setp", "mov", "cvt", "cvta", "not", "neg", "abs", "mad")):
        return False
    return not any(re.fullmatch(r"[bf]?f\d+(x2)?|b?f16x2|sat|rn", suffix) for suffix in suffixes)


#: Address of a kernel's first parameter, in 32 bits; each takes one. A branch may choose which of two is loaded.
_PARAMETERS = 1 << 20


def _operand(text: str, known: Mapping[str, int]) -> int:
    if text.startswith("%"):
        return known[text]
    parameter = re.search(r"_param_(\d+)$", text)
    return _PARAMETERS + int(parameter[1]) if parameter is not None else int(text.rstrip("U"), 0)


def _value(each: _Instruction, known: Mapping[str, int], parameters: Sequence[int]) -> int:
    name, *suffixes = each.opcode.split(".")
    if name == "ld":
        return parameters[_operand(each.operands[1].strip("[]"), known) - _PARAMETERS]

    a, *others = (_operand(text, known) for text in each.operands[1:])
    kind = suffixes[-1]
    if name == "selp":
        return a if others[1] else others[0]
    if name == "setp":
        return int(_COMPARE[suffixes[0]](_wrapped(a, kind), _wrapped(others[0], kind)))
    if name in ("mov", "cvt", "cvta"):
        return _wrapped(a, suffixes[0] if name == "cvt" else kind)
    if name in ("not", "neg", "abs"):
        return int(not a) if kind == "pred" else _wrapped({"not": ~a, "neg": -a, "abs": abs(a)}[name], kind)
    if name in ("mul", "mad"):
        product = _wrapped(a, kind) * _wrapped(others[0], kind)
        wide = {"s32": "s64", "u32": "u64", "s16": "s32", "u16": "u32"}[kind] if "wide" in suffixes else kind
        if "hi" in suffixes:
            product >>= int(kind[1:])
        return _wrapped(product + (others[1] if name == "mad" else 0), wide)
    if kind == "pred":
        return _BINARY[name](a, others[0]) & 1
    unsigned = kind.replace("b", "u")  # bits shift as an unsigned number
    right = others[0] if name in ("shl", "shr") else _wrapped(others[0], unsigned)
    return _wrapped(_BINARY[name](_wrapped(a, unsigned), right), kind)


def _wrapped(value: int, kind: str) -> int:
    """As a number of this kind of integer; a predicate as it is."""
    if kind == "pred":
        return value
    bits = int(kind[1:])
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] in "sb" and value >> (bits - 1) else value
