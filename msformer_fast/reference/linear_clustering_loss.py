"""The clustering loss of scores that a linear layer makes of features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from msformer_fast.reference.clustering_loss import clustering_loss


def linear_clustering_loss(
    features: Tensor, weight: Tensor, bias: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`msformer_fast.ops.linear_clustering_loss`."""
    return clustering_loss(F.linear(features, weight, bias), -1, reduction)
