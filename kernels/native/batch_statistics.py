"""Launcher of the CPU kernel for a map's statistics."""

from __future__ import annotations

from torch import Tensor

from msformer_fast.kernels.native.library import run


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of ``x`` (B, C, H, W), any strides, float32."""
    rows = x.permute(0, 2, 3, 1).contiguous().view(-1, x.shape[1])
    mean, var = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    run("batch_statistics", x=rows, rows=rows.shape[0], channels=rows.shape[1], mean=mean, var=var)
    return mean, var
