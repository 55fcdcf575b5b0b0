"""Devices that capture and run late, on the CPU: what CUDA graphs and a stream do to a loop, without a GPU."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

R = TypeVar("R")

#: Operators whose result the host must wait for.
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim", "item"}

#: What batch norms write without saying so in their schema.
UNDECLARED = {"running_mean", "running_var"}


def name_of(func: Any) -> str:
    return func._schema.name.split("::")[-1]


def _tensors(value: Any) -> list[Tensor]:
    return [each for each in tree_flatten(value)[0] if isinstance(each, Tensor)]


class Tape(TorchDispatchMode):
    """Operators as they ran, with their very tensors: a replay fills those anew and decides nothing.

    As a capture runs nothing, what was written in place while recording is put back at the end, and what was made holds
    rubbish until a replay. An operator that makes the host wait is refused; not inside a registered op, which is one
    call here (``without_data`` looks there).
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if name_of(func) in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or argument.name in UNDECLARED:
                for tensor in _tensors(value):
                    self._before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        result = func(*args, **kwargs)
        self._calls.append((func, args, kwargs, result))
        return result

    def rewind(self) -> None:
        """Put back what was written in place, and spoil what was made."""
        with torch.no_grad():
            for tensor, before in self._before.values():
                tensor.copy_(before)
            for args, result in ((call[1:3], call[3]) for call in self._calls):
                for tensor in _made(args, result):
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
        self._before.clear()

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, result in self._calls:
                fresh = func(*args, **kwargs)
                made = {id(tensor) for tensor in _made((args, kwargs), result)}
                for old, new in zip(_tensors(result), _tensors(fresh), strict=True):
                    if id(old) in made:
                        old.copy_(new)


def _made(given: Any, result: Any) -> list[Tensor]:
    """Results with memory of their own, not views of what was given."""
    known = {tensor.untyped_storage().data_ptr() for tensor in _tensors(given)}
    return [t for t in _tensors(result) if t.numel() and t.untyped_storage().data_ptr() not in known]


class FakeDevice:
    """Runs calls at once and captures by a tape; ``fails`` breaks the capture of that number."""

    overlaps = True
    why_no_graphs: str | None = None

    def __init__(self, fails: int | None = None) -> None:
        self.records = 0
        self.replays = 0
        self._fails = fails

    def running(self) -> Any:
        return contextlib.nullcontext()

    def send(self, values: Tensor) -> Callable[[], list[float]]:
        return values.clone().tolist

    def record(self, part: Callable[[], R]) -> tuple[R, Callable[[], None]]:
        tape = Tape()
        try:
            with tape:
                result = part()
                if self.records == self._fails:
                    raise RuntimeError("operation not permitted when stream is capturing")
        except RuntimeError:
            # As PyTorch does when it ends the capture.
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            tape.rewind()
        self.records += 1

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return result, replay


class SlowDevice(FakeDevice):
    """Replays wait in a queue for a thread of their own, which does not start on an iteration before the numbers of the
    one before were read: a host that waited for more would wait for ever.

    Attributes:
        log: what the host did, in order: ("launch", n), ("send", n), ("read", n) and ("operator", name).
    """

    def __init__(self, patience: float = 60.0) -> None:
        super().__init__()
        self.log: list[tuple[str, Any]] = []
        self.stuck = False
        self._patience = patience
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue()
        self._read = [threading.Event() for _ in range(1000)]
        self._sent = 0
        self._launched = 0

    def running(self) -> Any:
        return self._running()

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                with contextlib.suppress(queue.Empty):
                    self._queue.get(timeout=0.01)()
                    self._queue.task_done()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            with _InOrder(self):
                yield
        finally:
            self._queue.join()
            stop.set()
            thread.join()

    def drain(self, operator: str) -> None:
        """An operator of the host's own comes behind everything queued."""
        if threading.current_thread() is threading.main_thread():
            self.log.append(("operator", operator))
            self._queue.join()

    def send(self, values: Tensor) -> Callable[[], list[float]]:
        number, copied, found = self._sent, threading.Event(), []
        self._sent += 1
        self.log.append(("send", number))

        def copy() -> None:
            found.extend(values.tolist())
            copied.set()

        self._queue.put(copy)

        def read() -> list[float]:
            self.stuck |= not copied.wait(self._patience)
            self._read[number].set()
            self.log.append(("read", number))
            return found

        return read

    def record(self, part: Callable[[], R]) -> tuple[R, Callable[[], None]]:
        result, replay = super().record(part)
        first = self.records == 1

        def launch() -> None:
            number = self._sent
            if not first:
                self._queue.put(replay)
                return
            self.log.append(("launch", number))

            def late() -> None:
                self.stuck |= not self._read[number - 1].wait(self._patience)
                replay()

            self._queue.put(late)

        return result, launch


class _InOrder(TorchDispatchMode):
    def __init__(self, device: SlowDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._device.drain(name_of(func))
        return func(*args, **(kwargs or {}))
