"""Patches of the batch-normed score map, cut twice one diagonal step apart, projected (MS-Former)."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def patch_embedding(
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    patch: int,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See :func:`msformer_fast.ops.patch_embedding`."""
    rows, columns = (side - 1 - (side - 1) % patch for side in logits.shape[2:])
    normed = F.batch_norm(logits, running_mean, running_var, norm_weight, norm_bias, training, momentum, eps)

    def embed(window: Tensor) -> Tensor:
        patches = rearrange(window, "b k (h p1) (w p2) -> b (h w) (p1 p2 k)", p1=patch, p2=patch)
        return F.linear(patches, weight, bias)

    queries = embed(normed[:, :, 1 : 1 + rows, 1 : 1 + columns])
    keys = embed(normed[:, :, :rows, :columns])
    return queries, keys
