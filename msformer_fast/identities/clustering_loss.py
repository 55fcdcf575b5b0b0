"""The clustering loss through its identity: a pixel's loss is ``logsumexp(l) - max(l)``, its gradient
``softmax(l) - onehot(argmax l)``. Loss, label and label count come from one read of the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.identities.strips import strips


def clustering_loss(logits: Tensor, cluster_dim: int, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`msformer_fast.ops.clustering_loss`."""
    scores = logits.movedim(cluster_dim, -1).to(sum_dtype(logits.dtype))
    top, labels = scores.detach().max(-1)
    shifted = scores - top[..., None]
    loss = shifted.logsumexp(-1) - shifted.gather(-1, labels[..., None])[..., 0]
    return reduced(loss, reduction), labels.to(label_dtype(scores.shape[-1])), count_labels(labels, scores.shape[-1])


def count_labels(labels: Tensor, clusters: int) -> Tensor:
    """Distinct labels of each image, (B) int32, from (B, ...)."""
    absent = torch.zeros(labels.shape[0], clusters, dtype=torch.int32, device=labels.device)
    present = absent.scatter(1, labels.flatten(1).long(), 1)  # not in place, for vmap
    return present.sum(1, dtype=torch.int32)


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """The losses of the pixels, reduced as asked for."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def pixel_losses(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and label of every row of scores (n, K). Small losses keep their digits: they are made of the shares of the
    other clusters, not of 1 less that of the largest."""
    labels = first_largest(scores)
    shares = scores.softmax(-1)
    top = shares.gather(-1, labels)[:, 0]
    others = shares.scatter_(-1, labels, 0).sum(-1)
    return others.div_(top).log1p_(), labels[:, 0]


def first_largest(scores: Tensor) -> Tensor:
    """``argmax`` of every row of scores (n, K), (n, 1): four passes in vectors, a third of the time of PyTorch's own on
    a CPU. The last cluster where a row has a NaN, whose loss is NaN."""
    clusters = scores.shape[-1]
    countdown = torch.arange(clusters, 0, -1, dtype=scores.dtype, device=scores.device)
    # Written as numbers: comparisons that write booleans are not vectorised.
    largest = torch.ge(scores, scores.amax(-1, keepdim=True), out=torch.empty_like(scores))
    first = largest.mul_(countdown).amax(-1, keepdim=True)
    return (clusters - first).clamp_(max=clusters - 1).long()


def pixel_gradients(scores: Tensor, labels: Tensor, grad: Tensor, out: Tensor | None = None) -> Tensor:
    """``(softmax(l) - onehot) * grad`` for rows of scores (n, K), labels (n) and gradients (n, 1) or ()."""
    d_scores = torch.softmax(scores, -1, out=out)
    chosen = labels[:, None].long()
    # 1 - p of the chosen cluster is the sum of the others: p itself may be 1 to every digit.
    others = d_scores.scatter_(-1, chosen, 0).sum(-1, keepdim=True)
    return d_scores.scatter_(-1, chosen, others.neg_()).mul_(grad)


def clustering_loss_forward(logits: Tensor, reduction: str, cluster_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, labels and label count, in strips of rows."""
    scores = logits.movedim(cluster_dim, -1)
    batch, height, width, clusters = scores.shape
    dtype = sum_dtype(logits.dtype)
    losses = logits.new_empty((batch, height, width), dtype=dtype)
    labels = logits.new_empty((batch, height, width), dtype=label_dtype(clusters))
    for image in range(batch):
        for first, last in strips(height, width * clusters * dtype.itemsize):
            loss, label = pixel_losses(scores[image, first:last].to(dtype).reshape(-1, clusters))
            losses[image, first:last] = loss.view(-1, width)
            labels[image, first:last] = label.view(-1, width)
    return reduced(losses, reduction), labels, count_labels(labels, clusters)


def clustering_loss_backward(grad: Tensor, logits: Tensor, labels: Tensor, reduction: str, cluster_dim: int) -> Tensor:
    """Gradient of the logits, in their layout."""
    scores = logits.movedim(cluster_dim, -1)
    batch, height, width, clusters = scores.shape
    d_logits = torch.empty_like(logits)
    d_scores = d_logits.movedim(cluster_dim, -1)
    dtype = sum_dtype(logits.dtype)
    grad = grad / labels.numel() if reduction == "mean" else grad
    for image in range(batch):
        for first, last in strips(height, width * clusters * dtype.itemsize):
            strip = scores[image, first:last].to(dtype).reshape(-1, clusters)
            slope = grad[image, first:last].reshape(-1, 1) if reduction == "none" else grad
            rows = d_scores[image, first:last]
            out = rows.view(-1, clusters) if rows.is_contiguous() and rows.dtype == dtype else None
            d_strip = pixel_gradients(strip, labels[image, first:last].reshape(-1), slope, out)
            if out is None:
                rows.copy_(d_strip.view(rows.shape))
    return d_logits
