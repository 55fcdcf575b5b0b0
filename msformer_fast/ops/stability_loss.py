"""The spatial stability loss of two patch embeddings, flash-style: no T x T matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import stability_loss as identity
from msformer_fast.ops.backend import choose, over_limit, runs_in_strips, why_not_torch, why_not_triton
from msformer_fast.ops.double_backward import differentiable_gradients, refuse_double_backward, wants_double_backward
from msformer_fast.ops.launch import in_strips, launching
from msformer_fast.ops.precision import cast_product, input_precision
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference import stability_loss as _reference

OP = "stability_loss"
MAX_CHANNELS = 256


def stability_loss(queries: Tensor, keys: Tensor, *, scale: float = 8.0, backend: str | None = None) -> Tensor:
    """Mean absolute difference between ``A = softmax(Q K^T / scale)`` and the identity, mean over the batch.

    A row of A sums to 1, so the loss is ``2 / T^2 * sum_i (1 - A_ii)``.

    Args:
        queries, keys: (B, T, C), floating point, any strides, T >= 1.
        scale: divisor of the scores. The authors use 8 whatever C is.
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        scalar; float32 for half precision, else the queries' dtype.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    The kernels' gradient cannot be differentiated again; that of the other backends can.

    Source: MS-Former, intra-scale (spatial stability) loss.
    """
    _check_pair(OP, queries, keys, scale)
    queries, keys = cast_product(queries), cast_product(keys)
    refusals = {
        "triton": lambda: _why_not_triton(queries, keys),
        "torch": lambda: why_not_torch(OP, queries, keys),
    }
    chosen = choose(OP, backend, queries.device, refusals)
    if chosen == "reference":
        return _reference.stability_loss(queries, keys, scale)
    if chosen == "torch" and not runs_in_strips(queries):
        return identity.stability_loss(queries, keys, scale)
    return _forward(queries, keys, scale, chosen)[0]


def stability_attention(queries: Tensor, keys: Tensor, *, scale: float = 8.0) -> Tensor:
    """The attention ``softmax(Q K^T / scale)`` itself, (B, T, T): slow and large, for people who want to look.

    Arguments and errors as for :func:`stability_loss`, which never builds this matrix in its fast forms.
    """
    _check_pair("stability_attention", queries, keys, scale)
    return _reference.stability_attention(queries, keys, scale)


def _check_pair(op: str, queries: Tensor, keys: Tensor, scale: float) -> None:
    shapes = Shapes(op)
    shapes("queries", queries, "B T C")
    shapes("keys", keys, "B T C")
    if shapes["T"] < 1:
        raise InputError(f"{op}: queries must hold at least one patch, got {tuple(queries.shape)}")
    if not scale > 0:
        raise InputError(f"{op}: scale must be positive, got {scale}")


def _why_not_triton(queries: Tensor, keys: Tensor) -> str | None:
    return over_limit(OP, ("channels", queries.shape[-1], MAX_CHANNELS)) or why_not_triton(OP, queries, keys)


@torch.library.custom_op("msformer_fast::stability_loss", mutates_args=())
def _forward(queries: Tensor, keys: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "torch":
        with in_strips("stability_loss.forward", queries):
            return identity.stability_loss_forward(queries, keys, scale)
    from msformer_fast.kernels.stability_loss import stability_loss_forward

    with launching("stability_loss.forward", queries):
        return stability_loss_forward(queries, keys, scale, input_precision(queries.dtype))


@_forward.register_fake
def _(queries: Tensor, keys: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    dtype, rows = sum_dtype(queries.dtype), queries.shape[:2]
    others = queries.new_empty(rows, dtype=dtype)
    return queries.new_empty((), dtype=dtype), others, torch.empty_like(others)


@torch.library.custom_op("msformer_fast::stability_loss_backward", mutates_args=())
def _backward(
    grad_loss: Tensor, queries: Tensor, keys: Tensor, others: Tensor, diagonal: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    if backend == "torch":
        with in_strips("stability_loss.backward", queries):
            return identity.stability_loss_backward(grad_loss, queries, keys, others, diagonal, scale)
    from msformer_fast.kernels.stability_loss import stability_loss_backward

    with launching("stability_loss.backward", queries):
        return stability_loss_backward(
            queries, keys, others, diagonal, grad_loss, scale, input_precision(queries.dtype)
        )


@_backward.register_fake
def _(
    grad_loss: Tensor, queries: Tensor, keys: Tensor, others: Tensor, diagonal: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape)


refuse_double_backward(OP, _backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, keys, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(queries, keys, output[1], output[2])


def _differentiate(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    scale = ctx.scale
    if ctx.backend == "torch" and wants_double_backward():
        found = differentiable_gradients(
            lambda q, k: (identity.stability_loss(q, k, scale),), ctx.saved_tensors[:2], [grad_loss]
        )
        return *found, None, None
    return *_backward(grad_loss, *ctx.saved_tensors, scale, ctx.backend), None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
