"""A variant of the step in a process of its own: heap and peak memory are this variant's alone."""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType


class Worker:
    """Runs the parts of ``benchmarks.step.prepare(pixels, variant)`` in a child process, one call at a time.

    Args:
        pixels: side of the image.
        variant: a name in ``benchmarks.step.VARIANTS``.
        keep_freed_memory: with the allocator's setting of the command line.
    """

    def __init__(self, pixels: int, variant: str, keep_freed_memory: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, pixels, variant, keep_freed_memory), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def run(self, part: str) -> float:
        """Seconds of one call of ``forward``, ``backward``, ``update`` or ``step``."""
        return self._ask(part)

    def peak_megabytes(self) -> float | None:
        """Peak resident memory since before the first call, above what was resident then; None where unknown."""
        return self._ask("peak")

    def _ask(self, what: str) -> float:
        self._pipe.send(what)
        return self._pipe.recv()  # type: ignore[no-any-return]


def _serve(pipe: Connection, pixels: int, variant: str, keep_freed_memory: bool) -> None:
    if keep_freed_memory:
        from msformer_fast.process import keep_freed_memory as keep

        if not keep():
            raise OSError("this platform's allocator cannot be told to keep freed memory")
    from benchmarks.step import prepare

    # A small step first, so that threads and libraries are counted as start, not as the step.
    prepare(65, variant, channels=8).step()
    parts = prepare(pixels, variant)
    before = _status("VmRSS")
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        if what == "peak":
            pipe.send(None if before is None else (_status("VmHWM") - before) / 1e6)
            continue
        started = time.perf_counter()
        getattr(parts, what)()
        pipe.send(time.perf_counter() - started)


def _status(name: str) -> int | None:
    """A figure of this process in bytes. Not getrusage: a child's peak there starts with its parent's."""
    if not sys.platform.startswith("linux"):
        return None
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024
