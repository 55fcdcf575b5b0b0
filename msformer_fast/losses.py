"""The three self-guiding losses of MS-Former, weighted and added."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from msformer_fast import ops
from msformer_fast.errors import InputError
from msformer_fast.model import Scores


class LossWeights(NamedTuple):
    """Weights of the losses; the defaults are the authors'. Their label-free demo uses (1, 2, 1.2)."""

    clustering: float = 1.0
    consistency: float = 1.5
    stability: float = 1.3

    def check(self) -> None:
        """Raises InputError unless every weight is finite and not negative."""
        for name, weight in self._asdict().items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"weights: {name} must be a finite number, 0 or more; got {weight}")


class Losses(NamedTuple):
    """Scalars, weighted: ``total`` is the sum of the other three. Labels and counts come from the same pass.

    Attributes:
        labels: (B, H, W), smallest integer dtype that holds K.
        label_count: (B) int32, the distinct labels of each image.
    """

    total: Tensor
    clustering: Tensor
    consistency: Tensor
    stability: Tensor
    labels: Tensor
    label_count: Tensor


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
    norm_a = context_a.square().sum(-1) + eps
    norm_b = context_b.square().sum(-1) + eps
    cosine = (context_a * context_b).sum(-1) / (norm_a * norm_b).sqrt()
    return (1 - cosine).mean()


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
    weights = weights or LossWeights()
    if scores.queries is None or scores.keys is None:
        raise InputError("self_guiding_losses: scores hold no queries and keys; call the model with stability=True")
    clustering, labels, label_count = scores.clustering or ops.clustering_loss(scores.logits, backend=backend)
    clustering = weights.clustering * clustering
    consistency = weights.consistency * consistency_loss(scores.context_fine, scores.context_coarse)
    stability = weights.stability * ops.stability_loss(scores.queries, scores.keys, scale=scale, backend=backend)
    return Losses(clustering + consistency + stability, clustering, consistency, stability, labels, label_count)
