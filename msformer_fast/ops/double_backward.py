"""Gradients that can be differentiated again, for ops whose own backward cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from msformer_fast.errors import BackendError


def wants_double_backward() -> bool:
    """Whether the backward that runs now is itself recorded (``create_graph=True``, ``torch.func.grad``)."""
    return torch.is_grad_enabled()


def differentiable_gradients(
    call: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor | None], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of ``call(*inputs)`` for every input, made by autograd of a plain expression, with their own graph.

    Args:
        call: the plain expression; its outputs answer to ``grads``.
        inputs: tensors and ``None``; an entry that needs no gradient gets ``None``.
        grads: gradients of the outputs.
    """
    # Views, so that one tensor given twice gets each place's own gradient.
    places = [None if value is None else value.view_as(value) for value in inputs]
    outputs = call(*places)
    wanted = [place for place in places if place is not None and place.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if place is not None and place.requires_grad else None for place in places]


def refuse_double_backward(op: str, backward: Any) -> None:
    """Have a registered backward say, where its results are differentiated, that they cannot be."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise BackendError(
            f'{op}: the gradient of backend="triton" cannot be differentiated again; use backend="torch" or "reference"'
        )

    backward.register_autograd(refuse)
