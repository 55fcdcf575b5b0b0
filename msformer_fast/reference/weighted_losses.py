"""Inter-scale consistency of two contexts, and the three self-guiding losses of MS-Former, weighted and added."""

from __future__ import annotations

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype


def consistency_loss(context_a: Tensor, context_b: Tensor, eps: float) -> Tensor:
    """See :func:`msformer_fast.consistency_loss`."""
    norm_a = context_a.square().sum(-1) + eps
    norm_b = context_b.square().sum(-1) + eps
    cosine = (context_a * context_b).sum(-1) / (norm_a * norm_b).sqrt()
    return (1 - cosine).mean()


def weighted_losses(
    clustering_loss: Tensor,
    stability_loss: Tensor,
    context_a: Tensor,
    context_b: Tensor,
    label_count: Tensor,
    weights: tuple[float, float, float],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`msformer_fast.ops.weighted_losses`."""
    wide = sum_dtype(context_a.dtype)
    clustering = weights[0] * clustering_loss.to(wide)
    consistency = weights[1] * consistency_loss(context_a.to(wide), context_b.to(wide), eps)
    stability = weights[2] * stability_loss.to(wide)
    total = clustering + consistency + stability

    most_labels = label_count.max() if label_count.numel() else label_count.new_zeros(())
    numbers = [number.detach().double() for number in (total, clustering, consistency, stability, most_labels)]
    return total, clustering, consistency, stability, torch.stack(numbers)
