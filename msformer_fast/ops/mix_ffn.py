"""Mix-FFN with its norm and residual."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import mix_ffn as identity
from msformer_fast.identities.mix_ffn import Options, Parameters
from msformer_fast.limits import MIX_FFN_CHANNELS, MIX_FFN_HIDDEN, MIX_FFN_ROW
from msformer_fast.ops.backend import choose, over_limit, runs_in_strips, why_not_native, why_not_torch, why_not_triton
from msformer_fast.ops.batch_norm import batch_statistics
from msformer_fast.ops.memory import check_memory, is_kept, lean, will_be_differentiated
from msformer_fast.ops.precision import cast_product, kernel_precision, seen_by_products
from msformer_fast.ops.registration import contiguous_like, register
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.mix_ffn import mix_ffn as _reference

OP = "mix_ffn"


class WithStatistics(NamedTuple):
    """A map ``y`` (B, H, W, C), and mean and biased variance (C) of its channels."""

    y: Tensor
    mean: Tensor
    var: Tensor


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
        memory: ``"fast"`` keeps the hidden activations ``u`` for the backward, ``"lean"`` recomputes them there. The
            kernels' ``"lean"`` holds ``u`` and its gradient a strip of rows at a time, where one of them is larger than
            24 MB. What ``"fast"`` keeps: the kernels ``u`` in the products' dtype, and two numbers a pixel; ``"torch"``
            ``u``, but nothing for 16-bit ``t``, as its strips are in float32. ``"native"`` never has a map of width D
            and keeps nothing either way; the reference always keeps all.
        backend: ``"triton"``, ``"native"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        ``y`` (B, H, W, C).

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why. The kernels take at most 256
            channels C and 2048 hidden channels D.

    Source: Xie et al., "SegFormer", NeurIPS 2021, equation 3; inner skip and norm as in MS-Former's code.
    """
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
    return _run(t, parameters, Options(norm, inner_norm, inner_skip, residual, eps), memory, backend)[0]


def mix_ffn_with_statistics(
    t: Tensor, *parameters: Tensor | None, memory: str = "fast", backend: str | None = None, **options: Any
) -> WithStatistics:
    """:func:`mix_ffn`, and what a batch norm behind it needs: mean and variance of every channel of the result.

    Args:
        t, parameters, memory, backend, options: as :func:`mix_ffn` takes them, by the same names and defaults.

    Returns:
        ``y`` (B, H, W, C), and mean and biased variance (C) of ``y`` as it is stored, over B, H and W; in float32 or
        better, without a gradient. An empty batch has zeros. The kernels gather them while they write ``y``.

    Raises:
        InputError, BackendError: as :func:`mix_ffn`.
    """
    names = Parameters._fields
    given = {name: options.pop(name) for name in names if name in options}
    absent = dict.fromkeys(name for name in _AFFINE if name not in names[: len(parameters)])
    p: Parameters = cast(Any, Parameters)(*parameters, **(absent | given))
    y, mean_var = _run(t, p, Options(**(_DEFAULTS | options)), memory, backend, statistics=True)
    return WithStatistics(y, *mean_var.unbind())


_AFFINE = ("norm_weight", "norm_bias", "inner_norm_weight", "inner_norm_bias")
_DEFAULTS = Options(norm=True, inner_norm=True, inner_skip=True, residual=True, eps=1e-5)._asdict()

#: Operands of products, which autocast casts; the norms' parameters stay as they are.
_OPERANDS = ("fc1_weight", "fc1_bias", "depthwise_weight", "depthwise_bias", "fc2_weight", "fc2_bias")


def _run(
    t: Tensor, p: Parameters, options: Options, memory: str, backend: str | None, statistics: bool = False
) -> tuple[Tensor, Tensor]:
    """The result, and its mean and variance (2, C) where they are asked for."""
    _check(t, p, options)
    check_memory(OP, memory)
    refusals = {
        "triton": lambda: _why_not_triton(t, p),
        "native": lambda: why_not_native(OP, t, *p),
        "torch": lambda: why_not_torch(OP, t, *p),
    }
    chosen = choose(OP, backend, t.device, refusals)
    if chosen == "triton":
        p = p._replace(**{name: cast_product(getattr(p, name)) for name in _OPERANDS})
        keep = memory == "fast" and will_be_differentiated(t, *p)
        y, _, _, _, mean_var = _registered(t, p, options, keep, memory == "lean", statistics, chosen)
        return y, mean_var
    if chosen == "reference":
        y = _reference(t, *p, *options)
    elif chosen == "native":
        y = _registered(t, p, options, False, False, False, chosen)[0]
    elif not runs_in_strips(t):
        y = lean(memory, identity.mix_ffn, t, p, options)
    else:
        y = _registered(t, p, options, is_kept(memory, t, *p), False, False, chosen)[0]
    return y, torch.stack(batch_statistics(y, backend=chosen)) if statistics else y.new_empty(0)


def _check(t: Tensor, p: Parameters, options: Options) -> None:
    shapes = Shapes(OP)
    shapes("t", t, "B H W C")
    specs = ("D C", "D", "D 1 3 3", "D", "C D", "C", "C", "C", "D", "D")
    for name, value, spec in zip(p._fields, p, specs, strict=True):
        shapes(name, value, spec)
    for flag, name in ((options.norm, "norm"), (options.inner_norm, "inner_norm")):
        affine = (p.norm_weight, p.norm_bias) if name == "norm" else (p.inner_norm_weight, p.inner_norm_bias)
        if not flag and affine != (None, None):
            raise InputError(f"mix_ffn: {name}_weight and {name}_bias need {name}=True; pass None for both")


def _why_not_triton(t: Tensor, p: Parameters) -> str | None:
    hidden = p.fc1_weight.shape[0]
    limits = [("channels", t.shape[-1], MIX_FFN_CHANNELS), ("hidden channels", hidden, MIX_FFN_HIDDEN)]
    if not torch.compiler.is_compiling():  # there a limit of a size would be a guard, and exports would have a largest
        limits.append((f"columns with {hidden} hidden channels", t.shape[2], MIX_FFN_ROW // hidden))
    refusal = over_limit(OP, *limits)
    if refusal is not None:
        return refusal
    # Under autocast the dtype that operands are cast to counts; t and norms may keep theirs.
    return why_not_triton(OP, *seen_by_products(t, *p))


def _forward(
    t: Tensor,
    parameters: Parameters,
    options: Options,
    keep: bool,
    lean: bool,
    statistics: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    """The result; the hidden activations if they are kept; from the kernels, the inner norm's statistics, the
    hidden channels' vectors and statistics of the result."""
    if backend == "torch":
        y, hidden = identity.mix_ffn_forward(t, parameters, options, keep)
        return y, hidden, *(hidden.new_empty(0) for _ in range(3))
    if backend == "native":
        from msformer_fast.kernels.native import mix_ffn as native

        return native.mix_ffn_forward(t, parameters, options), *(t.new_empty(0) for _ in range(4))
    from msformer_fast.kernels.mix_ffn import mix_ffn_forward

    precision = kernel_precision(parameters.fc1_weight.dtype, t.device)
    strip = _strip(t, parameters) if lean else None
    return mix_ffn_forward(t, parameters, options, precision, keep, statistics, strip)


def _backward(
    grad_y: Tensor,
    t: Tensor,
    parameters: Parameters,
    options: Options,
    hidden: Tensor,
    inner: Tensor,
    vectors: Tensor,
    backend: str,
) -> tuple[Tensor, Parameters]:
    if backend == "torch":
        return identity.mix_ffn_backward(grad_y, t, parameters, options, hidden)
    if backend == "native":
        from msformer_fast.kernels.native import mix_ffn as native

        return native.mix_ffn_backward(grad_y, t, parameters, options)
    from msformer_fast.kernels.mix_ffn import mix_ffn_backward

    precision = kernel_precision(parameters.fc1_weight.dtype, t.device)
    strip = _strip(t, parameters)
    return mix_ffn_backward(grad_y, t, parameters, options, hidden, inner, vectors, precision, strip)


def _strip(t: Tensor, parameters: Parameters) -> int:
    from msformer_fast.kernels.mix_ffn import strip_rows

    batch, height, width, _ = t.shape
    return strip_rows(batch, height, width, parameters.fc1_weight.shape[0], parameters.fc1_weight.element_size())


def _shapes(
    t: Tensor, parameters: Parameters, options: Options, keep: bool, statistics: bool, backend: str
) -> tuple[Tensor, ...]:
    (batch, height, width, channels), sums = t.shape, sum_dtype(t.dtype)
    hidden, product = parameters.fc1_weight.shape[0], parameters.fc1_weight.dtype
    if backend != "triton":
        kept = (batch, height + 2, width, hidden) if keep else 0
        return contiguous_like(t), *(t.new_empty(shape, dtype=sums) for shape in (kept, 0, 0, 0))
    from msformer_fast.kernels.launch import padded

    return (
        t.new_empty(t.shape, dtype=torch.promote_types(t.dtype, product) if options.residual else product),
        t.new_empty((batch, height, width, hidden) if keep else 0, dtype=product),
        t.new_empty((2, batch, height, width) if options.inner_norm else 0, dtype=sums),
        t.new_empty((12, padded(hidden)), dtype=sums),
        t.new_empty((2, channels) if statistics else 0, dtype=sums),
    )


_registered = register(
    OP,
    forward=_forward,
    outputs=("y", "hidden", "inner", "vectors", "mean_var"),
    shapes=_shapes,
    backward=_backward,
    gradients=["t", "parameters"],
    expression=identity.mix_ffn,
)
