"""Spatial stability (MS-Former, intra-scale loss): a patch is to attend to its own shifted copy alone."""

from __future__ import annotations

import torch
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


def stability_attention(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """See :func:`msformer_fast.ops.stability_attention`."""
    return torch.softmax(queries @ keys.transpose(-1, -2) / scale, dim=-1)


def stability_loss(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """See :func:`msformer_fast.ops.stability_loss`."""
    attention = stability_attention(queries, keys, scale)
    identity = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    return (attention - identity).abs().mean()
