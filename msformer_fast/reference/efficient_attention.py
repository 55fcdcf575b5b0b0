"""Efficient attention (Shen et al., WACV 2021, as used by MS-Former, section 1 of the paper's method)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def efficient_attention(
    x: Tensor,
    key_weight: Tensor,
    key_bias: Tensor | None,
    query_weight: Tensor,
    query_bias: Tensor | None,
    value_weight: Tensor,
    value_bias: Tensor | None,
    reprojection_weight: Tensor,
    reprojection_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See :func:`msformer_fast.ops.efficient_attention`."""
    height, width = x.shape[1:3]
    n = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps) if norm else x

    keys = rearrange(F.linear(n, key_weight, key_bias), "b h w (m k) -> b m k (h w)", m=heads)
    queries = rearrange(F.linear(n, query_weight, query_bias), "b h w (m k) -> b m k (h w)", m=heads)
    values = rearrange(F.linear(n, value_weight, value_bias), "b h w (m v) -> b m v (h w)", m=heads)

    context = torch.softmax(keys, dim=-1) @ values.transpose(-1, -2)
    attended = context.transpose(-1, -2) @ torch.softmax(queries, dim=-2)

    attended = rearrange(attended, "b m v (h w) -> b h w (m v)", h=height, w=width)
    y = F.linear(attended, reprojection_weight, reprojection_bias)
    return (x + y if residual else y), context
