"""Mix-FFN with its norm and residual."""

from __future__ import annotations

from torch import Tensor

from msformer_fast.errors import InputError
from msformer_fast.ops.backend import choose
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.mix_ffn import mix_ffn as _reference


def mix_ffn(
    t: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    inner_norm_weight: Tensor | None = None,
    inner_norm_bias: Tensor | None = None,
    *,
    norm: bool = True,
    inner_norm: bool = True,
    inner_skip: bool = True,
    residual: bool = True,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    r"""``y = t + fc2(GELU(LayerNorm(dwconv3x3(u) + u)))`` with ``u = fc1(LayerNorm(t))``.

    GELU is the exact one (erf). The depthwise convolution pads with zeros.

    Args:
        t: (B, H, W, C), floating point, any strides.
        fc1_weight: (D, C); fc1_bias: (D) or ``None``.
        depthwise_weight: (D, 1, 3, 3); depthwise_bias: (D) or ``None``.
        fc2_weight: (C, D); fc2_bias: (C) or ``None``.
        norm_weight, norm_bias: (C) or ``None``, affine parameters of the LayerNorm in front of ``fc1``.
        inner_norm_weight, inner_norm_bias: (D) or ``None``, of the LayerNorm in front of the GELU.
        norm: apply the first LayerNorm.
        inner_norm: apply the second LayerNorm. SegFormer's Mix-FFN has none.
        inner_skip: add ``u`` to the convolution's result. SegFormer's Mix-FFN does not.
        residual: add ``t`` to the result.
        eps: added to the variance by both LayerNorms.
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        ``y`` (B, H, W, C).

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: Xie et al., "SegFormer", NeurIPS 2021, equation 3; inner skip and norm as in MS-Former's code.
    """
    shapes = Shapes("mix_ffn")
    shapes("t", t, "B H W C")
    shapes("fc1_weight", fc1_weight, "D C")
    shapes("fc1_bias", fc1_bias, "D")
    shapes("depthwise_weight", depthwise_weight, "D 1 3 3")
    shapes("depthwise_bias", depthwise_bias, "D")
    shapes("fc2_weight", fc2_weight, "C D")
    shapes("fc2_bias", fc2_bias, "C")
    shapes("norm_weight", norm_weight, "C")
    shapes("norm_bias", norm_bias, "C")
    shapes("inner_norm_weight", inner_norm_weight, "D")
    shapes("inner_norm_bias", inner_norm_bias, "D")
    for flag, name in ((norm, "norm"), (inner_norm, "inner_norm")):
        affine = (norm_weight, norm_bias) if name == "norm" else (inner_norm_weight, inner_norm_bias)
        if not flag and affine != (None, None):
            raise InputError(f"mix_ffn: {name}_weight and {name}_bias need {name}=True; pass None for both")
    choose("mix_ffn", backend, t.device, {})
    return _reference(
        t,
        fc1_weight,
        fc1_bias,
        depthwise_weight,
        depthwise_bias,
        fc2_weight,
        fc2_bias,
        norm_weight,
        norm_bias,
        inner_norm_weight,
        inner_norm_bias,
        norm,
        inner_norm,
        inner_skip,
        residual,
        eps,
    )
