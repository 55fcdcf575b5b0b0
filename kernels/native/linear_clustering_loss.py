"""Launchers of the CPU kernels of the clustering loss fused with its projection."""

from __future__ import annotations

import torch
from torch import Tensor

from msformer_fast.dtypes import label_dtype
from msformer_fast.kernels.native.library import run


def linear_clustering_loss_forward(
    features: Tensor, weight: Tensor, bias: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, labels (B, H, W) and label count (B) of features (B, H, W, D)."""
    features, weight = features.contiguous(), weight.contiguous()
    each = reduction == "none"
    loss = features.new_empty(features.shape[:3] if each else ())
    labels = features.new_empty(features.shape[:3], dtype=label_dtype(weight.shape[0]))
    label_count = features.new_empty(features.shape[0], dtype=torch.int32)
    run(
        "linear_clustering_loss_forward",
        features=features, **_sizes(features, weight), weight=weight, bias=_contiguous(bias),
        mean=reduction == "mean", losses=loss if each else None, loss=None if each else loss, labels=labels,
        label_bytes=labels.itemsize, label_count=label_count,
    )  # fmt: skip
    return loss, labels, label_count


def linear_clustering_loss_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, reduction: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the features, in their layout, of the weight and the bias."""
    d_features = torch.empty_like(features)
    features, weight, bias = features.contiguous(), weight.contiguous(), _contiguous(bias)
    out = d_features if d_features.is_contiguous() else torch.empty_like(features)
    d_weight, d_bias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
    run(
        "linear_clustering_loss_backward",
        features=features, **_sizes(features, weight), weight=weight, bias=bias, labels=labels,
        label_bytes=labels.itemsize, grad=grad.contiguous(), per_pixel=reduction == "none",
        divisor=labels.numel() if reduction == "mean" else 1, d_features=out, d_weight=d_weight, d_bias=d_bias,
    )  # fmt: skip
    if out is not d_features:
        d_features.copy_(out)
    return d_features, d_weight, d_bias


def _contiguous(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _sizes(features: Tensor, weight: Tensor) -> dict[str, int]:
    batch, height, width, channels = features.shape
    return {"batch": batch, "pixels": height * width, "channels": channels, "clusters": weight.shape[0]}
