"""Efficient attention with its norm and residual: linear in the number of pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import efficient_attention as identity
from msformer_fast.identities.efficient_attention import Options, Parameters, Saved
from msformer_fast.limits import EFFICIENT_ATTENTION_CHANNELS
from msformer_fast.ops.backend import choose, over_limit, runs_in_strips, why_not_native, why_not_torch, why_not_triton
from msformer_fast.ops.batch_norm import BatchNorm, check_batch_norm, native_norm, norm_gradients, through
from msformer_fast.ops.memory import check_memory, is_kept, lean
from msformer_fast.ops.precision import autocast_dtype, kernel_precision
from msformer_fast.ops.registration import contiguous_like, register
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.efficient_attention import efficient_attention as _reference

OP = "efficient_attention"


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
        memory: of the ``"torch"`` backend: ``"fast"`` keeps keys and queries for the backward, ``"lean"``
            recomputes them there. Kernels always do: those on a GPU keep ``x`` (with ``batch_norm`` also the normed
            map), maximum and sum of the softmax over positions, and two matrices of (B, Ck, C), those on the CPU
            little more than ``x``. The reference always keeps all.
        backend: ``"triton"`` (C, Ck and Cv at most 256), ``"native"``, ``"torch"``, ``"reference"`` or ``None`` for the
            fastest that can run.

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
        "triton": lambda: _why_not_triton(x, *parameters, *(batch_norm or ())[:2]),
        "native": lambda: why_not_native(OP, x, *parameters, *(batch_norm or ())[:2]),
        "torch": lambda: why_not_torch(OP, x, *parameters),
    }
    chosen = choose(OP, backend, x.device, refusals)
    if chosen in ("triton", "native"):
        y, context, *_ = _registered(x, parameters, options, batch_norm, _products_dtype(x), False, chosen)
        return Attended(y, context)
    x = through(batch_norm, x)
    if chosen == "reference":
        return Attended(*_reference(x, *parameters, *options))
    if chosen == "torch" and not runs_in_strips(x):
        return Attended(*lean(memory, identity.efficient_attention, x, parameters, options))
    keep = is_kept(memory, x, *parameters)
    y, context, *_ = _registered(x, parameters, options, None, x.dtype, keep, chosen)
    return Attended(y, context)


def _products_dtype(x: Tensor) -> torch.dtype:
    """What the operands of the kernels' products are rounded to where they are read: autocast's dtype, or x's own."""
    dtype = autocast_dtype(x.device)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def _why_not_triton(x: Tensor, *others: Tensor | None) -> str | None:
    """Under autocast x may have another dtype than the parameters: the kernels round what they read."""
    matrices = [tensor.shape for tensor in others if tensor is not None and tensor.ndim == 2]
    widest = max(max(shape) for shape in matrices)
    refusal = over_limit(OP, ("channels", widest, EFFICIENT_ATTENTION_CHANNELS))
    if refusal is not None:
        return refusal
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in (x, *others))
    if autocast_dtype(x.device) is None or double:
        return why_not_triton(OP, x, *others)
    return why_not_triton(OP, x) or why_not_triton(OP, *others)


class Kept(NamedTuple):
    """What the backward reads beside the forward's arguments: of the kernels what the names say, the normed map empty
    without a batch norm; on the CPU the four tensors of :class:`Saved`, and an empty one."""

    maximum: Tensor
    gathered: Tensor
    total: Tensor
    folded: Tensor
    normed: Tensor


def _forward(
    x: Tensor,
    parameters: Parameters,
    options: Options,
    batch_norm: BatchNorm | None,
    products: torch.dtype,
    keep: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    """The result, the context, and the fields of :class:`Kept`."""
    if backend == "torch":
        y, context, saved = identity.efficient_attention_forward(x, parameters, options, keep)
        return y, context, *saved, x.new_empty(0)
    if backend == "native":
        from msformer_fast.kernels.native import efficient_attention as native

        made = native.efficient_attention_forward(x, parameters, options, native_norm(batch_norm))
        return *made, *(x.new_empty(0) for _ in range(3))
    from msformer_fast.kernels.efficient_attention import efficient_attention_forward

    precision, norm = kernel_precision(products, x.device), _launched(batch_norm)
    y, context, kept = efficient_attention_forward(x, parameters, *options, products, precision, *norm)
    return y, context, *kept


def _launched(batch_norm: BatchNorm | None) -> tuple[tuple[Tensor, ...], float]:
    """A batch norm as the kernels' launchers take it."""
    return ((), 0.0) if batch_norm is None else (batch_norm[:4], batch_norm.eps)


def _backward(
    grad_y: Tensor,
    grad_context: Tensor | None,
    x: Tensor,
    parameters: Parameters,
    options: Options,
    batch_norm: BatchNorm | None,
    products: torch.dtype,
    kept: Kept,
    backend: str,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of x, and of the parameters and the batch norm's weight and bias."""
    if backend != "triton":
        if grad_context is None:
            widths = parameters.key_weight.shape[0], parameters.value_weight.shape[0]
            grad_context = x.new_zeros((x.shape[0], options.heads, *(width // options.heads for width in widths)))
        if backend == "native":
            from msformer_fast.kernels.native import efficient_attention as native

            d_x, found, d_batch_norm = native.efficient_attention_backward(
                grad_y, grad_context, x, parameters, options, native_norm(batch_norm), *kept[:2]
            )
            return d_x, [*found, *norm_gradients(d_batch_norm, batch_norm)]
        saved = Saved(*kept[:4])
        d_x, of_identity = identity.efficient_attention_backward(grad_y, grad_context, x, parameters, options, saved)
        return d_x, [*of_identity]
    from msformer_fast.kernels.efficient_attention import efficient_attention_backward

    precision, norm = kernel_precision(products, x.device), _launched(batch_norm)
    d_x, d_parameters, d_norm = efficient_attention_backward(
        grad_y, grad_context, x, parameters, *options, products, kept, precision, *norm
    )
    return d_x, [*d_parameters, *d_norm]


def _shapes(
    x: Tensor,
    parameters: Parameters,
    options: Options,
    batch_norm: BatchNorm | None,
    products: torch.dtype,
    keep: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    (batch, height, width, channels), heads = x.shape, options.heads
    keys, values = parameters.key_weight.shape[0], parameters.value_weight.shape[0]

    def sums(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=sum_dtype(x.dtype))

    y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, products) if options.residual else products)
    context = x.new_empty((batch, heads, keys // heads, values // heads), dtype=products)
    first = sums(batch, keys), sums(batch, keys, channels)
    if backend == "triton":
        normed = x.new_empty(0 if batch_norm is None else x.shape)
        return y, context, *first, sums(batch, keys), sums(batch, keys, channels), normed
    tokens = (batch, height * width, keys) if keep else (0,)
    return y, context, *first, sums(*tokens), sums(*tokens), x.new_empty(0)


def _gradient_shapes(x: Tensor, parameters: Parameters, batch_norm: BatchNorm | None) -> tuple[Tensor, list[Tensor]]:
    given = (*parameters, *(batch_norm or ())[:2])
    return contiguous_like(x), [contiguous_like(value) for value in given if value is not None]


def _expression(
    x: Tensor, parameters: Parameters, options: Options, batch_norm: BatchNorm | None
) -> tuple[Tensor, Tensor]:
    return identity.efficient_attention(through(batch_norm, x), parameters, options)


_registered = register(
    OP,
    forward=_forward,
    outputs=("y", "context", *Kept._fields),
    shapes=_shapes,
    backward=_backward,
    gradients=["x", "parameters batch_norm"],
    gradient_shapes=_gradient_shapes,
    expression=_expression,
)
