"""Mix-FFN (Xie et al., SegFormer, NeurIPS 2021) with the inner skip and norm that MS-Former adds."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def mix_ffn(
    t: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    inner_norm_weight: Tensor | None,
    inner_norm_bias: Tensor | None,
    norm: bool,
    inner_norm: bool,
    inner_skip: bool,
    residual: bool,
    eps: float,
) -> Tensor:
    """See :func:`msformer_fast.ops.mix_ffn`."""
    z = F.layer_norm(t, t.shape[-1:], norm_weight, norm_bias, eps) if norm else t
    u = F.linear(z, fc1_weight, fc1_bias)

    v = rearrange(u, "b h w d -> b d h w")
    v = F.conv2d(v, depthwise_weight, depthwise_bias, padding=1, groups=v.shape[1])
    v = rearrange(v, "b d h w -> b h w d")

    if inner_skip:
        v = v + u
    if inner_norm:
        v = F.layer_norm(v, v.shape[-1:], inner_norm_weight, inner_norm_bias, eps)
    y = F.linear(F.gelu(v), fc2_weight, fc2_bias)
    return t + y if residual else y
