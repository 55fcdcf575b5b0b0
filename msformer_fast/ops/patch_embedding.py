"""The patch embedding in front of the stability loss: batch norm, two shifted patch grids, one projection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import patch_embedding as identity
from msformer_fast.limits import PATCH_EMBEDDING_CHANNELS, PATCH_EMBEDDING_CLUSTERS
from msformer_fast.ops.backend import choose, over_limit, runs_in_strips, why_not_native, why_not_torch, why_not_triton
from msformer_fast.ops.batch_norm import statistics
from msformer_fast.ops.precision import cast_product, kernel_precision
from msformer_fast.ops.registration import register
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.patch_embedding import patch_embedding as _reference

OP = "patch_embedding"


class Patches(NamedTuple):
    """Embedded patches of two windows of a score map, one diagonal step apart: (B, T, C) each."""

    queries: Tensor
    keys: Tensor


def patch_embedding(
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    patch: int = 32,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Patches:
    """Queries and keys of the stability loss: patches of the batch-normed logits, one diagonal step apart.

    Queries are cut from the map without its first row and column, keys from the map without its last row and
    column, both into ``T = ((H - 1) // patch) * ((W - 1) // patch)`` patches in row order; what is left at the
    far edge is cropped. A patch is flattened in the order (row, column, cluster) and projected.

    Args:
        logits: (B, K, H, W), floating point, any strides; H and W at least ``patch + 1``.
        weight: (C, patch * patch * K); bias: (C) or ``None``. Shared by queries and keys.
        norm_weight, norm_bias: (K) or ``None``, the batch norm's affine parameters.
        running_mean, running_var: (K) or ``None``; updated in place when ``training``, used when not.
        patch: side of a patch in pixels.
        training: normalise by the batch's own statistics.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.
        backend: ``"triton"``, ``"native"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        queries and keys, both (B, T, C).

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: MS-Former, intra-scale loss; the authors' ``bn3`` and ``to_patch_embedding``.
    """
    shapes = Shapes(OP)
    shapes("logits", logits, "B K H W")
    check_patches(OP, shapes, weight, bias, norm_weight, norm_bias, patch)
    shapes("running_mean", running_mean, "K")
    shapes("running_var", running_var, "K")
    if not training and (running_mean is None or running_var is None):
        raise InputError("patch_embedding: training=False needs running_mean and running_var")
    logits, weight, bias = cast_product(logits), cast_product(weight), cast_product(bias)
    refusals = {
        "triton": lambda: _why_not_triton(logits, weight, bias),
        "native": lambda: why_not_native(OP, logits, weight, bias, norm_weight, norm_bias),
        "torch": lambda: why_not_torch(OP, logits, weight, bias),
    }
    chosen = choose(OP, backend, logits.device, refusals)
    if chosen == "reference" or (chosen == "torch" and not runs_in_strips(logits)):
        plain = _reference if chosen == "reference" else identity.patch_embedding
        return Patches(
            *plain(
                logits, weight, bias, norm_weight, norm_bias, running_mean, running_var, patch, training, momentum, eps
            )
        )
    mean, rstd = _norm_of(logits, running_mean, running_var, training, momentum, eps, chosen)
    gamma = mean.new_ones(shapes["K"]) if norm_weight is None else norm_weight
    beta = mean.new_zeros(shapes["K"]) if norm_bias is None else norm_bias
    return Patches(*_registered(logits, mean, rstd, gamma, beta, weight, bias, patch, training, eps, chosen))


def check_patches(
    op: str,
    shapes: Shapes,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    patch: int,
) -> None:
    """Check an embedding's parameters against the sizes K, H and W of a score map.

    Raises:
        InputError: a shape or a patch size that does not fit, named.
    """
    if patch < 1:
        raise InputError(f"{op}: patch must be at least 1 pixel, got {patch}")
    prefix, width = ("", "C") if op == OP else ("patch_", "E")  # elsewhere C is the width of the tokens
    shapes(f"{prefix}weight", weight, f"{width} L")
    shapes(f"{prefix}bias", bias, width)
    shapes("norm_weight", norm_weight, "K")
    shapes("norm_bias", norm_bias, "K")
    if min(shapes["H"], shapes["W"]) < patch + 1:
        raise InputError(
            f"{op}: logits must be at least patch + 1 = {patch + 1} pixels high and wide; "
            f"got {shapes['H']} x {shapes['W']}"
        )
    if shapes["L"] != patch * patch * shapes["K"]:
        raise InputError(
            f"{op}: {prefix}weight must be ({width}, patch * patch * K) = "
            f"({width}, {patch * patch * shapes['K']}); got {tuple(weight.shape)}"
        )


def _norm_of(
    logits: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation to normalise by; the running ones are updated as batch norm does."""
    if not training:
        assert running_mean is not None and running_var is not None
        return running_mean, (running_var + eps).rsqrt()
    with torch.no_grad():
        mean, var = statistics(logits.detach(), backend)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            values = logits.numel() // logits.shape[1]
            running_var.lerp_((var * (values / max(values - 1, 1))).to(running_var.dtype), momentum)
        return mean, (var + eps).rsqrt()


def _why_not_triton(logits: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    limits = (
        ("clusters", logits.shape[1], PATCH_EMBEDDING_CLUSTERS),
        ("channels", weight.shape[0], PATCH_EMBEDDING_CHANNELS),
    )
    return over_limit(OP, *limits) or why_not_triton(OP, logits, weight, bias)


def _forward(
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patch: int,
    training: bool,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend == "torch":
        return identity.patch_embedding_forward(logits, mean, rstd, gamma, beta, weight, bias, patch)
    if backend == "native":
        from msformer_fast.kernels.native import patch_embedding as native

        return native.patch_embedding_forward(logits, mean, rstd, gamma, beta, weight, bias, patch)
    from msformer_fast.kernels.patch_embedding import patch_embedding_forward

    precision = kernel_precision(logits.dtype, logits.device)
    return patch_embedding_forward(logits, mean, rstd, gamma, beta, weight, bias, patch, precision)


def _backward(
    grad_queries: Tensor,
    grad_keys: Tensor,
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    patch: int,
    training: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    """The statistics' own dependence on the logits is in the gradient of the logits, so theirs is none."""
    given = grad_queries, grad_keys, logits, mean, rstd, gamma, beta, weight, patch
    if backend == "torch":
        return identity.patch_embedding_backward(*given, batch_stats=training)
    if backend == "native":
        from msformer_fast.kernels.native import patch_embedding as native

        return native.patch_embedding_backward(*given, batch_stats=training)
    from msformer_fast.kernels.patch_embedding import patch_embedding_backward

    return patch_embedding_backward(*given, kernel_precision(logits.dtype, logits.device), batch_stats=training)


def _shapes(logits: Tensor, weight: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    patches = ((logits.shape[2] - 1) // patch) * ((logits.shape[3] - 1) // patch)
    queries = logits.new_empty(logits.shape[0], patches, weight.shape[0])
    return queries, torch.empty_like(queries)


def _gradient_shapes(logits: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    sizes = weight.shape[0], logits.shape[1], logits.shape[1]
    sums = [logits.new_empty(size, dtype=sum_dtype(logits.dtype)) for size in sizes]
    return torch.empty_like(logits), weight.new_empty(weight.shape), *sums


def _expression(
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patch: int,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    # Without running statistics nothing is updated a second time; in evaluation they are the mean and rstd.
    middle, var = (None, None) if training else (mean, rstd**-2 - eps)
    return identity.patch_embedding(logits, weight, bias, gamma, beta, middle, var, patch, training, 0.0, eps)


_registered = register(
    OP,
    forward=_forward,
    outputs=("queries", "keys"),
    shapes=_shapes,
    backward=_backward,
    gradients=["logits", "weight", "bias", "gamma", "beta"],
    gradient_shapes=_gradient_shapes,
    expression=_expression,
)
