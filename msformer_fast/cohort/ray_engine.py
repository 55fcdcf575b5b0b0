"""The same tasks on a Ray cluster: each a Ray task, CPUs, GPUs and memory as its resources."""

from __future__ import annotations

import platform
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from msformer_fast.cohort.job import run_task
from msformer_fast.cohort.journal import Line
from msformer_fast.cohort.memory import network_bytes, process_bytes
from msformer_fast.cohort.plan import free_bytes
from msformer_fast.cohort.seen import refused_by_node
from msformer_fast.cohort.task import Task
from msformer_fast.cohort.workers import ATTEMPTS, died, prepare
from msformer_fast.errors import BackendError, DivergenceError, InputError, OutputError
from msformer_fast.files import show
from msformer_fast.version import __version__

# Tasks handed to Ray beyond those that run: the nodes never wait for the driver.
_AHEAD = 4
# Seconds in which an address answers, and in which Ray joins the cluster there: left alone it tries for a quarter of an
# hour.
_ANSWERS, _JOINS = 5.0, 20.0
_JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
except Exception as error:
    print("refused:", " ".join(str(error).split())[:300] or type(error).__name__, flush=True)
    sys.exit(1)
"""
_TOKEN = (
    "it asks for its token: set RAY_AUTH_MODE=token, and have the token in ~/.ray/auth_token, or in the file or the "
    "variable that RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN name"
)


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
        """See :meth:`msformer_fast.cohort.workers.LocalEngine.run`.

        Raises:
            InputError: no cluster is there, or it has too little for one task.
            BackendError: a node cannot do the work: without this package, or too little memory to try the settings.
        """
        waiting = iter(tasks)
        first = next(waiting, None)
        if first is None:
            return
        ray, ours = self._ray, not self._ray.is_initialized()
        if ours:
            self._connect()
        pending: dict[Any, Task] = {}
        tried: dict[str, int] = {}
        again: list[Task] = [first]
        try:
            options = self._resources(first)
            check = ray.remote(_check).options(**options)
            self._check_version(self._fetch(check.remote(self._threads, dict(first.settings))))
            work = ray.remote(_work).options(**options)
            slots = _slots(options, ray.cluster_resources())
            while not self._kill.is_set():
                while len(pending) < slots + _AHEAD and not stop.is_set():
                    task = again.pop() if again else next(waiting, None)
                    if task is None:
                        break
                    pending[work.remote(self._threads, task)] = task
                if not pending:
                    return
                done, _ = ray.wait(list(pending), timeout=0.5)
                for reference in done:
                    task = pending.pop(reference)
                    try:
                        yield self._fetch(reference)
                    except _Died as error:
                        tried[task.path] = tried.get(task.path, 0) + 1
                        if tried[task.path] < ATTEMPTS:
                            again.append(task)
                        else:
                            yield died(task, f"the process that did it died ({error.kind})")
        except _Died as error:  # of the check
            raise BackendError(
                f"engine: the process that tried the settings on a node died ({error.kind}); is there memory enough on "
                "the nodes of the cluster?"
            ) from None
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            if ours:
                ray.shutdown()

    def _connect(self) -> None:
        # "local": else the environment may name a cluster that nobody asked for.
        how: dict[str, Any] = {"address": "local", "configure_logging": False, "include_dashboard": False}
        if self._address is not None:
            _refuse_unreachable(self._address)
            how = {"address": self._address}
        elif self._jobs is not None:
            how["num_cpus"] = self._jobs * self._threads
        try:
            self._ray.init(log_to_driver=False, **how)
        except Exception as error:  # of a dozen types, one for each of Ray's parts
            raise _unreachable(str(error) or type(error).__name__) from error

    def _check_version(self, node: tuple[str, str]) -> None:
        name, version = node
        if version != __version__:
            raise BackendError(
                f"engine: the node {show(name)} has msformer-fast {version}, this machine {__version__}; install the "
                "same on all"
            )

    def _resources(self, task: Task) -> dict[str, Any]:
        """What one task reserves: Ray runs no more of them on a node than these allow."""
        cluster = self._ray.cluster_resources()
        gpus = self._share if self._share is not None else 0.5 if cluster.get("GPU") else 0
        memory = process_bytes() + (0 if gpus else network_bytes(task.settings, "cpu"))
        options = {"num_cpus": self._threads, "num_gpus": gpus, "memory": memory}
        # Ray itself would try again without end where memory is short.
        options["max_retries"] = 0
        for name, needed in (("CPU", self._threads), ("memory", memory), ("GPU", gpus)):
            if cluster.get(name, 0) < needed:
                raise InputError(
                    f"engine: a task needs {needed:g} of {name}, the whole cluster has {cluster.get(name, 0):g}"
                )
        return options

    def _fetch(self, reference: Any) -> Any:
        """The result; an error of ours as itself, not as Ray wraps it.

        Raises:
            _Died: the process that did it, or its node.
            BackendError: the node cannot do it at all.
        """
        known = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except known.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, InputError | OutputError | BackendError | DivergenceError):
                raise type(cause)(str(cause)) from None
            raise _incapable(cause or error) from error
        except (known.WorkerCrashedError, known.OutOfMemoryError, known.NodeDiedError, known.ObjectLostError) as error:
            raise _Died(type(error).__name__) from error
        except known.RayError as error:
            raise _incapable(error) from error


class _Died(Exception):
    """The process that did a task is no more, or its node."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def _incapable(error: BaseException) -> BackendError:
    """Of what a node raises outside of our own work: a package that is not there, above all."""
    text = str(error)
    missing = re.search(r"No module named '?[\w.]+'?", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    why = missing[0] if missing else lines[-1][:300]
    return BackendError(
        f"engine: a node of the cluster cannot do the work ({type(error).__name__}: {why}); install the same version "
        "of msformer-fast, with what it needs, on every node"
    )


def _unreachable(why: str) -> InputError:
    return InputError(f"ray_address: no cluster could be reached or started ({' '.join(why.split())[:300]})")


def _refuse_unreachable(address: str) -> None:
    """Raises InputError where no cluster can be joined, soon: first asked for an answer at all, then tried in a process
    that can be ended."""
    found = re.fullmatch(r"(?:ray://)?(?:\[([^\]]+)\]|([^:/]+)):(\d+)/?", address)
    if found is not None:
        try:
            socket.create_connection((found[1] or found[2], int(found[3])), timeout=_ANSWERS).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise _unreachable(
                f"nothing answers at {show(address)}: {getattr(error, 'strerror', None) or error}"
            ) from None
    process = subprocess.Popen(
        [sys.executable, "-c", _JOIN, address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(_JOINS, end)
    timer.start()
    why = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "InvalidAuthToken" in line:  # Ray goes on trying, with the token that it has, or with none
                raise _unreachable(f"{show(address)}: {_TOKEN}")
            if line.startswith("refused:"):
                why = line.removeprefix("refused:")
        process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.communicate()
    if late.is_set():
        raise _unreachable(
            f"no cluster of Ray at {show(address)} within {_JOINS:.0f} seconds, or one that asks for a token without "
            "saying so: RAY_AUTH_MODE=token sends yours"
        )
    if process.returncode:
        raise _unreachable(why or f"Ray ended with exit code {process.returncode} at {show(address)}")


def _slots(options: dict[str, Any], cluster: dict[str, float]) -> int:
    """How many tasks that reserve so much run at once."""
    reserved = {"CPU": options["num_cpus"], "memory": options["memory"], "GPU": options["num_gpus"]}
    return max(1, int(min(cluster.get(name, 0) // each for name, each in reserved.items() if each)))


def _check(threads: int, settings: dict[str, Any]) -> tuple[str, str]:
    """Try the settings; the node's name and its version of this package."""
    prepare(threads, None, settings)
    return platform.node(), __version__


def _work(threads: int, task: Task) -> Line:
    from msformer_fast.process import set_threads

    refused = refused_by_node(task)
    if refused is not None:
        return refused
    set_threads(threads)
    return run_task(replace(task, budget=free_bytes()))
