"""Efficient attention with its norm and residual: linear in the number of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import efficient_attention as identity
from msformer_fast.identities.efficient_attention import Options, Parameters, Saved
from msformer_fast.ops.backend import choose, runs_in_strips, why_not_torch
from msformer_fast.ops.double_backward import differentiable_gradients, wants_double_backward
from msformer_fast.ops.launch import in_strips
from msformer_fast.ops.memory import check_memory, is_kept, lean
from msformer_fast.ops.optional_tensors import pack, unpack
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.efficient_attention import efficient_attention as _reference

OP = "efficient_attention"


def efficient_attention(
    x: Tensor,
    key_weight: Tensor,
    key_bias: Tensor | None,
    query_weight: Tensor,
    query_bias: Tensor | None,
    value_weight: Tensor,
    value_bias: Tensor | None,
    reprojection_weight: Tensor,
    reprojection_bias: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    heads: int = 1,
    norm: bool = True,
    residual: bool = True,
    eps: float = 1e-5,
    memory: str = "fast",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""``y = x + attention(LayerNorm(x))`` and the attention's context.

    With ``n = LayerNorm(x)`` and for each head ``keys``, ``queries``, ``values`` = linear maps of ``n``::

        context = softmax_over_positions(keys)^T values
        y       = x + reprojection(softmax_over_channels(queries) context)

    Args:
        x: (B, H, W, C), floating point, any strides.
        key_weight, query_weight: (Ck, C); key_bias, query_bias: (Ck) or ``None``.
        value_weight: (Cv, C); value_bias: (Cv) or ``None``.
        reprojection_weight: (C, Cv); reprojection_bias: (C) or ``None``.
        norm_weight, norm_bias: (C) or ``None``, the LayerNorm's affine parameters.
        heads: number of heads; divides Ck and Cv. Softmax and context are head by head, values concatenated.
        norm: apply the LayerNorm over C. Without it the attention reads ``x`` itself.
        residual: add ``x`` to the result.
        eps: added to the variance by the LayerNorm.
        memory: of the ``"torch"`` backend: ``"fast"`` keeps keys and queries for the backward, ``"lean"`` makes them
            again there. The kernels always do; the reference always keeps all.
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        ``y`` (B, H, W, C) and ``context`` (B, heads, Ck / heads, Cv / heads), both differentiable.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: Shen et al., "Efficient Attention: Attention with Linear Complexities", WACV 2021, equation 3.
    """
    shapes = Shapes("efficient_attention")
    shapes("x", x, "B H W C")
    shapes("key_weight", key_weight, "Ck C")
    shapes("key_bias", key_bias, "Ck")
    shapes("query_weight", query_weight, "Ck C")
    shapes("query_bias", query_bias, "Ck")
    shapes("value_weight", value_weight, "Cv C")
    shapes("value_bias", value_bias, "Cv")
    shapes("reprojection_weight", reprojection_weight, "C Cv")
    shapes("reprojection_bias", reprojection_bias, "C")
    shapes("norm_weight", norm_weight, "C")
    shapes("norm_bias", norm_bias, "C")
    if heads < 1 or shapes["Ck"] % heads or shapes["Cv"] % heads:
        raise InputError(
            f"efficient_attention: heads must be at least 1 and divide the key width {shapes['Ck']} and the "
            f"value width {shapes['Cv']}; got {heads}"
        )
    if not norm and (norm_weight is not None or norm_bias is not None):
        raise InputError("efficient_attention: norm_weight and norm_bias need norm=True; pass None for both")
    check_memory(OP, memory)
    parameters = Parameters(
        key_weight,
        key_bias,
        query_weight,
        query_bias,
        value_weight,
        value_bias,
        reprojection_weight,
        reprojection_bias,
        norm_weight,
        norm_bias,
    )
    options = Options(heads, norm, residual, eps)
    chosen = choose(OP, backend, x.device, {"torch": lambda: why_not_torch(OP, x, *parameters)})
    if chosen == "reference":
        return _reference(x, *parameters, *options)
    if not runs_in_strips(x):
        return lean(memory, identity.efficient_attention, x, parameters, options)
    tensors, present = pack(parameters)
    y, context, *_ = _forward(x, tensors, present, *options, is_kept(memory, x, *tensors))
    return y, context


@torch.library.custom_op("msformer_fast::efficient_attention", mutates_args=())
def _forward(
    x: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result, the context, and the four tensors of :class:`Saved`."""
    options = Options(heads, norm, residual, eps)
    with in_strips("efficient_attention.forward", x):
        y, context, saved = identity.efficient_attention_forward(
            x, unpack(Parameters, parameters, present), options, keep
        )
        return y, context, *saved


@_forward.register_fake
def _(
    x: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    p = unpack(Parameters, parameters, present)
    batch, height, width, channels = x.shape
    keys, values = p.key_weight.shape[0], p.value_weight.shape[0]

    def empty(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=sum_dtype(x.dtype))

    wide = (batch, height * width, keys) if keep else (0,)
    context = x.new_empty((batch, heads, keys // heads, values // heads))
    saved = empty(batch, keys), empty(batch, keys, channels), empty(*wide), empty(*wide)
    return x.new_empty(x.shape), context, *saved


@torch.library.custom_op("msformer_fast::efficient_attention_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_context: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
    saved: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    options = Options(heads, norm, residual, eps)
    with in_strips("efficient_attention.backward", x):
        d_x, gradients = identity.efficient_attention_backward(
            grad_y, grad_context, x, unpack(Parameters, parameters, present), options, Saved(*saved)
        )
        return d_x, pack(gradients)[0]


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_context: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
    saved: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    return x.new_empty(x.shape), [value.new_empty(value.shape) for value in parameters]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, parameters, ctx.present, *options, _ = inputs
    ctx.context_shape = output[1].shape
    ctx.options = Options(*options)
    ctx.set_materialize_grads(False)  # no zeros for the wide maps, which nobody differentiates
    ctx.save_for_backward(x, *output[2:], *parameters)


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_context: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    x, *saved = ctx.saved_tensors
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    grad_context = x.new_zeros(ctx.context_shape) if grad_context is None else grad_context
    saved, parameters = saved[:4], saved[4:]
    options, present = ctx.options, ctx.present
    nothing = (None,) * (len(options) + 2)
    if wants_double_backward():
        d_x, *found = differentiable_gradients(
            lambda x, *given: identity.efficient_attention(x, unpack(Parameters, given, present), options),
            [x, *parameters],
            [grad_y, grad_context],
        )
        return d_x, found, *nothing
    d_x, gradients = _backward(grad_y, grad_context, x, parameters, present, *options, saved)
    return d_x, gradients, *nothing


_forward.register_autograd(_differentiate, setup_context=_setup_context)
