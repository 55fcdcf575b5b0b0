"""Mix-FFN with its norm and residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import mix_ffn as identity
from msformer_fast.identities.mix_ffn import Options, Parameters
from msformer_fast.ops.backend import choose, runs_in_strips, why_not_torch
from msformer_fast.ops.double_backward import differentiable_gradients, wants_double_backward
from msformer_fast.ops.launch import in_strips
from msformer_fast.ops.memory import check_memory, is_kept, lean
from msformer_fast.ops.optional_tensors import pack, unpack
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.mix_ffn import mix_ffn as _reference

OP = "mix_ffn"


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
    memory: str = "fast",
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
        memory: of the ``"torch"`` backend: ``"fast"`` keeps the wide map ``u`` for the backward, ``"lean"`` makes it
            again there. The kernels always do; the reference always keeps all.
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
    check_memory(OP, memory)
    parameters = Parameters(
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
    )
    options = Options(norm, inner_norm, inner_skip, residual, eps)
    chosen = choose(OP, backend, t.device, {"torch": lambda: why_not_torch(OP, t, *parameters)})
    if chosen == "reference":
        return _reference(t, *parameters, *options)
    if not runs_in_strips(t):
        return lean(memory, identity.mix_ffn, t, parameters, options)
    tensors, present = pack(parameters)
    return _forward(t, tensors, present, *options, is_kept(memory, t, *tensors))[0]


@torch.library.custom_op("msformer_fast::mix_ffn", mutates_args=())
def _forward(
    t: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    norm: bool,
    inner_norm: bool,
    inner_skip: bool,
    residual: bool,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The result, and the wide map where it is kept."""
    options = Options(norm, inner_norm, inner_skip, residual, eps)
    with in_strips("mix_ffn.forward", t):
        return identity.mix_ffn_forward(t, unpack(Parameters, parameters, present), options, keep)


@_forward.register_fake
def _(
    t: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    norm: bool,
    inner_norm: bool,
    inner_skip: bool,
    residual: bool,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = t.shape
    wide = (batch, height + 2, width, parameters[0].shape[0]) if keep else (0,)
    return t.new_empty(t.shape), t.new_empty(wide, dtype=sum_dtype(t.dtype))


@torch.library.custom_op("msformer_fast::mix_ffn_backward", mutates_args=())
def _backward(
    grad: Tensor,
    t: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    norm: bool,
    inner_norm: bool,
    inner_skip: bool,
    residual: bool,
    eps: float,
    wide: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    options = Options(norm, inner_norm, inner_skip, residual, eps)
    with in_strips("mix_ffn.backward", t):
        d_t, gradients = identity.mix_ffn_backward(grad, t, unpack(Parameters, parameters, present), options, wide)
        return d_t, pack(gradients)[0]


@_backward.register_fake
def _(
    grad: Tensor,
    t: Tensor,
    parameters: Sequence[Tensor],
    present: Sequence[bool],
    norm: bool,
    inner_norm: bool,
    inner_skip: bool,
    residual: bool,
    eps: float,
    wide: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    return t.new_empty(t.shape), [value.new_empty(value.shape) for value in parameters]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    t, parameters, ctx.present, *options, _ = inputs
    ctx.options = Options(*options)
    ctx.set_materialize_grads(False)  # no zeros for the wide maps, which nobody differentiates
    ctx.save_for_backward(t, output[1], *parameters)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    t, wide, *parameters = ctx.saved_tensors
    grad = torch.zeros_like(t) if grad is None else grad
    options, present = ctx.options, ctx.present
    nothing = (None,) * (len(options) + 2)
    if wants_double_backward():
        d_t, *found = differentiable_gradients(
            lambda t, *given: (identity.mix_ffn(t, unpack(Parameters, given, present), options),),
            [t, *parameters],
            [grad],
        )
        return d_t, found, *nothing
    d_t, gradients = _backward(grad, t, parameters, present, *options, wide)
    return d_t, gradients, *nothing


_forward.register_autograd(_differentiate, setup_context=_setup_context)
