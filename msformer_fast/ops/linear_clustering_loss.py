"""The clustering loss fused with the projection that makes the scores: the scores are never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast.errors import InputError
from msformer_fast.identities import linear_clustering_loss as identity
from msformer_fast.ops.backend import choose, runs_in_strips, why_not_torch, why_not_triton
from msformer_fast.ops.clustering_loss import REDUCTIONS, Clustering, fake_results
from msformer_fast.ops.double_backward import differentiable_gradients, refuse_double_backward, wants_double_backward
from msformer_fast.ops.launch import in_strips, launching
from msformer_fast.ops.precision import cast_product, input_precision
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.linear_clustering_loss import linear_clustering_loss as _reference

OP = "linear_clustering_loss"


def linear_clustering_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Clustering:
    """:func:`clustering_loss` of ``features @ weight.T + bias``, for callers who do not need these scores.

    Args:
        features: (B, ..., D) with any axes of pixels between, or (N, D) as one image; floating point, any strides.
        weight: (K, D), K >= 2; bias: (K) or ``None``.
        reduction: ``"mean"`` or ``"sum"`` over every pixel of the batch, or ``"none"``.
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        loss: scalar, or (B, ...) for ``"none"``; labels (B, ...), label_count (B), as of :func:`clustering_loss`.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    The kernels, and ``"torch"`` on the CPU, keep the scores in float32, also for half-precision features; the reference
    rounds them to the features' dtype, as a linear layer does, so the two may label a pixel differently whose best two
    scores round to one number. The kernels' gradient cannot be differentiated again; that of the other backends can.

    Source: MS-Former, clustering loss on the head's output.
    """
    if reduction not in REDUCTIONS:
        raise InputError(f"{OP}: reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    shapes = Shapes(OP)
    if not isinstance(features, Tensor) or features.ndim < 2:
        raise InputError(f"{OP}: features must be a torch.Tensor (B, ..., D) or (N, D)")
    pixels = features.shape[:-1]
    features = _as_images(features)
    shapes("features", features, "B H W D")
    shapes("weight", weight, "K D")
    shapes("bias", bias, "K")
    if shapes["K"] < 2:
        raise InputError(f"{OP}: weight must have at least 2 clusters, got {shapes['K']}")
    features, weight, bias = cast_product(features), cast_product(weight), cast_product(bias)
    refusals = {
        "triton": lambda: why_not_triton(OP, features, weight, bias),
        "torch": lambda: why_not_torch(OP, features, weight, bias),
    }
    chosen = choose(OP, backend, features.device, refusals)
    if chosen == "reference":
        loss, labels, label_count = _reference(features, weight, bias, reduction)
    elif chosen == "torch" and not runs_in_strips(features):
        loss, labels, label_count = identity.linear_clustering_loss(features, weight, bias, reduction)
    else:
        loss, labels, label_count, _ = _forward(features, weight, bias, reduction, chosen)
    loss = loss.reshape(pixels) if reduction == "none" else loss
    return Clustering(loss, labels.reshape(pixels), label_count)


def _as_images(features: Tensor) -> Tensor:
    """(B, H, W, D); a view but where more than two axes of pixels cannot be merged."""
    if features.ndim == 2:
        return features[None, None]
    return features if features.ndim == 4 else features.reshape(features.shape[0], 1, -1, features.shape[-1])


@torch.library.custom_op("msformer_fast::linear_clustering_loss", mutates_args=())
def _forward(
    features: Tensor, weight: Tensor, bias: Tensor | None, reduction: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, labels, label count, and the two numbers of each pixel that the kernels' backward reads (else empty)."""
    if backend == "torch":
        with in_strips("linear_clustering_loss.forward", features):
            results = identity.linear_clustering_loss_forward(features, weight, bias, reduction)
            return *results, results[0].new_empty(0)
    from msformer_fast.kernels.linear_clustering_loss import linear_clustering_loss_forward

    with launching("linear_clustering_loss.forward", features):
        return linear_clustering_loss_forward(features, weight, bias, reduction, input_precision(features.dtype))


@_forward.register_fake
def _(
    features: Tensor, weight: Tensor, bias: Tensor | None, reduction: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, labels, count = fake_results(features, features.shape[:-1], weight.shape[0], reduction)
    statistics = (0,) if backend == "torch" else (2, *features.shape[:-1])
    return loss, labels, count, features.new_empty(statistics, dtype=loss.dtype)


@torch.library.custom_op("msformer_fast::linear_clustering_loss_backward", mutates_args=())
def _backward(
    grad_loss: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    statistics: Tensor,
    reduction: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "torch":
        with in_strips("linear_clustering_loss.backward", features):
            return identity.linear_clustering_loss_backward(grad_loss, features, weight, bias, labels, reduction)
    from msformer_fast.kernels.linear_clustering_loss import linear_clustering_loss_backward

    with launching("linear_clustering_loss.backward", features):
        return linear_clustering_loss_backward(
            features, weight, bias, labels, statistics, grad_loss, reduction, input_precision(features.dtype)
        )


@_backward.register_fake
def _(
    grad_loss: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    statistics: Tensor,
    reduction: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(features), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


refuse_double_backward(OP, _backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weight, bias, ctx.reduction, ctx.backend = inputs
    ctx.save_for_backward(features, weight, bias, output[1], output[3])


def _differentiate(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    features, weight, bias, labels, statistics = ctx.saved_tensors
    reduction = ctx.reduction
    if ctx.backend == "torch" and wants_double_backward():
        found = differentiable_gradients(
            lambda f, w, b: identity.linear_clustering_loss(f, w, b, reduction)[:1],
            [features, weight, bias],
            [grad_loss],
        )
        return *found, None, None
    gradients = _backward(grad_loss, features, weight, bias, labels, statistics, reduction, ctx.backend)
    return gradients[0], gradients[1], None if bias is None else gradients[2], None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
