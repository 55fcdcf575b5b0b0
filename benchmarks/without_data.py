"""Calls on tensors without data: what they would launch and hold, on a card that is not here. Nothing is computed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pkgutil
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from msformer_fast import kernels

#: Card that the kernels' launchers are told of: multiprocessors and architecture of an H100.
MULTIPROCESSORS, TARGET = 132, "sm_90"


class LiveBytes(TorchDispatchMode):
    """Counts, inside a ``with`` block, the bytes of every storage that an operator makes, until it is freed.

    A view shares what it looks at; an operator in place makes nothing. Bodies of this package's registered ops are
    looked into. What an operator holds while it runs and does not return is not seen.

    Attributes:
        now: bytes that live.
        peak: the most that ever did since the start, or since :meth:`restart`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._held: dict[int, int] = {}

    def restart(self) -> None:
        """Look for the peak from here on."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "msformer_fast":
            with self:
                return OPDEFS[func.name()]._init_fn(*args, **kwargs)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **kwargs)
        for storage in _storages(out):
            key = storage._cdata
            if key not in self._held:
                if key in given:  # made before the block began
                    continue
                self._held[key] = 0
                weakref.finalize(storage, self._free, key).atexit = False
            self.now += storage.nbytes() - self._held[key]
            self._held[key] = storage.nbytes()
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, key: int) -> None:
        self.now -= self._held.pop(key)


def _storages(values: Any) -> list[Any]:
    return [value.untyped_storage() for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


@contextlib.contextmanager
def launches_given_to(function: Callable[..., None]) -> Iterator[None]:
    """Launchers of kernels run inside, on tensors of any device. A launch runs no kernel: ``function`` is called with
    the kernel, its arguments and ``grid=``. Nothing changes without triton."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    with contextlib.ExitStack() as stack:
        for kind in (InterpretedFunction, JITFunction):
            stack.enter_context(mock.patch.object(kind, "run", function))
        stack.enter_context(mock.patch("msformer_fast.ops.backend.interpreting", return_value=True))
        yield


@contextlib.contextmanager
def without_launches() -> Iterator[None]:
    """Launchers of kernels run inside; launches do nothing, and neither do calls of the CPU's kernels."""

    def nothing(*_: object, **__: object) -> None:
        """No mock object: it would keep the tensors that it is called with."""

    with launches_given_to(nothing), mock.patch("msformer_fast.kernels.native.library._call", nothing):
        yield


@contextlib.contextmanager
def as_on_a_card(multiprocessors: int = MULTIPROCESSORS, target: str = TARGET) -> Iterator[None]:
    """Launchers take tensors on the CPU for those of such a card."""
    # All of them first: one that was imported between two patches would keep what it then found.
    names = [found.name for found in pkgutil.iter_modules(kernels.__path__, "msformer_fast.kernels.")]
    modules = [importlib.import_module(name) for name in names]
    with contextlib.ExitStack() as stack:
        for module in modules:
            for name, value in (("multiprocessors_of", multiprocessors), ("target_of", target)):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, lambda device, value=value: value))
        yield
