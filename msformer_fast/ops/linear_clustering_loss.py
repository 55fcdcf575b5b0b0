"""The clustering loss fused with the projection that makes the scores: the scores are never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from msformer_fast.errors import InputError
from msformer_fast.identities import linear_clustering_loss as identity
from msformer_fast.ops.backend import choose, runs_in_strips, why_not_native, why_not_torch, why_not_triton
from msformer_fast.ops.clustering_loss import REDUCTIONS, Clustering, empty_results
from msformer_fast.ops.precision import cast_product, input_precision
from msformer_fast.ops.registration import register
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
        backend: ``"triton"``, ``"native"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        ``loss``, a scalar, or (B, ...) for ``"none"``; ``labels`` (B, ...) and ``label_count`` (B), as of
        :func:`clustering_loss`.

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
        "native": lambda: why_not_native(OP, features, weight, bias),
        "torch": lambda: why_not_torch(OP, features, weight, bias),
    }
    chosen = choose(OP, backend, features.device, refusals)
    if chosen == "reference":
        loss, labels, label_count = _reference(features, weight, bias, reduction)
    elif chosen == "torch" and not runs_in_strips(features):
        loss, labels, label_count = identity.linear_clustering_loss(features, weight, bias, reduction)
    else:
        loss, labels, label_count, _ = _registered(features, weight, bias, reduction, chosen)
    loss = loss.reshape(pixels) if reduction == "none" else loss
    return Clustering(loss, labels.reshape(pixels), label_count)


def _as_images(features: Tensor) -> Tensor:
    """(B, H, W, D); a view but where more than two axes of pixels cannot be merged."""
    if features.ndim == 2:
        return features[None, None]
    return features if features.ndim == 4 else features.reshape(features.shape[0], 1, -1, features.shape[-1])


def _forward(features: Tensor, weight: Tensor, bias: Tensor | None, reduction: str, backend: str) -> tuple[Tensor, ...]:
    """Loss, labels, label count, and the two numbers of each pixel that the kernels' backward reads (else empty)."""
    if backend == "torch":
        results = identity.linear_clustering_loss_forward(features, weight, bias, reduction)
        return *results, results[0].new_empty(0)
    if backend == "native":
        from msformer_fast.kernels.native import linear_clustering_loss as native

        results = native.linear_clustering_loss_forward(features, weight, bias, reduction)
        return *results, results[0].new_empty(0)
    from msformer_fast.kernels.linear_clustering_loss import linear_clustering_loss_forward

    return linear_clustering_loss_forward(features, weight, bias, reduction, input_precision(features.dtype))


def _backward(
    grad_loss: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    statistics: Tensor,
    reduction: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    if backend == "torch":
        return identity.linear_clustering_loss_backward(grad_loss, features, weight, bias, labels, reduction)
    if backend == "native":
        from msformer_fast.kernels.native import linear_clustering_loss as native

        return native.linear_clustering_loss_backward(grad_loss, features, weight, bias, labels, reduction)
    from msformer_fast.kernels.linear_clustering_loss import linear_clustering_loss_backward

    return linear_clustering_loss_backward(
        features, weight, bias, labels, statistics, grad_loss, reduction, input_precision(features.dtype)
    )


def _shapes(features: Tensor, weight: Tensor, reduction: str, backend: str) -> tuple[Tensor, ...]:
    pixels = features.shape[:-1]
    loss, labels, label_count = empty_results(features, pixels, weight.shape[0], reduction)
    return loss, labels, label_count, loss.new_empty((2, *pixels) if backend == "triton" else 0)


def _gradient_shapes(features: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return torch.empty_like(features), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


_registered = register(
    OP,
    forward=_forward,
    outputs=("loss", "labels", "label_count", "statistics"),
    shapes=_shapes,
    backward=_backward,
    gradients=["features", "weight", "bias"],
    gradient_shapes=_gradient_shapes,
    expression=identity.linear_clustering_loss,
)
