"""The head of MS-Former: upsample the coarse branch, put it beside the fine one, project to clusters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def score_map(coarse: Tensor, fine: Tensor, up_weight: Tensor, head_weight: Tensor) -> Tensor:
    """See :func:`msformer_fast.ops.score_map`."""
    height, width = fine.shape[1:3]
    up = F.linear(coarse, up_weight)
    up = rearrange(up, "b h w (p1 p2 c) -> b (h p1) (w p2) c", p1=2, p2=2)
    both = torch.cat([up[:, :height, :width], fine], dim=-1)
    return F.linear(both, head_weight)
