"""The choice of backend: the fastest that can run, or the one that was asked for, or the reason why not."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from msformer_fast.errors import BackendError, InputError
from msformer_fast.identities.transforms import transformed
from msformer_fast.tracing import constant_result

#: Every backend, the fastest on a device first.
BACKENDS = ("triton", "native", "torch", "reference")

#: Those that ``None`` tries on a device. Triton's interpreter on the CPU is for tests.
_ON_CPU = ("native", "torch", "reference")
_ON_OTHERS = ("triton", "torch", "reference")

#: dtypes that the kernels take on a GPU.
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: The first version of Triton that compiles every kernel.
OLDEST_TRITON = (3, 3)

Refusal = Callable[[], str | None]

_log = logging.getLogger("msformer_fast")
_logged: set[str] = set()


def choose(op: str, backend: str | None, device: torch.device, why_not: Mapping[str, Refusal]) -> str:
    """Name of the backend that will run.

    Args:
        op: name of the op, for messages.
        backend: one of :data:`BACKENDS`, or ``None`` for the fastest that can run. On the CPU ``None`` never takes
            ``"triton"``, whose interpreter is for tests, and elsewhere never ``"native"``; for ``torch.export`` not
            ``"native"`` either, and for ``torch.onnx.export``, which knows PyTorch's operators alone, it takes
            ``"reference"``.
        device: of the op's tensors.
        why_not: for each backend but ``"reference"`` (which always can) a function that gives its refusal in
            one sentence, or ``None`` if it can run. A backend without one is not built.

    Raises:
        InputError: ``backend`` is no known name.
        BackendError: the backend asked for by name refuses.
    """
    if backend is None:
        if exporting_to_onnx():
            return "reference"
        for name in _ON_CPU if device.type == "cpu" else _ON_OTHERS:
            if name == "native" and not native_by_default():
                continue
            refusal = _refusal(op, name, why_not)
            if refusal is None:
                return name
            _log_once(refusal)
    if backend not in BACKENDS:
        raise InputError(f"{op}: backend must be None or one of {', '.join(BACKENDS)}; got {backend!r}")
    refusal = _refusal(op, backend, why_not)
    if refusal is not None:
        raise BackendError(refusal)
    return backend


def native_by_default() -> bool:
    """Whether ``None`` may take the CPU's kernels: not in a graph that is exported, for it may run where none were
    compiled."""
    return not (exporting_to_onnx() or torch.compiler.is_exporting())


def why_not_triton(op: str, *tensors: Tensor | None) -> str | None:
    """Why the kernels cannot run on these tensors, or ``None``: what every op asks before limits of its own."""
    given = [tensor for tensor in tensors if tensor is not None]
    device = given[0].device
    if not _installed():
        return f'{op}: backend="triton" needs the package triton, which is not installed'
    if device.type not in ("cuda", "cpu"):
        return f'{op}: backend="triton" needs a CUDA or HIP device; the tensors are on {device}'
    if device.type == "cpu" and not interpreting():
        return (
            f'{op}: backend="triton" needs a CUDA or HIP device; the tensors are on the CPU, where kernels run only in '
            "Triton's interpreter (TRITON_INTERPRET=1 before triton is imported), for tests"
        )
    if _triton_version() < OLDEST_TRITON:
        oldest, found = (".".join(map(str, version)) for version in (OLDEST_TRITON, _triton_version()))
        return f'{op}: backend="triton" needs Triton {oldest} or newer, which compiles every kernel; found {found}'
    if transformed():
        return (
            f'{op}: backend="triton" cannot run inside torch.func (grad, vjp, jvp, vmap) or forward-mode AD, for which '
            'the kernels have no rule; use backend="torch" or "reference", or None, which falls back to them'
        )
    dtypes = {tensor.dtype for tensor in given}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        return f'{op}: backend="triton" needs all tensors in one dtype; got {names}'
    (dtype,) = dtypes
    if dtype == torch.float64 and device.type == "cpu":
        return None
    if dtype not in KERNEL_DTYPES:
        return f'{op}: backend="triton" takes float32, bfloat16 and float16; got {dtype}'
    return None


def why_not_native(op: str, *tensors: Tensor | None) -> str | None:
    """Why the CPU kernels cannot run on these tensors, or ``None``."""
    given = [tensor for tensor in tensors if tensor is not None]
    device = given[0].device
    if device.type != "cpu":
        return f'{op}: backend="native" runs on the CPU; the tensors are on {device}'
    missing = _why_no_library()
    if missing is not None:
        return f'{op}: backend="native" cannot run: {missing}'
    if transformed():
        return (
            f'{op}: backend="native" cannot run inside torch.func (grad, vjp, jvp, vmap) or forward-mode AD, for which '
            'the kernels have no rule; use backend="torch" or "reference", or None, which falls back to them'
        )
    if torch.is_autocast_enabled("cpu"):
        return f'{op}: backend="native" computes in float32 alone, not under autocast'
    others = sorted({str(tensor.dtype) for tensor in given if tensor.dtype != torch.float32})
    if others:
        return f'{op}: backend="native" takes float32; got {", ".join(others)}'
    return None


@constant_result
def _why_no_library() -> str | None:
    from msformer_fast.kernels.native.library import why_not_built

    return why_not_built()


def over_limit(op: str, *limits: tuple[str, int, int]) -> str | None:
    """Why the kernels take no call of these widths (name, size, most), or ``None``."""
    for name, size, most in limits:
        if size > most:
            return f'{op}: backend="triton" takes at most {most} {name}, got {size}'
    return None


def why_not_torch(op: str, *tensors: Tensor | None) -> str | None:
    """Why the identities cannot run on these tensors, or ``None``."""
    given = [tensor for tensor in tensors if tensor is not None]
    dtypes = {tensor.dtype for tensor in given}
    if len(dtypes) > 1 and not torch.is_autocast_enabled(given[0].device.type):
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        return f'{op}: backend="torch" needs all tensors in one dtype outside of autocast; got {names}'
    for dtype in dtypes:
        if dtype not in (*KERNEL_DTYPES, torch.float64):
            return f'{op}: backend="torch" takes float64, float32, bfloat16 and float16; got {dtype}'
    return None


def runs_in_strips(tensor: Tensor) -> bool:
    """Whether the ``"torch"`` backend works on strips that stay in the cache: on the CPU, in dtypes of its own choice.

    Elsewhere, under autocast, inside ``torch.func`` and in forward-mode AD PyTorch differentiates an expression.
    """
    if tensor.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return not transformed()


@constant_result
def exporting_to_onnx() -> bool:
    """Whether ``torch.onnx.export`` records operators, by either of its exporters."""
    onnx = sys.modules.get("torch.onnx")  # who exports has imported it
    return onnx is not None and onnx.is_in_onnx_export()


@constant_result
def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@constant_result
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@constant_result
def _triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def _refusal(op: str, backend: str, why_not: Mapping[str, Refusal]) -> str | None:
    if backend == "reference":
        return None
    if backend not in why_not:
        return f'{op}: this version has no "{backend}" backend for this op; use backend="reference" or None'
    return why_not[backend]()


def _log_once(refusal: str) -> None:
    """Not while compiling: a log call would break the graph."""
    if not torch.compiler.is_compiling() and refusal not in _logged:
        _logged.add(refusal)
        _log.info(refusal)
