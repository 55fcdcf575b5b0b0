"""Spatial stability (MS-Former, intra-scale loss): a patch is to attend to its own shifted copy alone."""

from __future__ import annotations

import torch
from torch import Tensor


def stability_attention(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """See :func:`msformer_fast.ops.stability_attention`."""
    # The softmax of half precision is in float32, as autocast would run it; the product keeps its dtype.
    scores = queries @ keys.transpose(-1, -2) / scale
    wide = torch.float32 if scores.dtype in (torch.float16, torch.bfloat16) else scores.dtype
    return torch.softmax(scores, dim=-1, dtype=wide)


def stability_loss(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """See :func:`msformer_fast.ops.stability_loss`."""
    attention = stability_attention(queries, keys, scale)
    identity = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    return (attention - identity).abs().mean()
