"""The inter-scale consistency of two contexts, and the three self-guiding losses weighted and added."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.limits import WEIGHTED_LOSSES_CHANNELS
from msformer_fast.loss_weights import LossWeights
from msformer_fast.ops.backend import choose, over_limit, why_not_triton
from msformer_fast.ops.registration import register
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference import weighted_losses as _reference

OP = "weighted_losses"


class WeightedLosses(NamedTuple):
    """Scalars, weighted, float32 or better: ``total`` is the sum of the other three.

    Attributes:
        numbers: (5) float64, not differentiable: total, clustering, consistency, stability, and the largest label
            count of the batch (0 of none), for one transfer to the host.
    """

    total: Tensor
    clustering: Tensor
    consistency: Tensor
    stability: Tensor
    numbers: Tensor


def weighted_losses(
    clustering_loss: Tensor,
    stability_loss: Tensor,
    context_a: Tensor,
    context_b: Tensor,
    label_count: Tensor,
    *,
    weights: LossWeights | tuple[float, float, float] | None = None,
    eps: float = 1e-12,
    backend: str | None = None,
) -> WeightedLosses:
    """The consistency of two contexts, ``mean over their rows of 1 - cos(row_a, row_b)``, weighted and added to the two
    other losses.

    Args:
        clustering_loss, stability_loss: scalars, floating point, see :func:`clustering_loss` and
            :func:`stability_loss`.
        context_a, context_b: (B, Ck, Cv), floating point, any strides, see :func:`efficient_attention`.
        label_count: (B) int32, the distinct labels of each image.
        weights: of clustering, consistency and stability; ``None`` for the authors'.
        eps: added to each squared norm.
        backend: ``"triton"`` (Cv at most 1024), which is one kernel forward and one backward; ``"native"``,
            ``"torch"`` and ``"reference"`` are PyTorch's operators; or ``None`` for the fastest that can run.

    Returns:
        Total, the three weighted losses, and all numbers that a loop wants on the host.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    The gradient of ``"triton"`` cannot be differentiated again; that of the other backends can.

    Source: MS-Former, inter-scale loss and total loss.
    """
    weights = LossWeights() if weights is None else LossWeights(*weights)
    weights.check()
    _check(clustering_loss, stability_loss, context_a, context_b, label_count, eps)

    refusals = {
        "triton": lambda: _why_not_triton(context_a, context_b),
        "native": lambda: None,
        "torch": lambda: None,
    }
    if choose(OP, backend, context_a.device, refusals) == "triton":
        found = _registered(clustering_loss, stability_loss, context_a, context_b, label_count, weights, eps)
    else:
        found = _reference.weighted_losses(
            clustering_loss, stability_loss, context_a, context_b, label_count, weights, eps
        )
    return WeightedLosses(*found)


def _check(
    clustering_loss: Tensor,
    stability_loss: Tensor,
    context_a: Tensor,
    context_b: Tensor,
    label_count: Tensor,
    eps: float,
) -> None:
    shapes = Shapes(OP)
    shapes("context_a", context_a, "B Ck Cv")
    shapes("context_b", context_b, "B Ck Cv")
    shapes("clustering_loss", clustering_loss, "")
    shapes("stability_loss", stability_loss, "")
    if label_count.shape != (shapes["B"],) or label_count.dtype != torch.int32:
        raise InputError(
            f"{OP}: label_count must have shape (B) with B = {shapes['B']} (from context_a) and be int32, got "
            f"{tuple(label_count.shape)} of {label_count.dtype}"
        )
    if not eps >= 0:
        raise InputError(f"{OP}: eps must be 0 or more, got {eps}")


def _why_not_triton(context_a: Tensor, context_b: Tensor) -> str | None:
    limit = "channels", context_a.shape[-1], WEIGHTED_LOSSES_CHANNELS
    return over_limit(OP, limit) or why_not_triton(OP, context_a, context_b)


def _forward(
    clustering_loss: Tensor,
    stability_loss: Tensor,
    context_a: Tensor,
    context_b: Tensor,
    label_count: Tensor,
    weights: LossWeights,
    eps: float,
) -> tuple[Tensor, ...]:
    from msformer_fast.kernels.weighted_losses import weighted_losses_forward

    return weighted_losses_forward(clustering_loss, stability_loss, context_a, context_b, label_count, weights, eps)


def _backward(
    grad_total: Tensor | None,
    grad_weighted_clustering: Tensor | None,
    grad_weighted_consistency: Tensor | None,
    grad_weighted_stability: Tensor | None,
    clustering_loss: Tensor,
    stability_loss: Tensor,
    context_a: Tensor,
    context_b: Tensor,
    weights: LossWeights,
    eps: float,
) -> tuple[Tensor, ...]:
    from msformer_fast.kernels.weighted_losses import weighted_losses_backward

    grads = grad_total, grad_weighted_clustering, grad_weighted_consistency, grad_weighted_stability
    return weighted_losses_backward(grads, clustering_loss, stability_loss, context_a, context_b, weights, eps)


def _shapes(context_a: Tensor) -> tuple[Tensor, ...]:
    scalars = (context_a.new_empty((), dtype=sum_dtype(context_a.dtype)) for _ in range(4))
    return (*scalars, context_a.new_empty(5, dtype=torch.float64))


_registered = register(
    OP,
    forward=_forward,
    outputs=("total", "weighted_clustering", "weighted_consistency", "weighted_stability", "numbers"),
    shapes=_shapes,
    backward=_backward,
    gradients=["clustering_loss", "stability_loss", "context_a", "context_b"],
)
