"""The kernels that a call would launch, named without launching any, and compiled into Triton's own cache.

One process names them: :func:`recording` makes every launch note its specialisation and do nothing, so that the work
around it runs on garbage. Any process then compiles one with :func:`compile_spec`; a later launch finds it in the cache
on the disk. Without a card :func:`as_on` lets both be done for one by its architecture.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

Spec = dict[str, str]


@contextlib.contextmanager
def recording(found: dict[str, Spec]) -> Iterator[None]:
    """Inside, launches of kernels that this process has not compiled yet are noted, and nothing is launched."""

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        data = compile["specialization_data"]
        key = hashlib.sha256(data.encode()).hexdigest()[:16]
        found[key] = {"id": key, "module": fn.module, "name": fn.name, "data": data, "text": _text(fn.name, data)}
        return True  # "already compiled": Triton then returns without a launch

    with _hook(note):
        yield


def _text(name: str, data: str) -> str:
    """A kernel's name with what tells its compilations apart."""
    values = json.loads(data)
    kinds = sorted({kind for kind in values["signature"].values() if isinstance(kind, str) and kind.startswith("*")})
    options = values["options"]
    numbers = [str(v) for v in values["constant_vals"] if isinstance(v, int) and not isinstance(v, bool)]
    digest = hashlib.sha256(data.encode()).hexdigest()[:4]
    return f"{name} {' '.join(kinds)} {'.'.join(numbers)} w{options['num_warps']} s{options['num_stages']} {digest}"


@contextlib.contextmanager
def _hook(function: Any) -> Iterator[None]:
    """Triton asks this before it compiles."""
    import triton

    if hasattr(triton, "knobs"):
        with mock.patch.object(triton.knobs.runtime, "jit_cache_hook", function):
            yield
    else:
        from triton.runtime.jit import JITFunction

        with mock.patch.object(JITFunction, "cache_hook", staticmethod(function)):
            yield


def compile_spec(spec: Spec) -> float:
    """Compile one kernel into the cache; the seconds that it took.

    Raises:
        whatever the compiler does.
    """
    started = time.perf_counter()
    kernel = getattr(importlib.import_module(spec["module"]), spec["name"])
    kernel.preload(spec["data"])
    return time.perf_counter() - started


class _Driver:
    """What Triton asks of a driver before it launches."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def as_on(target: str) -> Iterator[None]:
    """Inside, launchers take tensors on the CPU for those of a card such as ``sm_90``, and Triton compiles for it;
    nothing can be launched."""
    from triton.runtime import driver

    from msformer_fast.benchmarks.without_data import as_on_a_card

    with contextlib.ExitStack() as stack:
        driver.set_active(_Driver(int(target.removeprefix("sm_"))))
        stack.callback(setattr, driver, "_active", None)
        stack.enter_context(mock.patch("msformer_fast.ops.backend.interpreting", return_value=True))
        stack.enter_context(as_on_a_card())
        yield
