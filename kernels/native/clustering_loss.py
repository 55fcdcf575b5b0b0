"""Launchers of the CPU kernels of the clustering loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast.dtypes import label_dtype
from msformer_fast.kernels.native.library import run
from msformer_fast.kernels.native.strides import memory_of, strides_of


def clustering_loss_forward(logits: Tensor, reduction: str, cluster_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, labels (B, H, W) and label count (B)."""
    rows = _neighbours(logits.movedim(cluster_dim, -1))
    results = results_of(rows, rows.shape[3], reduction)
    run(
        "clustering_loss_forward",
        logits=memory_of(rows), **_sizes(rows, _is_one_row(rows)), **strides_of(rows),
        **arguments_of(results, reduction),
    )  # fmt: skip
    return results


def clustering_loss_backward(grad: Tensor, logits: Tensor, labels: Tensor, reduction: str, cluster_dim: int) -> Tensor:
    """Gradient of the logits, in their layout."""
    rows = _neighbours(logits.movedim(cluster_dim, -1))
    d_logits = torch.empty_like(logits)
    d_rows = d_logits.movedim(cluster_dim, -1)
    axis = 3 if rows.stride(3) == 1 else 2
    out = d_rows if d_rows.stride(axis) == 1 else torch.empty_like(rows)
    run(
        "clustering_loss_backward",
        logits=memory_of(rows), **_sizes(rows, _is_one_row(rows) and _is_one_row(out)), **strides_of(rows),
        **given(grad, labels, reduction), d_logits=memory_of(out), **strides_of(out, prefix="d_"),
    )  # fmt: skip
    if out is not d_rows:
        d_rows.copy_(out)
    return d_logits


def results_of(like: Tensor, clusters: int, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, labels (B, H, W) and label count (B) of a map (B, H, W, ...), empty."""
    loss = like.new_empty(like.shape[:3] if reduction == "none" else ())
    labels = like.new_empty(like.shape[:3], dtype=label_dtype(clusters))
    return loss, labels, like.new_empty(like.shape[0], dtype=torch.int32)


def arguments_of(results: tuple[Tensor, Tensor, Tensor], reduction: str) -> dict[str, Any]:
    """The results of :func:`results_of` as the kernels take them."""
    (loss, labels, label_count), each = results, reduction == "none"
    losses = {"losses": loss if each else None, "loss": None if each else loss, "mean": reduction == "mean"}
    return {**losses, "labels": labels, "label_bytes": labels.itemsize, "label_count": label_count}


def given(grad: Tensor, labels: Tensor, reduction: str) -> dict[str, Any]:
    """What both backward kernels are given of each pixel."""
    slopes = {"grad": grad.contiguous(), "per_pixel": reduction == "none"}
    divisor = labels.numel() if reduction == "mean" else 1
    return {**slopes, "divisor": divisor, "labels": labels, "label_bytes": labels.itemsize}


def _neighbours(rows: Tensor) -> Tensor:
    """(B, H, W, K) itself where clusters or pixels of a row are neighbours in memory, else a copy."""
    return rows if 1 in rows.stride()[2:] else rows.contiguous()


def _is_one_row(rows: Tensor) -> bool:
    """Whether rows of an image follow one another, so that they are one long row."""
    return rows.stride(1) == rows.shape[2] * rows.stride(2)


def _sizes(rows: Tensor, one_row: bool) -> dict[str, int]:
    batch, height, width, clusters = rows.shape
    height, width = (1, height * width) if one_row else (height, width)
    return {"batch": batch, "height": height, "width": width, "clusters": clusters}
