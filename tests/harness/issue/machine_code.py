"""The loops and branches of a kernel's SASS, and how many instructions a warp issues in a launch."""

from __future__ import annotations

import collections
import itertools
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.harness.issue.control_flow import Anchor, Place

#: Kinds of :mod:`tests.harness.issue.control_flow` as they read in SASS.
_KINDS = {
    "LDG": "load",
    "STG": "store",
    "LDGSTS": "copy",
    "HMMA": "matrix",
    "HGMMA": "matrix",
    "LDSM": "shared load",
    "SHFL": "shuffle",
    "BAR": "barrier",
    "MUFU.EX2": "exp2",
    "FFMA": "fma",
    "DFMA": "fma",
}
#: What says most surely how often a loop runs; the others are asked where it has none of these.
_SURE = ("load", "store", "copy", "matrix", "shared load", "shuffle", "barrier")
_TEXT = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
_FILE = re.compile(r'\s*//## File "[^"]*", line (\d+)')


@dataclass
class Stretch:
    """Code that a branch at its end repeats, a loop, or that one before it leaps over.

    Attributes:
        begin, end: of its instructions, the end included.
        repeats: a loop.
        inside: stretches in it.
        anchors: what is in it and in none inside, by kind and place, with how often it stands there.
        own: instructions that are in no stretch inside.
    """

    begin: int
    end: int
    repeats: bool
    inside: list[Stretch] = field(default_factory=list)
    anchors: collections.Counter[Anchor] = field(default_factory=collections.Counter)
    own: int = 0


class MachineCode:
    """The machine code of one kernel.

    Args:
        sass: as nvdisasm prints it, with the lines of the source and of inlined calls (``-gi -c``).
    """

    def __init__(self, sass: str) -> None:
        self._code: list[tuple[str, str, Place]] = []
        self._labels: dict[str, int] = {}
        self._parse(sass)
        self._standing: collections.Counter[Anchor] = collections.Counter()  # in all of it
        self.whole = self._stretches()

    def issued(self, executed: Mapping[Anchor, int]) -> float:
        """Instructions that a warp issues.

        Args:
            executed: how often it executes what both codes have.

        Raises:
            ValueError: a loop has nothing that tells how often it runs.
        """

        return sum(times * stretch.own for stretch, times in self.times(executed))

    def times(self, executed: Mapping[Anchor, int]) -> Iterator[tuple[Stretch, float]]:
        """Every stretch, and how often a warp runs it."""

        def within(stretch: Stretch, times: float) -> Iterator[tuple[Stretch, float]]:
            yield stretch, times
            for inner in stretch.inside:
                found = _times(inner, self._standing, executed)
                if found is None and inner.repeats:
                    raise ValueError(
                        f"nothing in the loop at instructions {inner.begin} to {inner.end} tells how often it runs"
                    )
                # What is leapt over at times runs no more often than what it stands in.
                yield from within(inner, found if inner.repeats else times if found is None else min(found, times))

        return within(self.whole, 1.0)

    def _parse(self, sass: str) -> None:
        place: Place = (0,)
        fresh = True  # several lines about one place: the innermost, then the calls around it
        for line in sass.splitlines():
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                self._labels[label[1]] = len(self._code)
            elif at := _FILE.match(line):
                place = (int(at[1]),) if fresh else (*place, int(at[1]))
                fresh = False
            elif text := _TEXT.match(line):
                self._code.append((text[1], text[2], place))
                fresh = True
        while self._code[-1][0] == "NOP":  # what fills up after the end, with a branch to itself before it
            self._code.pop()
        if self._target(len(self._code) - 1) == len(self._code) - 1:
            self._code.pop()

    def _target(self, index: int) -> int | None:
        """Where a branch leads."""
        opcode, operands, _ = self._code[index]
        label = re.search(r"`\((\.L_x_\d+)\)", operands)
        return self._labels[label[1]] if opcode.startswith("BRA") and label else None

    def _stretches(self) -> Stretch:
        loops: dict[int, int] = {}
        leaps = []
        # Behind the last exit stands what is for warps that are not whole, where BRA.DIV leads: none are here.
        end_of_all = max((index for index, (opcode, _, _) in enumerate(self._code) if opcode == "EXIT"), default=0)
        for index in range(end_of_all):
            to = self._target(index)
            if to is not None and to <= index:
                loops[to] = max(index, loops.get(to, index))
            elif to is not None and to > index + 1 and not self._code[index][0].startswith("BRA.DIV"):
                leaps.append((index + 1, to - 1, False))
        whole = Stretch(0, len(self._code) - 1, repeats=False)
        stack = [whole]
        # The outermost of those that begin together first, a loop before what is leapt over in it.
        found = sorted(
            [*((begin, end, True) for begin, end in loops.items()), *leaps], key=lambda s: (s[0], -s[1], not s[2])
        )
        for begin, end, repeats in found:
            while stack[-1].end < begin:
                stack.pop()
            if not repeats and end > stack[-1].end:  # out of a loop, or across another leap
                continue
            stretch = Stretch(begin, min(end, stack[-1].end), repeats)
            stack[-1].inside.append(stretch)
            stack.append(stretch)
        self._fill(whole)
        return whole

    def _fill(self, stretch: Stretch) -> None:
        inside = {index for inner in stretch.inside for index in range(inner.begin, inner.end + 1)}
        for index in range(stretch.begin, stretch.end + 1):
            if index in inside:
                continue
            opcode, _, place = self._code[index]
            stretch.own += 1
            kind = next((kind for start, kind in _KINDS.items() if _is(opcode, start)), None)
            if kind is not None:
                stretch.anchors[kind, place] += 1
                self._standing[kind, place] += 1
        for inner in stretch.inside:
            self._fill(inner)


def _is(opcode: str, start: str) -> bool:
    return opcode == start or opcode.startswith(f"{start}.")


def _times(stretch: Stretch, standing: Mapping[Anchor, int], executed: Mapping[Anchor, int]) -> float | None:
    """How often a stretch runs, by a vote of what stands in it: the times that it is executed over the times that it
    stands in the whole code; ``None`` where nothing tells. What stands elsewhere too, since the assembler split a loop,
    is asked last."""
    known = {anchor: count for anchor, count in stretch.anchors.items() if anchor in executed}
    for alone, kinds in itertools.product((True, False), (_SURE, tuple(_KINDS.values()))):
        votes = [
            executed[anchor] / standing[anchor]
            for anchor, count in known.items()
            if anchor[0] in kinds and (standing[anchor] == count or not alone)
            for _ in range(count)
        ]
        if votes:
            return statistics.median(votes)
    # Else no more often than the loops in it, or as often as what is leapt over least.
    found = [(inner.repeats, _times(inner, standing, executed)) for inner in stretch.inside]
    loops = [times for repeats, times in found if repeats and times is not None]
    leaps = [times for repeats, times in found if not repeats and times is not None]
    return min(loops) if loops else max(leaps, default=None)
