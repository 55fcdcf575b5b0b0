"""Efficient attention with its norm and residual: linear in the number of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import efficient_attention as identity
from msformer_fast.identities.efficient_attention import Options, Parameters, Saved
from msformer_fast.ops.backend import choose, over_limit, runs_in_strips, why_not_torch, why_not_triton
from msformer_fast.ops.batch_norm import BatchNorm, check_batch_norm, packed, packed_gradients
from msformer_fast.ops.double_backward import differentiable_gradients, refuse_double_backward, wants_double_backward
from msformer_fast.ops.launch import in_strips, launching
from msformer_fast.ops.memory import check_memory, is_kept, lean
from msformer_fast.ops.optional_tensors import pack, unpack
from msformer_fast.ops.precision import autocast_dtype, input_precision
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.efficient_attention import efficient_attention as _reference

OP = "efficient_attention"
MAX_CHANNELS = 256


class Attended(NamedTuple):
    """A map after attention.

    Attributes:
        y: (B, H, W, C).
        context: (B, heads, Ck / heads, Cv / heads).
    """

    y: Tensor
    context: Tensor


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
    batch_norm: BatchNorm | None = None,
    memory: str = "fast",
    backend: str | None = None,
) -> Attended:
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
        batch_norm: read ``x`` through this batch norm by its own statistics, residual included: ``x`` above is then
            the normed map. Gradients go to the map before it and to the batch norm's weight and bias.
        memory: of the ``"torch"`` backend: ``"fast"`` keeps keys and queries for the backward, ``"lean"`` makes them
            again there. The kernels always do: they keep ``x`` (with ``batch_norm`` also the normed map), maximum and
            sum of the softmax over positions, and two matrices of (B, Ck, C). The reference always keeps all.
        backend: ``"triton"`` (C, Ck and Cv at most 256), ``"torch"``, ``"reference"`` or ``None`` for the fastest that
            can run.

    Returns:
        ``y`` (B, H, W, C) and ``context`` (B, heads, Ck / heads, Cv / heads), both differentiable. Under autocast the
        products and the context are in its dtype, and ``y`` as adding them to ``x`` gives it.

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
    check_batch_norm(shapes, "batch_norm", batch_norm)
    normed_by, bn_eps = packed(batch_norm)
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
    refusals = {
        "triton": lambda: _why_not_triton(x, *parameters, *normed_by[:2]),
        "torch": lambda: why_not_torch(OP, x, *parameters),
    }
    chosen = choose(OP, backend, x.device, refusals)
    tensors, present = pack(parameters)
    if chosen == "triton":
        y, context, *_ = _forward(
            x, tensors, present, *options, normed_by, bn_eps, _products_dtype(x), keep=False, backend=chosen
        )
        return Attended(y, context)
    x = x if batch_norm is None else batch_norm.apply(x)
    if chosen == "reference":
        return Attended(*_reference(x, *parameters, *options))
    if not runs_in_strips(x):
        return Attended(*lean(memory, identity.efficient_attention, x, parameters, options))
    keep = is_kept(memory, x, *tensors)
    y, context, *_ = _forward(x, tensors, present, *options, [], 0.0, x.dtype, keep=keep, backend=chosen)
    return Attended(y, context)


def _products_dtype(x: Tensor) -> torch.dtype:
    """What the operands of the kernels' products are rounded to where they are read: autocast's dtype, or x's own."""
    dtype = autocast_dtype(x.device)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def _why_not_triton(x: Tensor, *others: Tensor | None) -> str | None:
    """Under autocast x may have another dtype than the parameters: the kernels round what they read."""
    matrices = [tensor.shape for tensor in others if tensor is not None and tensor.ndim == 2]
    widest = max(max(shape) for shape in matrices)
    refusal = over_limit(OP, ("channels", widest, MAX_CHANNELS))
    if refusal is not None:
        return refusal
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in (x, *others))
    if autocast_dtype(x.device) is None or wide:
        return why_not_triton(OP, x, *others)
    return why_not_triton(OP, x) or why_not_triton(OP, *others)


@torch.library.custom_op("msformer_fast::efficient_attention", mutates_args=())
def _forward(
    x: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
    batch_norm: Sequence[Tensor],
    bn_eps: float,
    products: torch.dtype,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result, the context, and what the backward reads: the four tensors of :class:`Saved` and an empty one, or
    maximum, G, sum and M of the kernels and the normed map, empty without a batch norm."""
    given, options = unpack(Parameters, parameters, present), Options(heads, norm, residual, eps)
    if backend == "torch":
        with in_strips("efficient_attention.forward", x):
            y, context, saved = identity.efficient_attention_forward(x, given, options, keep)
            return y, context, *saved, x.new_empty(0)
    from msformer_fast.kernels.efficient_attention import efficient_attention_forward

    with launching("efficient_attention.forward", x):
        y, context, saved = efficient_attention_forward(
            x, given, *options, products, input_precision(products), tuple(batch_norm), bn_eps
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
    batch_norm: Sequence[Tensor],
    bn_eps: float,
    products: torch.dtype,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    p = unpack(Parameters, parameters, present)
    batch, height, width, channels = x.shape
    keys, values = p.key_weight.shape[0], p.value_weight.shape[0]

    def empty(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=sum_dtype(x.dtype))

    context = x.new_empty((batch, heads, keys // heads, values // heads), dtype=products)
    y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, products) if residual else products)
    if backend == "triton":
        normed = x.new_empty(x.shape if batch_norm else (0,))
        inner = empty(batch, keys), empty(batch, keys, channels), empty(batch, keys), empty(batch, keys, channels)
        return y, context, *inner, normed
    wide = (batch, height * width, keys) if keep else (0,)
    saved = empty(batch, keys), empty(batch, keys, channels), empty(*wide), empty(*wide)
    return y, context, *saved, x.new_empty(0)


@torch.library.custom_op("msformer_fast::efficient_attention_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_context: Tensor | None,
    x: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
    batch_norm: Sequence[Tensor],
    bn_eps: float,
    products: torch.dtype,
    saved: Sequence[Tensor],
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x, of every parameter that is there, and of the batch norm's weight and bias if there is one."""
    given, options = unpack(Parameters, parameters, present), Options(heads, norm, residual, eps)
    if backend == "torch":
        if grad_context is None:
            widths = given.key_weight.shape[0] // heads, given.value_weight.shape[0] // heads
            grad_context = x.new_zeros((x.shape[0], heads, *widths))
        with in_strips("efficient_attention.backward", x):
            d_x, gradients = identity.efficient_attention_backward(
                grad_y, grad_context, x, given, options, Saved(*saved[:4])
            )
            return d_x, pack(gradients)[0]
    from msformer_fast.kernels.efficient_attention import efficient_attention_backward

    with launching("efficient_attention.backward", x):
        precision = input_precision(products)
        d_x, gradients, d_batch_norm = efficient_attention_backward(
            grad_y, grad_context, x, given, *options, products, tuple(saved), precision, tuple(batch_norm), bn_eps
        )
        return d_x, pack(gradients)[0] + list(d_batch_norm)


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_context: Tensor | None,
    x: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
    batch_norm: Sequence[Tensor],
    bn_eps: float,
    products: torch.dtype,
    saved: Sequence[Tensor],
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    return x.new_empty(x.shape), [value.new_empty(value.shape) for value in (*parameters, *batch_norm[:2])]


refuse_double_backward(OP, _backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, parameters, ctx.present, *options, batch_norm, ctx.bn_eps, ctx.products, _, ctx.backend = inputs
    ctx.like_y = output[0].shape, output[0].dtype
    ctx.context_shape = output[1].shape
    ctx.options = Options(*options)
    ctx.set_materialize_grads(False)  # no zeros for the wide maps, which nobody differentiates
    ctx.batch_norm = len(batch_norm)
    ctx.save_for_backward(x, *output[2:], *batch_norm, *parameters)


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_context: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    x, *others = ctx.saved_tensors
    saved, batch_norm, parameters = others[:5], others[5 : 5 + ctx.batch_norm], others[5 + ctx.batch_norm :]
    if grad_y is None:
        shape, dtype = ctx.like_y
        grad_y = x.new_zeros(shape, dtype=dtype)
    options, present, backend = ctx.options, ctx.present, ctx.backend
    nothing = (None,) * (len(options) + 1)
    if backend == "torch" and wants_double_backward():
        grad_context = x.new_zeros(ctx.context_shape) if grad_context is None else grad_context
        d_x, *found = differentiable_gradients(
            lambda x, *given: identity.efficient_attention(x, unpack(Parameters, given, present), options),
            [x, *parameters],
            [grad_y, grad_context],
        )
        return d_x, found, *nothing, [], None, None, None, None
    d_x, gradients = _backward(
        grad_y, grad_context, x, parameters, present, *options, batch_norm, ctx.bn_eps, ctx.products, saved, backend
    )
    gradients, d_batch_norm = gradients[: len(parameters)], gradients[len(parameters) :]
    return d_x, gradients, *nothing, packed_gradients(d_batch_norm), None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
