"""The same tasks on a Ray cluster: each a Ray task, CPUs, GPUs and memory as its resources."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from msformer_fast.cohort.job import Task, run_task
from msformer_fast.cohort.journal import Line
from msformer_fast.cohort.memory import network_bytes, process_bytes
from msformer_fast.cohort.plan import free_bytes
from msformer_fast.cohort.workers import died, prepare
from msformer_fast.errors import BackendError, DivergenceError, InputError, OutputError

# Tasks handed to Ray beyond those that run: the nodes never wait for the driver.
_AHEAD = 4
_RETRIES = 1


class RayEngine:
    """Does tasks on a cluster whose nodes see the same files under the same paths and have this package.

    Args:
        address: of the cluster (``"auto"``, ``"ray://host:port"``), or ``None`` to start one on this machine.
        jobs: tasks at once of a cluster that is started here; ``None`` for as many as cores.
        threads: of PyTorch in each, and the CPUs that a task reserves; ``None`` for 1.
        gpus: that a task reserves, also a part of one; ``None``: half a GPU where the cluster has any.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(
        self, address: str | None = None, jobs: int | None = None, threads: int | None = None, gpus: float | None = None
    ) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("engine: 'ray' needs Ray; install msformer-fast[ray]") from None
        self._ray: Any = ray
        self._address, self._jobs, self._threads, self._share = address, jobs, threads or 1, gpus
        self._kill = threading.Event()

    def kill(self) -> None:
        """Cancel all tasks at once; what they were at is left to be done again."""
        self._kill.set()

    def run(self, tasks: Iterable[Task], stop: threading.Event) -> Iterator[Line]:
        """See :meth:`msformer_fast.cohort.workers.LocalEngine.run`."""
        waiting = iter(tasks)
        first = next(waiting, None)
        if first is None:
            return
        ray, ours = self._ray, not self._ray.is_initialized()
        if ours:
            self._connect()
        pending: dict[Any, Task] = {}
        try:
            options = self._resources(first)
            check = ray.remote(_check).options(**options)
            self._fetch(check.remote(self._threads, dict(first.settings)))
            work = ray.remote(_work).options(**options)
            slots = _slots(options, ray.cluster_resources())
            next_task: Task | None = first
            while not self._kill.is_set():
                while next_task is not None and len(pending) < slots + _AHEAD and not stop.is_set():
                    pending[work.remote(self._threads, next_task)] = next_task
                    next_task = next(waiting, None)
                if not pending:
                    return
                done, _ = ray.wait(list(pending), timeout=0.5)
                for reference in done:
                    task = pending.pop(reference)
                    try:
                        yield self._fetch(reference)
                    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                        yield died(task, f"the process that did it died ({type(error).__name__})")
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            if ours:
                ray.shutdown()

    def _connect(self) -> None:
        how: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
        if self._address is not None:
            how = {"address": self._address, "log_to_driver": False}
        elif self._jobs is not None:
            how["num_cpus"] = self._jobs * self._threads
        try:
            self._ray.init(**how)
        except (ConnectionError, RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise InputError(f"ray_address: no cluster could be reached or started ({why})") from error

    def _resources(self, task: Task) -> dict[str, Any]:
        """What one task reserves: Ray runs no more of them on a node than these allow."""
        cluster = self._ray.cluster_resources()
        gpus = self._share if self._share is not None else 0.5 if cluster.get("GPU") else 0
        memory = process_bytes() + (0 if gpus else network_bytes(task.settings, "cpu"))
        options = {"num_cpus": self._threads, "num_gpus": gpus, "memory": memory, "max_retries": _RETRIES}
        for name, needed in (("CPU", self._threads), ("memory", memory), ("GPU", gpus)):
            if cluster.get(name, 0) < needed:
                raise InputError(
                    f"engine: a task needs {needed:g} of {name}, the whole cluster has {cluster.get(name, 0):g}"
                )
        return options

    def _fetch(self, reference: Any) -> Any:
        """The result; an error of ours as itself, not as Ray wraps it."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, InputError | OutputError | BackendError | DivergenceError):
                raise type(cause)(str(cause)) from None
            raise


def _slots(options: dict[str, Any], cluster: dict[str, float]) -> int:
    """How many tasks that reserve so much run at once."""
    reserved = {"CPU": options["num_cpus"], "memory": options["memory"], "GPU": options["num_gpus"]}
    return max(1, int(min(cluster.get(name, 0) // each for name, each in reserved.items() if each)))


def _check(threads: int, settings: dict[str, Any]) -> None:
    prepare(threads, None, settings)


def _work(threads: int, task: Task) -> Line:
    from msformer_fast.process import set_threads

    set_threads(threads)
    return run_task(replace(task, budget=free_bytes()))
