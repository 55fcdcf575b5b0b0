"""A registered op's body, called without PyTorch's dispatcher in eager mode.

The dispatcher takes some 60 microseconds to reach a custom op in Python, and as long again for its gradient: more than
the kernels of small maps take.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.identities.transforms import transformed
from msformer_fast.ops.derivative import Derivative
from msformer_fast.ops.signature import Function

#: Tensors without an answer of their own to a registered op, which subclasses may have.
_PLAIN = (Tensor, nn.Parameter)
#: Devices whose tensors hold data.
_DEVICES = ("cpu", "cuda")


class _Call(torch.autograd.Function):
    """A call that will be differentiated. Autograd sees the tensors beside the arguments that hold them."""

    @staticmethod
    def forward(
        ctx: Any, body: Function, derivative: Derivative, arguments: tuple[Any, ...], counts: list[int], *_: Tensor
    ) -> Any:
        output = body(*arguments)
        derivative.setup_context(ctx, arguments, output)
        ctx.derivative, ctx.counts = derivative, counts
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return (None, None, None, None, *chain.from_iterable(ctx.derivative.of_tensors(ctx, grads, ctx.counts)))


def eagerly(registered: Function, body: Function, derivative: Derivative | None = None, name: str = "") -> Function:
    """A function that calls a registered op, by its body alone where nobody but autograd would learn of the op.

    Args:
        registered: the op. Its arguments are the function's and the body's.
        derivative: what autograd calls; without one the registered op says what becomes of gradients.
        name: what autograd's graph shows, with a derivative.
    """
    recorded: Any = None if derivative is None else type(name, (_Call,), {})

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return registered(*arguments)
        held = [_tensors(value) for value in arguments]
        tensors = [*chain.from_iterable(held)]
        differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if not _unwatched(tensors) or (differentiated and recorded is None):
            return registered(*arguments)
        if not differentiated:
            return body(*arguments)
        return recorded.apply(body, derivative, arguments, [len(some) for some in held], *tensors)

    return call


def _unwatched(tensors: Sequence[Tensor]) -> bool:
    """Whether no tracer, mode, profiler or transform is at work, and no tensor is more than data."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch._C._autograd._profiler_enabled()
        and not transformed()
        and all(type(tensor) in _PLAIN and tensor.device.type in _DEVICES for tensor in tensors)
    )


def _tensors(value: Any) -> list[Tensor]:
    """The tensors that an argument of a registered op is, or lists."""
    return [each for each in (value if isinstance(value, (list, tuple)) else (value,)) if isinstance(each, Tensor)]
