"""Mean and biased variance of every channel of a map, which a batch norm in training applies."""

from __future__ import annotations

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`msformer_fast.ops.batch_statistics`."""
    rows = x.to(sum_dtype(x.dtype)).flatten(0, 2)  # [B H W, C]
    if not rows.shape[0]:
        return rows.new_zeros(rows.shape[1]), rows.new_zeros(rows.shape[1])
    var, mean = torch.var_mean(rows, 0, correction=0)
    return mean, var
