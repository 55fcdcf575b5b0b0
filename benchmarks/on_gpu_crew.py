"""Processes that take one task at a time: a crash or a hang costs the task in hand, nothing else.

A task and its reply are one line of JSON each, on pipes of their own; what a process prints goes to a log file.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Task = dict[str, Any]


class Ended(NamedTuple):
    """A task that is over: its reply, or why there is none."""

    task: Task
    reply: dict[str, Any] | None
    failure: str = ""


class Member:
    """One process and the task that it has in hand."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        read, write = os.pipe()
        with open(log, "ab") as said:
            self.process = subprocess.Popen(
                [*command, "--reply", str(write)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=(write,),
            )
        os.close(write)
        os.set_blocking(read, False)
        self.replies, self.task, self.ends = read, None, float("inf")  # type: int, Task | None, float
        self._text = b""

    def give(self, task: Task, seconds: float) -> None:
        """Begin a task; it hangs where it takes longer than so many seconds."""
        self.task, self.ends = task, time.monotonic() + seconds
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has just ended: the pipe's end tells

    def lines(self) -> tuple[list[bytes], bool]:
        """Whole lines that have arrived, and whether the process has closed the pipe."""
        closed = False
        while not closed:
            try:
                part = os.read(self.replies, 1 << 20)
            except BlockingIOError:
                break
            closed = not part
            self._text += part
        *found, self._text = self._text.split(b"\n")
        return found, closed

    def end(self) -> int:
        """Kill it; the exit code."""
        self.process.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        os.close(self.replies)
        return self.process.wait()


class Crew:
    """So many processes, each replaced when it ends.

    Args:
        command: starts one; ``--reply FD`` is added, where it writes its replies.
        count: of processes.
        log: file that what they print is added to.
    """

    def __init__(self, command: Sequence[str], count: int, log: Path) -> None:
        self._command, self._log = list(command), log
        self._members = [Member(command, log) for _ in range(count)]

    def idle(self, alone: bool = False) -> list[tuple[Member, bool | None]]:
        """Those without a task; beside each, where ``alone``, whether it is the first, which is kept for some tasks."""
        alone = alone and len(self._members) > 1
        numbered = enumerate(self._members)
        return [(member, number == 0 if alone else None) for number, member in numbered if member.task is None]

    def wait(self, seconds: float) -> list[Ended]:
        """Tasks that end within so many seconds; at once when the first does."""
        with selectors.DefaultSelector() as selector:
            for member in self._members:
                selector.register(member.replies, selectors.EVENT_READ, member)
            soonest = min(member.ends for member in self._members) - time.monotonic()
            ready = {key.data for key, _ in selector.select(max(0.0, min(seconds, soonest)))}
        found = []
        for member in list(self._members):
            hangs = time.monotonic() > member.ends
            if member not in ready and not hangs:
                continue
            lines, closed = member.lines()
            for line in lines:
                if member.task is not None:
                    reply = json.loads(line)
                    found.append(Ended(member.task, reply))
                    member.task, member.ends, hangs = None, float("inf"), False
                    closed = closed or bool(reply.get("stop"))
            if closed or hangs:
                task, code = member.task, member.end()
                if task is not None:
                    found.append(Ended(task, None, "it hung" if hangs else f"its process ended with code {code}"))
                self._members[self._members.index(member)] = Member(self._command, self._log)
        return found

    def stop(self) -> None:
        for member in self._members:
            member.end()
        self._members = []


def serve(reply: int, work: Any) -> None:
    """The other end: ``work(task)`` for every line on the standard input, until it closes or a reply says stop."""
    import sys

    for line in sys.stdin:
        answer = work(json.loads(line))
        text = json.dumps(answer).encode() + b"\n"
        while text:
            text = text[os.write(reply, text) :]
        if answer.get("stop"):
            return
