"""Launchers of the CPU kernels of the patch embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast.kernels.native.library import run
from msformer_fast.kernels.native.strides import contiguous, memory_of, strides_of


def patch_embedding_forward(
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patch: int,
) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, T, C)."""
    rows = _rows(logits)
    batch, height, width, _ = rows.shape
    patches = ((height - 1) // patch) * ((width - 1) // patch)
    queries, keys = (logits.new_empty(batch, patches, weight.shape[0]) for _ in "qk")
    embedded = logits.new_empty(2, batch, patches, weight.shape[0])
    run(
        "patch_embedding_forward",
        **_shared(rows, mean, rstd, gamma, beta, weight, patch), bias=contiguous(bias),
        embedded=embedded,
    )  # fmt: skip
    return queries.copy_(embedded[0]), keys.copy_(embedded[1])


def patch_embedding_backward(
    grad_queries: Tensor,
    grad_keys: Tensor,
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    patch: int,
    batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the logits, in their layout, of the weight, the bias (C), gamma and beta (K)."""
    rows, d_logits = _rows(logits), torch.empty_like(logits)
    d_rows = d_logits.permute(0, 2, 3, 1)
    out = d_rows if d_rows.stride(3) == 1 else torch.empty_like(rows, memory_format=torch.contiguous_format)
    d_weight = weight.new_empty(weight.shape)
    d_bias, d_gamma, d_beta = (weight.new_empty(size) for size in (weight.shape[0], rows.shape[3], rows.shape[3]))
    run(
        "patch_embedding_backward",
        **_shared(rows, mean, rstd, gamma, beta, weight, patch), batch_stats=batch_stats,
        grad=torch.stack((grad_queries, grad_keys)), d_logits=memory_of(out), **strides_of(out, "bhw", "d_"),
        d_weight=d_weight, d_bias=d_bias, d_gamma=d_gamma, d_beta=d_beta,
    )  # fmt: skip
    if out is not d_rows:
        d_rows.copy_(out)
    return d_logits, d_weight, d_bias, d_gamma, d_beta


def _rows(logits: Tensor) -> Tensor:
    """(B, H, W, K) itself where clusters are neighbours in memory, else a copy."""
    rows = logits.permute(0, 2, 3, 1)
    return rows if rows.stride(3) == 1 else rows.contiguous()


def _shared(
    rows: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, patch: int
) -> dict[str, Any]:
    """Arguments that the kernels share."""
    batch, height, width, clusters = rows.shape
    norm = {"mean": mean, "rstd": rstd, "gamma": gamma, "beta": beta}
    return dict(
        logits=memory_of(rows), **strides_of(rows, "bhw"), batch=batch, height=height, width=width, clusters=clusters,
        **{name: value.float().contiguous() for name, value in norm.items()}, weight=weight.contiguous(),
        channels=weight.shape[0], patch=patch,
    )  # fmt: skip
