"""Products of float32 in tf32: what is left of an operand, and PyTorch's own products so on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Epsilon of tf32, which keeps 10 bits of the mantissa.
TF32_EPS = 2.0**-10

#: Operators that multiply matrices, and which of their arguments those are.
_OPERANDS = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::convolution": (0, 1),
    "aten::convolution_backward": (0, 1, 2),
}


def allowed() -> bool:
    """Whether :func:`torch.set_float32_matmul_precision` lets float32 products be tf32."""
    return torch.get_float32_matmul_precision() != "highest"


def epsilon(dtype: torch.dtype) -> float:
    """Epsilon of a dtype, as products have it."""
    return TF32_EPS if dtype == torch.float32 and allowed() else torch.finfo(dtype).eps


def truncated(tensor: Tensor) -> Tensor:
    """A float32 tensor without the 13 bits that tensor cores ignore; others as they are."""
    if tensor.dtype != torch.float32:
        return tensor
    return (tensor.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32)


class _Truncated(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = _OPERANDS.get(func._schema.name, ())
        names = [argument.name for argument in func._schema.arguments]
        depthwise = "groups" in names and args[names.index("groups")] > 1  # no product of matrices
        if chosen and not depthwise:
            args = tuple(truncated(arg) if index in chosen else arg for index, arg in enumerate(args))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def products_as_on_a_card(device: str) -> Iterator[None]:
    """Where tf32 is allowed, PyTorch's products on the CPU are as a card's, which are so by themselves."""
    with _Truncated() if allowed() and device == "cpu" else contextlib.nullcontext():
        yield
