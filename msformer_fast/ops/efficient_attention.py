"""Efficient attention with its norm and residual: linear in the number of pixels."""

from __future__ import annotations

from torch import Tensor

from msformer_fast.errors import InputError
from msformer_fast.ops.backend import choose
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.efficient_attention import efficient_attention as _reference


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
    choose("efficient_attention", backend, x.device, {})
    return _reference(
        x,
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
        heads,
        norm,
        residual,
        eps,
    )
