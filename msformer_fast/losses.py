"""The three self-guiding losses of MS-Former, weighted and added."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from msformer_fast import ops
from msformer_fast.errors import InputError
from msformer_fast.loss_weights import LossWeights
from msformer_fast.model import Scores
from msformer_fast.reference import weighted_losses as _reference

__all__ = ["LossWeights", "Losses", "consistency_loss", "self_guiding_losses"]


class Losses(NamedTuple):
    """Scalars, weighted: ``total`` is the sum of the other three. Labels and counts come from the same pass.

    Attributes:
        labels: (B, H, W), smallest integer dtype that holds K.
        label_count: (B) int32, the distinct labels of each image.
        numbers: (5) float64, not differentiable: the four losses and the largest label count, for one transfer to the
            host.
    """

    total: Tensor
    clustering: Tensor
    consistency: Tensor
    stability: Tensor
    labels: Tensor
    label_count: Tensor
    numbers: Tensor


def consistency_loss(context_a: Tensor, context_b: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Inter-scale consistency: mean over the rows of ``1 - cos(row_a, row_b)``, mean over the batch.

    Args:
        context_a, context_b: (B, Ck, Cv), floating point.
        eps: added to each squared norm.

    Returns:
        A scalar, in the contexts' dtype.

    Raises:
        InputError: contexts of another shape, or of two shapes.

    Source: MS-Former, inter-scale loss.
    """
    if context_a.shape != context_b.shape or context_a.ndim != 3:
        raise InputError(
            "consistency_loss: context_a and context_b must both be (B, Ck, Cv); "
            f"got {tuple(context_a.shape)} and {tuple(context_b.shape)}"
        )
    return _reference.consistency_loss(context_a, context_b, eps)


def self_guiding_losses(
    scores: Scores, weights: LossWeights | None = None, *, scale: float = 8.0, backend: str | None = None
) -> Losses:
    """Clustering, inter-scale consistency and spatial stability loss of one forward pass.

    Args:
        scores: from :class:`msformer_fast.MSFormer`, with queries and keys.
        weights: of the three losses; ``None`` for the authors'.
        scale: divisor of the stability loss's scores.
        backend: see :mod:`msformer_fast.ops`.

    Raises:
        InputError: the scores hold no queries and keys.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: MS-Former, clustering, inter-scale and intra-scale losses.
    """
    if scores.queries is None or scores.keys is None:
        raise InputError("self_guiding_losses: scores hold no queries and keys; call the model with stability=True")
    clustering, labels, label_count = scores.clustering or ops.clustering_loss(scores.logits, backend=backend)
    stability = ops.stability_loss(scores.queries, scores.keys, scale=scale, backend=backend)
    total, clustering, consistency, stability, numbers = ops.weighted_losses(
        clustering,
        stability,
        scores.context_fine,
        scores.context_coarse,
        label_count,
        weights=weights,
        backend=backend,
    )
    return Losses(total, clustering, consistency, stability, labels, label_count, numbers)
