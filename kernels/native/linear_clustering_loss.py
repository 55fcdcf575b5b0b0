"""Launchers of the CPU kernels of the clustering loss fused with its projection."""

from __future__ import annotations

import torch
from torch import Tensor

from msformer_fast.kernels.native.clustering_loss import arguments_of, given, results_of
from msformer_fast.kernels.native.library import run
from msformer_fast.kernels.native.strides import contiguous


def linear_clustering_loss_forward(
    features: Tensor, weight: Tensor, bias: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, labels (B, H, W) and label count (B) of features (B, H, W, D)."""
    features, weight = features.contiguous(), weight.contiguous()
    results = results_of(features, weight.shape[0], reduction)
    run(
        "linear_clustering_loss_forward",
        features=features, **_sizes(features, weight), weight=weight, bias=contiguous(bias),
        **arguments_of(results, reduction),
    )  # fmt: skip
    return results


def linear_clustering_loss_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, reduction: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the features, in their layout, of the weight and the bias."""
    d_features = torch.empty_like(features)
    features, weight, bias = features.contiguous(), weight.contiguous(), contiguous(bias)
    out = d_features if d_features.is_contiguous() else torch.empty_like(features)
    d_weight, d_bias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
    run(
        "linear_clustering_loss_backward",
        features=features, **_sizes(features, weight), weight=weight, bias=bias,
        **given(grad, labels, reduction), d_features=out, d_weight=d_weight, d_bias=d_bias,
    )  # fmt: skip
    if out is not d_features:
        d_features.copy_(out)
    return d_features, d_weight, d_bias


def _sizes(features: Tensor, weight: Tensor) -> dict[str, int]:
    batch, height, width, channels = features.shape
    return {"batch": batch, "pixels": height * width, "channels": channels, "clusters": weight.shape[0]}
