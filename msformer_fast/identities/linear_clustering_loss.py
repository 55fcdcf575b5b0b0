"""The clustering loss of projected features, in strips: the scores exist for one strip at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.identities import clustering_loss as identity
from msformer_fast.identities.strips import strips


def linear_clustering_loss(
    features: Tensor, weight: Tensor, bias: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`msformer_fast.ops.linear_clustering_loss`."""
    return identity.clustering_loss(F.linear(features, weight, bias), -1, reduction)


def linear_clustering_loss_forward(
    features: Tensor, weight: Tensor, bias: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, labels and label count of features (B, H, W, D)."""
    dtype = sum_dtype(features.dtype)
    losses = features.new_empty(features.shape[:-1], dtype=dtype)
    labels = features.new_empty(features.shape[:-1], dtype=label_dtype(weight.shape[0]))
    for image, first, last in _ranges(features, weight):
        loss, label = identity.pixel_losses(_scores(features[image, first:last], weight, bias))
        losses[image, first:last] = loss.view(last - first, -1)
        labels[image, first:last] = label.view(last - first, -1)
    return identity.reduced(losses, reduction), labels, identity.count_labels(labels, weight.shape[0])


def linear_clustering_loss_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the features, the weight and the bias (K)."""
    dtype = sum_dtype(features.dtype)
    d_features = torch.empty_like(features)
    wide = weight.to(dtype)
    d_weight, d_bias = torch.zeros_like(wide), wide.new_zeros(weight.shape[0])
    grad = grad / labels.numel() if reduction == "mean" else grad
    for image, first, last in _ranges(features, weight):
        rows = features[image, first:last]
        slope = grad[image, first:last].reshape(-1, 1) if reduction == "none" else grad
        d_scores = identity.pixel_gradients(_scores(rows, weight, bias), labels[image, first:last].reshape(-1), slope)
        d_weight.addmm_(d_scores.t(), rows.to(dtype).reshape(-1, rows.shape[-1]))
        d_bias += d_scores.sum(0)
        d_features[image, first:last] = (d_scores @ wide).view(rows.shape)
    return d_features, d_weight.to(weight.dtype), d_bias.to(weight.dtype)


def _ranges(features: Tensor, weight: Tensor) -> list[tuple[int, int, int]]:
    """(image, first row, last row) of every strip."""
    batch, height, width, channels = features.shape
    row = width * max(weight.shape[0], channels) * sum_dtype(features.dtype).itemsize
    return [(image, first, last) for image in range(batch) for first, last in strips(height, row)]


def _scores(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Scores (n, K) of rows of features, in the dtype of sums."""
    dtype = sum_dtype(features.dtype)
    rows = features.to(dtype).reshape(-1, features.shape[-1])
    return F.linear(rows, weight.to(dtype), None if bias is None else bias.to(dtype))
