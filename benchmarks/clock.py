"""How a call is timed and looked into: seconds on its own device, peak memory, launches."""

from __future__ import annotations

import copy
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

#: Bytes written between two timed calls on a GPU, where its second-level cache does not say its size.
FLUSH = 256 << 20


#: Seconds that the device is kept busy while the host queues a call: at first, and at most.
HEAD_START, MOST_START = 1e-3, 0.2


class Clock:
    """Seconds of one call on a device.

    On a GPU CUDA events stand around the call and the second-level cache is overwritten before it, so that inputs come
    from memory as they would in a model. On the CPU inputs much smaller than its caches stay there, as in a model of
    that size.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        ahead: on a GPU, let the host queue the whole call while the device is kept busy, so that what counts is the
            device's work and not the host's launches, however short the kernels are. Without, the host's own work
            counts where the device waits for it, as a user of eager code sees it.

    Attributes:
        late: calls, since the start, that the host could not queue ahead of the device, because they wait for it.
    """

    def __init__(self, device: str, ahead: bool = True) -> None:
        self.device, self.ahead, self.late = device, ahead, 0
        self._flush: torch.Tensor | None = None
        self._start, self._cycles = HEAD_START, 0.0
        if device == "cuda":
            cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
            self._flush = torch.empty(max(4 * cache, FLUSH) // 4, dtype=torch.int32, device="cuda")

    def beside(self, ahead: bool) -> Clock:
        """A clock of the same device, that shares what it overwrites the cache with."""
        clock = copy.copy(self)
        clock.ahead = ahead
        return clock

    def flush(self) -> None:
        """Overwrite what a GPU's second-level cache holds."""
        if self._flush is not None:
            self._flush.zero_()

    def seconds(self, call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        """Of one call, on the device's own clock.

        Args:
            before: what must be done, untimed, before every call; there are several where the host was late.
        """
        if self.device != "cuda":
            before()
            start = time.perf_counter()
            result = call()
            seconds = time.perf_counter() - start
            del result  # freeing is the caller's, not the call's
            return seconds
        while True:
            before()
            self.flush()
            torch.cuda.synchronize()
            if self.ahead:
                self._sleep(self._start)
            seconds, in_time = self._between(call)
            if in_time or not self.ahead:
                return seconds
            if self._start >= MOST_START:
                self.late, self._start = self.late + 1, HEAD_START
                return seconds
            self._start = min(4 * self._start, MOST_START)

    def _between(self, call: Callable[[], object]) -> tuple[float, bool]:
        """Seconds between events around a call, and whether it was all queued before the device came to it."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        in_time = not before.query()
        after.synchronize()
        return before.elapsed_time(after) / 1e3, in_time

    def _sleep(self, seconds: float) -> None:
        """Keep the device busy, by its own cycles, which are counted once."""
        if not self._cycles:
            cycles = 10_000_000
            for _ in range(2):  # the first finds its clocks low
                spent, _ = self._between(lambda: torch.cuda._sleep(cycles))
            self._cycles = cycles / spent
        torch.cuda._sleep(int(seconds * self._cycles))

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def in_turn(
    clock: Clock,
    calls: Sequence[tuple[Callable[[], object], Callable[[], object]]],
    *,
    budget: float,
    least: int = 5,
    most: int = 51,
) -> list[list[float]]:
    """Seconds of several calls, timed in turn, round by round, so that a slow moment of the machine meets all of them.

    Every round has an order of its own: what a call leaves behind (caches, threads that wait) meets another each time.
    Two rounds go before the first that counts; one where it took the whole budget alone, and then three rounds are
    enough.

    Args:
        calls: pairs of what is timed and what is done untimed before it.
        budget: seconds for everything; the rounds are between ``least`` and ``most``.
    """
    found: list[list[float]] = [[] for _ in calls]
    order, draw = list(range(len(calls))), random.Random(0)
    started, rounds, number = time.perf_counter(), most, -2
    while number < rounds:
        draw.shuffle(order)
        for index in order:
            call, before = calls[index]
            seconds = clock.seconds(call, before)
            if number >= 0:
                found[index].append(seconds)
        if number == -2 and time.perf_counter() - started > budget:
            number, rounds = -1, min(least, 3)
        elif number == -1:
            one = (time.perf_counter() - started) / 2
            rounds = min(most, max(least, int(budget / max(one, 1e-9))))
        number += 1
    return found


class Inside(NamedTuple):
    """What one call does.

    Attributes:
        peak_bytes: most memory that PyTorch's tensors held above what they held before; None where unknown.
        launches: of kernels on the device; None on the CPU.
        device_seconds: sum over these kernels; None on the CPU.
    """

    peak_bytes: int | None
    launches: int | None
    device_seconds: float | None


def look_inside(device: str, call: Callable[[], object], before: Callable[[], object]) -> Inside:
    """One call under PyTorch's profiler, which on a GPU reads CUPTI."""
    if device == "cuda":
        before()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        result: object = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - held
        del result
        before()
        kernels = [e for e in _trace(call, device) if e.get("cat") in ("kernel", "gpu_memset", "gpu_memcpy")]
        if not kernels:  # no permission to read the counters, or a build without CUPTI
            return Inside(peak, None, None)
        return Inside(peak, len(kernels), sum(event["dur"] for event in kernels) / 1e6)
    before()
    held_now = most = 0
    changes = [e for e in _trace(call, device) if e.get("name") == "[memory]"]
    for event in sorted(changes, key=lambda e: e["ts"]):
        held_now += event["args"]["Bytes"]
        most = max(most, held_now)
    return Inside(most, None, None)


def _trace(call: Callable[[], object], device: str) -> list[dict[str, Any]]:
    """Events of a call, in the format that browsers show."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, profile_memory=device == "cpu") as profiler:
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


class Ceilings(NamedTuple):
    """What the device was seen to do: bytes a second of a large copy (read and write), operations a second of a large
    product, by dtype."""

    bandwidth: float
    operations: dict[str, float]

    def seconds(self, moved: int, flops: int, dtype: str) -> float:
        """The least that so many bytes and operations take."""
        return max(moved / self.bandwidth, flops / self.operations[dtype])


def measure_ceilings(
    clock: Clock, dtypes: Sequence[str], megabytes: int | None = None, width: int | None = None
) -> Ceilings:
    """Both ceilings, the best of several tries each.

    Args:
        megabytes: of the tensor that is copied; far more than any cache holds.
        width: of the square matrices.
    """
    gpu = clock.device == "cuda"
    size = (megabytes or (1024 if gpu else 256)) << 20
    source = torch.ones(size // 4, device=clock.device)
    target = torch.empty_like(source)
    copies = [clock.seconds(lambda: target.copy_(source)) for _ in range(7)]
    operations = {}
    n = width or (8192 if gpu else 2048)
    for dtype in dtypes:
        a, b = (torch.randn(n, n, device=clock.device).to(getattr(torch, dtype)) for _ in range(2))
        tries = [clock.seconds(lambda a=a, b=b: a @ b) for _ in range(5)]  # type: ignore[misc]
        operations[dtype] = 2 * n**3 / min(tries[1:])
    return Ceilings(2 * size / min(copies[1:]), operations)
