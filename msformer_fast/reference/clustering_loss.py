"""Cross-entropy of a pixel's cluster scores against their own argmax (MS-Former, clustering loss)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from msformer_fast.dtypes import label_dtype


def clustering_loss(logits: Tensor, cluster_dim: int, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`msformer_fast.ops.clustering_loss`."""
    if cluster_dim == -1:
        logits = rearrange(logits, "b h w k -> b k h w")
    clusters = logits.shape[1]

    # Half precision is scored in float32, as autocast would; the gradient returns in the logits' dtype.
    scores = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    labels = scores.detach().argmax(dim=1)
    loss = F.cross_entropy(scores, labels, reduction=reduction)

    present = torch.zeros(logits.shape[0], clusters, dtype=torch.int32, device=logits.device)
    present.scatter_(1, labels.flatten(1), 1)
    return loss, labels.to(label_dtype(clusters)), present.sum(dim=1, dtype=torch.int32)
