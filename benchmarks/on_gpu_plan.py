"""What is to be done next: kernels are compiled side by side first, pieces begin once theirs are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msformer_fast.benchmarks.on_gpu_units import Unit

Task = dict[str, Any]


@dataclass
class Plan:
    """The order of tasks. A task is ``{"do": "list" | "compile" | "piece", ...}``.

    Attributes:
        units: pieces, the most valuable first.
        compiles: whether kernels are compiled before the pieces that need them.
        pieces: that may run side by side, where none is timed.
        only_compile: do nothing else.
        compiled: seconds that each kernel took, by its name; ``broken``: why one did not compile.
        unfit: the same of candidates for tuning alone, where that is an answer and no fault.
        compile_seconds: until all of them were there, on the clock.
    """

    units: Sequence[Unit]
    compiles: bool
    pieces: int = 8
    only_compile: bool = False
    compiled: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    compile_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._open = [] if self.only_compile else list(self.units)
        self._unlisted = [unit for unit in self.units if self.compiles and unit.launches is not None]
        self._needs: dict[str, set[str]] = {unit.name: set() for unit in self.units}
        self._blocked = {unit.name for unit in self._unlisted}  # whose kernels are not known yet
        self._specs: dict[str, Task] = {}
        self._waiting: list[str] = []  # kernels to compile, in order
        self._missing: set[str] = set()  # kernels that are not there yet
        self._running: list[Task] = []

    @property
    def finished(self) -> bool:
        return not (self._open or self._running or (self.only_compile and self.kernels_open))

    @property
    def pieces_running(self) -> bool:
        """Whether a piece is under way."""
        return any(task["do"] == "piece" for task in self._running)

    @property
    def kernels_open(self) -> bool:
        """Whether something is still to be compiled."""
        return bool(self._blocked or self._missing)

    @property
    def times(self) -> bool:
        """Whether a piece is timed: one process is then kept for those, and warms up once."""
        return any(unit.timed for unit in self.units) and not self.only_compile

    def next(self, timer: bool | None = None) -> Task | None:
        """What an idle process begins now; None where it waits.

        Args:
            timer: whether it is the one that is kept for timed pieces, and does nothing else; None where it does all.
        """
        pieces = [task for task in self._running if task["do"] == "piece"]
        if any(task["quiet"] for task in pieces):
            return None
        for unit in self._open:
            if unit.name in self._blocked or self._needs[unit.name] & self._missing:
                continue
            if unit.quiet and self._running:
                return None  # let all others end
            if unit.timed and pieces:
                break  # one at a time, and in order
            if any(task["timed"] for task in pieces) or len(pieces) >= self.pieces:
                break
            if timer is not None and timer != unit.timed:
                break  # the other's
            self._open.remove(unit)
            return self._begin({"do": "piece", "unit": unit.name, "timed": unit.timed, "quiet": unit.quiet})
        if timer:
            return None
        if self._unlisted:
            return self._begin({"do": "list", "unit": self._unlisted.pop(0).name})
        if self._waiting:
            return self._begin({"do": "compile", **self._specs[self._waiting.pop(0)]})
        return None

    def _begin(self, task: Task) -> Task:
        self._running.append(task)
        return task

    def ended(self, task: Task, reply: dict[str, Any] | None, failure: str = "") -> None:
        """Take note of a task's end."""
        self._running.remove(task)
        if task["do"] == "list":
            self._blocked.discard(task["unit"])
            if reply is None or "error" in reply:
                self.broken[f"kernels of {task['unit']}"] = failure or str((reply or {})["error"])
            for spec in (reply or {}).get("kernels", ()):
                if spec["id"] not in self._specs:
                    self._specs[spec["id"]] = spec
                    self._waiting.append(spec["id"])
                    self._missing.add(spec["id"])
                self._needs[task["unit"]].add(spec["id"])
            # Those of the first pieces first.
            order = {key: i for i, unit in enumerate(reversed(self.units)) for key in self._needs[unit.name]}
            self._waiting.sort(key=lambda key: -order[key])
        elif task["do"] == "compile":
            self._missing.discard(task["id"])
            if reply is None or "error" in reply:
                users = [name for name, needed in self._needs.items() if task["id"] in needed]
                tried = all(name.startswith("tune/") for name in users)
                place = self.unfit if tried else self.broken
                place[task["text"]] = failure or str((reply or {})["error"])
            else:
                self.compiled[task["text"]] = reply["seconds"]
