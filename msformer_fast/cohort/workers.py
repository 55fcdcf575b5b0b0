"""Processes that do one task after another, each told apart from the others when it dies."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from msformer_fast.cohort.job import run_task
from msformer_fast.cohort.journal import Line
from msformer_fast.cohort.task import Task, unfinished
from msformer_fast.errors import BackendError, DivergenceError, InputError, OutputError

#: A task whose process died is tried this often: the process may have been killed for no fault of the image's.
ATTEMPTS = 2
_PR_SET_PDEATHSIG = 1
_ERRORS: dict[str, type[Exception]] = {
    each.__name__: each for each in (InputError, OutputError, BackendError, DivergenceError)
}


@dataclass(frozen=True)
class Greeting:
    """What a process says of itself once it is ready: of the first, the free memory in bytes of each GPU."""

    gpus: tuple[int, ...]


class Worker:
    """One process and the pipe to it. It ignores Ctrl-C, and dies with its parent."""

    def __init__(self, threads: int | None, memory: int | None, settings: Mapping[str, Any] | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), threads, memory, settings)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.task: Task | None = None
        self.ready: Greeting | None = None

    def give(self, task: Task) -> None:
        """Hand it a task; it may turn out to be dead when its answer is read."""
        self.task = task
        with contextlib.suppress(OSError):
            self.connection.send(("task", task))

    def answer(self) -> tuple[str, Any] | None:
        """What it has sent, or ``None`` if it died."""
        try:
            kind, value = self.connection.recv()
            return kind, value
        except (EOFError, OSError):
            self._process.join(timeout=10)
            return None

    def cause(self) -> str:
        """How it died, in words."""
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            return f"ended by {name}" + (", perhaps for its memory," if name == "SIGKILL" else "")
        return f"ended with exit code {code}"

    def stop(self, *, now: bool = False) -> None:
        """End it: when it has nothing to do, or at once."""
        if now:
            self._process.kill()
        self.connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class LocalEngine:
    """Does tasks in processes on this machine.

    Args:
        jobs: processes.
        threads: of PyTorch in each; ``None`` for its own choice.
        memory: bytes that each may take beyond its start, or ``None``; beyond, allocations fail.
        plan: how many processes, once the first has told of its GPUs; ``None`` to stay with ``jobs``.
    """

    def __init__(
        self,
        jobs: int,
        threads: int | None,
        memory: int | None = None,
        plan: Callable[[tuple[int, ...]], int] | None = None,
    ) -> None:
        self.jobs, self._threads, self._memory, self._plan = jobs, threads, memory, plan
        self._gpus: tuple[int, ...] = ()
        self._checked = False
        self._unready = 0
        self._workers: list[Worker] = []
        self._settings: Mapping[str, Any] = {}
        self._kill = threading.Event()

    def kill(self) -> None:
        """End all processes at once, also from a signal's handler; what they were at is left to be done again."""
        self._kill.set()

    def run(self, tasks: Iterable[Task], stop: threading.Event) -> Iterator[Line]:
        """The line of each task as it comes, in any order. No task is begun once ``stop`` is set.

        Raises:
            InputError, BackendError: settings that no image could be done with.
            OutputError: an output cannot be written.
        """
        waiting = iter(tasks)
        again: deque[Task] = deque()
        tried: dict[str, int] = {}
        first = next(waiting, None)
        if first is None:
            return
        again.append(first)
        # The first checks the settings with a step of its own; the others would do no more than repeat it.
        self._settings = first.settings
        self._workers = [self._worker(check=number == 0) for number in range(self.jobs)]
        try:
            while not self._kill.is_set():
                self._hand_out(waiting, again, stop)
                busy = [worker for worker in self._workers if worker.task is not None or worker.ready is None]
                if not busy or (stop.is_set() and all(worker.task is None for worker in self._workers)):
                    return
                for connection in wait([worker.connection for worker in busy], timeout=0.5):
                    worker = next(each for each in busy if each.connection is connection)
                    line = self._receive(worker, again, tried)
                    if line is not None:
                        yield line
        finally:
            for worker in self._workers:
                worker.stop(now=worker.task is not None or worker.ready is None)

    def _worker(self, *, check: bool = False) -> Worker:
        return Worker(self._threads, self._memory, self._settings if check else None)

    def _hand_out(self, waiting: Iterator[Task], again: deque[Task], stop: threading.Event) -> None:
        if not self._checked:
            return
        for slot, worker in enumerate(self._workers):
            if worker.ready is not None and worker.task is None and not stop.is_set():
                task = again.popleft() if again else next(waiting, None)
                if task is None:
                    return
                worker.give(self._on_device(task, slot))

    def _on_device(self, task: Task, slot: int) -> Task:
        if task.settings.get("device") is not None or not self._gpus:
            return task
        return replace(task, settings={**task.settings, "device": f"cuda:{slot % len(self._gpus)}"})

    def _receive(self, worker: Worker, again: deque[Task], tried: dict[str, int]) -> Line | None:
        answer = worker.answer()
        if answer is None:
            return self._bury(worker, again, tried)
        kind, value = answer
        if kind == "ready":
            worker.ready = value
            if worker is self._workers[0] and not self._checked:
                self._checked, self._gpus = True, value.gpus
                more = 0 if self._plan is None else self._plan(value.gpus) - len(self._workers)
                self._workers += [self._worker() for _ in range(more)]
            return None
        worker.task = None
        if kind == "line":
            line: Line = value
            return line
        name, message = value
        raise _ERRORS.get(name, RuntimeError)(message)

    def _bury(self, worker: Worker, again: deque[Task], tried: dict[str, int]) -> Line | None:
        """Put another process in its place, and its task back, unless that has cost two processes."""
        task, cause = worker.task, worker.cause()
        worker.stop()
        self._unready += worker.ready is None
        if self._unready > ATTEMPTS:
            raise BackendError(f"jobs: processes {cause} before they were ready; is there memory enough for so many?")
        slot = self._workers.index(worker)
        self._workers[slot] = self._worker(check=slot == 0 and not self._checked)
        if task is None:
            return None
        tried[task.path] = tried.get(task.path, 0) + 1
        if tried[task.path] < ATTEMPTS:
            again.append(task)
            return None
        return died(task, f"the process that did it {cause}")


def died(task: Task, why: str) -> Line:
    """The line of an image that costs every process that tries it."""
    return unfinished(task) | {"reason": f"{why}, {ATTEMPTS} times"}


def _serve(
    connection: Connection, parent: int, threads: int | None, memory: int | None, settings: Mapping[str, Any] | None
) -> None:
    """What the process does until its parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    try:
        greeting = prepare(threads, memory, settings)
    except Exception as error:
        connection.send(("error", (type(error).__name__, str(error))))
        return
    connection.send(("ready", greeting))
    while True:
        try:
            _, task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(("line", run_task(task)))
        except (OutputError, BackendError) as error:
            connection.send(("error", (type(error).__name__, str(error))))


def prepare(threads: int | None, memory: int | None, settings: Mapping[str, Any] | None) -> Greeting:
    """Allocator, threads and the memory's limit of a process of ours; checks the settings where they are given."""
    import torch

    from msformer_fast.process import keep_freed_memory, limit_memory, set_threads
    from msformer_fast.segmentation import check_settings

    keep_freed_memory()
    set_threads(threads)
    count = torch.cuda.device_count()
    gpus: tuple[int, ...] = ()
    if settings is not None:
        check_settings(**settings)
        # By the first process alone: to ask takes some memory of each GPU for good.
        gpus = tuple(torch.cuda.mem_get_info(each)[0] for each in range(count))
    if memory is not None and count == 0:
        limit_memory(memory)
    return Greeting(gpus)


def die_with(parent: int) -> None:
    """End this process when its parent ends, even by a signal that it cannot see: at once on Linux, else within a
    second. An orphan would write beside the run that goes on after it."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
