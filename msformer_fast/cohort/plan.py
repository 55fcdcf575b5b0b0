"""How many processes a run has, and what each of them may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msformer_fast.cohort.memory import available_bytes, network_bytes, process_bytes
from msformer_fast.errors import InputError
from msformer_fast.process import usable_cores

# Of the memory that is there, so much is left to others.
_LEFT = 0.1
_MOST_IN_FLIGHT = 4
# What a CUDA context and its libraries take of a GPU, for each process.
_CONTEXT = 700 * 10**6


def free_bytes() -> int:
    """What a run may take of the memory that is there, so that others have some too."""
    return int((1 - _LEFT) * available_bytes())


class Plan:
    """How many processes, with how many threads and how much memory each."""

    def __init__(
        self, settings: Mapping[str, Any], jobs: int | None, threads: int | None, max_memory: int | None, tasks: int
    ) -> None:
        self.jobs = max(1, min(jobs or 1, tasks))
        self.threads = threads
        if threads is None and self.jobs > 1:
            self.threads = max(1, usable_cores() // self.jobs)
        whole = free_bytes() if max_memory is None else max_memory
        self.budget = whole // self.jobs - process_bytes()
        if self.budget <= 0:
            raise InputError(
                f"jobs: {self.jobs} processes in {whole / 1e9:.1f} GB leave none for images; try fewer jobs"
            )
        self._settings, self._tasks = settings, tasks

    def with_gpus(self, free: tuple[int, ...]) -> int:
        """Processes for GPUs with so much free memory: several share one, so that it is not idle while masks are chosen
        and written."""
        device, _, number = str(self._settings.get("device") or "").partition(":")
        if device == "cuda":  # one of them was named; without a number the first
            free = free[int(number or 0) :][:1]
        if not free or device not in ("", "cuda"):
            return self.jobs
        each = network_bytes(self._settings, "cuda") + _CONTEXT
        fitting = int((1 - _LEFT) * min(free)) // each
        in_flight = max(1, min(fitting, _MOST_IN_FLIGHT, usable_cores() // len(free)))
        return min(len(free) * in_flight, max(1, self._tasks))
