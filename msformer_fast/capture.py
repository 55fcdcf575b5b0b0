"""How the work of an iteration reaches its device: at once, queued on a stream, or replayed as CUDA graphs."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from msformer_fast.errors import BackendError, InputError
from msformer_fast.nn.hooks import is_looked_at

#: Whether a loop replays its iterations as CUDA graphs: where it can and gains by it, or an error, or never.
CAPTURES = ("auto", "always", "never")

#: Iterations that run as they are before the capture: kernels compile, libraries take their workspaces, and the
#: optimiser makes its buffers.
WARM_UP = 3

_log = logging.getLogger("msformer_fast")

R = TypeVar("R")


class Launched(NamedTuple):
    """What forward, losses and backward of an iteration leave behind.

    Attributes:
        read: waits for the numbers that were sent to the host, and gives them.
        maps: the label map of this forward (B, H, W), and what else the step gives; the next replay overwrites them.
    """

    read: Callable[[], list[float]]
    maps: tuple[Tensor, ...]


class Step(Protocol):
    """The two parts of an iteration, and its forward alone; none waits for the device."""

    def forward_backward(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Numbers for the host (1-D), and the maps: the label map first."""

    def update(self) -> None:
        """The optimiser's step on the gradients."""

    def clear(self) -> None:
        """Drop the gradients' tensors."""

    def maps(self) -> tuple[Tensor, ...]:
        """The maps of a forward without a backward."""


class Device(Protocol):
    """Where work is queued.

    Attributes:
        overlaps: whether work is queued and goes on while the host does something else.
        why_no_graphs: why work cannot be captured here, as a sentence, or ``None``.
    """

    overlaps: bool
    why_no_graphs: str | None

    def running(self) -> AbstractContextManager[None]:
        """Everything inside is queued in order; at the end all of it is done."""

    def send(self, values: Tensor) -> Callable[[], list[float]]:
        """Start to copy values to the host; the result waits for them. At most two are under way."""

    def record(self, part: Callable[[], R]) -> tuple[R, Callable[[], None]]:
        """What ``part`` returns, with tensors that every call of the second result fills anew. Nothing runs yet."""


class HostDevice:
    """A device that is done with a call when the call returns."""

    overlaps = False

    def __init__(self, device: torch.device) -> None:
        self.why_no_graphs: str | None = f"CUDA graphs need a CUDA or HIP device; the image is on {device}"

    def running(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def send(self, values: Tensor) -> Callable[[], list[float]]:
        return values.tolist

    def record(self, part: Callable[[], R]) -> tuple[R, Callable[[], None]]:
        raise BackendError(self.why_no_graphs)


class CudaDevice:
    """A CUDA or HIP device, on a stream of its own, since a graph cannot be captured on the default one."""

    overlaps = True
    why_no_graphs: str | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _streams.of(device)
        self._pool: Any = None
        self._slots: list[tuple[Tensor, torch.cuda.Event]] = []
        self._sent = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                self._stream.synchronize()

    def send(self, values: Tensor) -> Callable[[], list[float]]:
        if not self._slots:
            host = torch.empty((2, *values.shape), dtype=values.dtype, pin_memory=True)
            self._slots = [(row, torch.cuda.Event()) for row in host]
        row, event = self._slots[self._sent % 2]
        self._sent += 1
        row.copy_(values, non_blocking=True)
        event.record(self._stream)

        def read() -> list[float]:
            event.synchronize()
            return row.tolist()

        return read

    def record(self, part: Callable[[], R]) -> tuple[R, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those that load images, may go on allocating.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
            result = part()
        self._pool = graph.pool()
        return result, graph.replay


class _Streams(threading.local):
    """Each thread's own, one a device for all its loops: cuBLAS keeps a workspace for every stream that it has seen."""

    def __init__(self) -> None:
        self._made: dict[torch.device, torch.cuda.Stream] = {}

    def of(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._made:
            self._made[device] = torch.cuda.Stream(device)
        return self._made[device]


_streams = _Streams()


def device_of(tensor: Tensor) -> Device:
    """Where work on this tensor is queued."""
    return CudaDevice(tensor.device) if tensor.device.type == "cuda" else HostDevice(tensor.device)


class _Graphs(NamedTuple):
    """Replays of the two parts of an iteration, and the tensors that the first fills."""

    forward_backward: Callable[[], None]
    update: Callable[[], None]
    results: tuple[Tensor, tuple[Tensor, ...]]


class Runner:
    """Runs the iterations of a loop on a device, from the fourth on as two graphs where they are asked for.

    Args:
        step: the two parts of an iteration.
        device: where they are queued.
        captures: replay graphs.
        must: raise where capturing fails; else the loop goes on as it was, with nothing lost.
    """

    def __init__(self, step: Step, device: Device, captures: bool, must: bool) -> None:
        self._step = step
        self._device = device
        self._captures = captures
        self._must = must
        self._iterations = 0
        self._graphs: _Graphs | None = None

    def forward_backward(self) -> Launched:
        """Queue forward, losses and backward of the next iteration."""
        if self._captures and self._iterations == WARM_UP:
            self._graphs = self._capture()
        self._iterations += 1
        if self._graphs is None:
            values, maps = self._step.forward_backward()
        else:
            self._graphs.forward_backward()
            values, maps = self._graphs.results
        return Launched(self._device.send(values), maps)

    def update(self) -> None:
        """Queue the optimiser's step behind it."""
        if self._graphs is None:
            self._step.update()
            # Here, not before the next backward: the next forward need not share the memory with these.
            self._step.clear()
        else:
            self._graphs.update()

    def maps(self) -> tuple[Tensor, ...]:
        """Queue a forward more, the same pass as an iteration's, for its maps; see :class:`Launched`."""
        if self._graphs is None:
            return self._step.maps()
        # Its backward is not needed, but a forward beside the graph would take memory of its own.
        self._graphs.forward_backward()
        return self._graphs.results[1]

    def _capture(self) -> _Graphs | None:
        handled = sys.exc_info()[1]
        try:
            # No gradient is there: those made while capturing stay where they are, and a replay writes them anew.
            results, forward_backward = self._device.record(self._step.forward_backward)
            _, update = self._device.record(self._step.update)
        except Exception as error:
            self._step.clear()
            reason = f"the loop could not be captured as CUDA graphs ({_cause(error, handled)})"
            if self._must:
                raise BackendError(f"self_guide: {reason}; use capture='never'") from error
            _log.info("self_guide: %s; it goes on without", reason)
            return None
        return _Graphs(forward_backward, update, results)


def captures(capture: str, model: nn.Module, device: Device, iterations: int) -> bool:
    """Whether to capture this loop.

    Raises:
        InputError: ``capture`` is none of :data:`CAPTURES`.
        BackendError: it is ``"always"``, and the loop cannot be captured; the message says why.
    """
    check_capture(capture)
    if capture == "never":
        return False
    reason = device.why_no_graphs or _why_not(model)
    if capture == "always" and reason is not None:
        raise BackendError(f"self_guide: capture='always' cannot be: {reason}")
    # A capture costs about an iteration on the host.
    gains = iterations > 2 * WARM_UP or (capture == "always" and iterations > WARM_UP)
    return reason is None and gains


def check_capture(capture: str) -> None:
    """Raises InputError unless ``capture`` is a known name."""
    if capture not in CAPTURES:
        raise InputError(f"capture must be one of {', '.join(CAPTURES)}; got {capture!r}")


def _why_not(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        if is_looked_at(module):
            return f"{name or 'the model'} has hooks or a forward of its own, which a replay does not call"
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return f"{name} has hooks, which a replay does not call"
    if nn.modules.module._has_any_global_hook():
        return "there are hooks on every module, which a replay does not call"
    return None


def _cause(error: BaseException, handled: BaseException | None) -> str:
    """First line of the error that came first, but for what the caller was handling: ending a capture that failed
    raises one more."""
    while error.__context__ is not None and error.__context__ is not handled:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]
