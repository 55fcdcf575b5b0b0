"""An op registered with PyTorch from one statement of its arguments.

Eager calls, ``torch.compile``, ``torch.export`` and autograd each ask for an op's list of arguments. Here the signature
of its forward is that list; every other function of the op takes, by name, those of them that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msformer_fast.ops.derivative import Derivative, contiguous_like, refuse_double_backward
from msformer_fast.ops.eager import eagerly
from msformer_fast.ops.launch import launching, without_autocast
from msformer_fast.ops.signature import TENSORS, Function, Signature
from msformer_fast.tracing import hide_late

__all__ = ["contiguous_like", "register"]

NAMESPACE = "msformer_fast"


def register(
    op: str,
    *,
    forward: Function,
    outputs: Sequence[str],
    shapes: Function,
    backward: Function | None = None,
    gradients: Sequence[str] = (),
    gradient_shapes: Function | None = None,
    expression: Function | None = None,
) -> Function:
    """Register ``msformer_fast::<op>``; with a backward also ``msformer_fast::<op>_backward`` and what autograd needs.

    Annotations become the schema. A parameter may be a named tuple: it is a few arguments of the registered op
    (:func:`msformer_fast.ops.signature.parameter`) and a named tuple again in every function. Forward and backward run
    on the device of their tensors, those on the CPU outside of autocast.

    Args:
        op: name of the op.
        forward: computes the results. Its parameters are the op's.
        outputs: names of the results, each one tensor.
        shapes: makes the results empty, for tracing; takes parameters of ``forward`` by name.
        backward: computes the gradients; takes by name ``grad_<output>``, parameters of ``forward``, outputs, and named
            tuples of outputs. What it takes is kept; with ``expression``, every argument of the forward is. A gradient
            that did not arrive is ``None`` where the annotation allows that, else zeros; where none arrived, nothing
            is computed. Outputs without a ``grad_<output>`` are not differentiable.
        gradients: for each result of ``backward`` the parameter whose gradient it is. ``"a b"``: the result is one
            list, of the gradients of a's tensors, then of b's; entries that are missing at its end are ``None``.
        gradient_shapes: makes the results of ``backward`` empty; takes parameters of ``backward`` by name. By default
            they are contiguous, and as large as the tensors that they belong to.
        expression: the results by PyTorch's operators; takes parameters of ``forward`` by name. On the CPU it stands in
            for ``backward`` where the gradient is to be differentiated again. Without it, and by the kernels on a GPU,
            that is refused.

    Returns:
        The registered op; takes the parameters of ``forward`` by position.
    """
    signature = Signature(forward)
    shown = op if backward is None else f"{op}.forward"
    registered, run = _define(op, shown, signature, [Tensor] * len(outputs), forward, signature.by_name(shapes))
    derivative = None
    if backward is not None:
        derivative = Derivative(signature, outputs, backward, gradients, expression)
        taken, results = derivative.signature, derivative.results
        fake = derivative.like_owners if gradient_shapes is None else taken.by_name(gradient_shapes)
        gradient, run_gradient = _define(f"{op}_backward", f"{op}.backward", taken, results, derivative.run, fake)
        refuse_double_backward(op, gradient)
        derivative.registered = eagerly(gradient, run_gradient)
        registered.register_autograd(derivative.gradients, setup_context=derivative.setup_context)
    dispatched = getattr(getattr(torch.ops, NAMESPACE), op).default
    return signature.flattening(eagerly(dispatched, run, derivative, f"{NAMESPACE}_{op}"))


def _define(name: str, shown: str, signature: Signature, results: list[Any], body: Function, fake: Function) -> Any:
    """A custom op of the arguments of ``signature`` with ``results`` of these types, and its body, which takes the same
    arguments; profilers show it as ``shown``."""
    kinds = list(signature.arguments.values())
    first = next(place for place, kind in enumerate(kinds) if kind in (Tensor, TENSORS))
    backend = list(signature.arguments).index("backend") if "backend" in signature.arguments else None

    def run(*arguments: Any) -> Any:
        tensor = arguments[first] if kinds[first] is Tensor else arguments[first][0]
        on_card = backend is None or arguments[backend] == "triton"
        around = launching if on_card else without_autocast
        with around(shown, tensor):
            return body(*signature.values(arguments))

    signature.annotate(run, results[0] if len(results) == 1 else tuple.__class_getitem__(tuple(results)))
    registered = torch.library.custom_op(f"{NAMESPACE}::{name}", run, mutates_args=())
    registered.register_fake(fake)
    hide_late(registered)
    return registered, run
