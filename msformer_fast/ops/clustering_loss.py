"""The clustering loss of every pixel, with the label map and the label count of the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import clustering_loss as identity
from msformer_fast.limits import CLUSTERING_LOSS_CLUSTERS
from msformer_fast.ops.backend import choose, over_limit, runs_in_strips, why_not_native, why_not_torch, why_not_triton
from msformer_fast.ops.registration import register
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.clustering_loss import clustering_loss as _reference

OP = "clustering_loss"
REDUCTIONS = ("mean", "sum", "none")


class Clustering(NamedTuple):
    """The clustering loss, and what its pass finds besides.

    Attributes:
        loss: scalar, or one a pixel, (B, H, W).
        labels: (B, H, W), the smallest integer dtype that holds K.
        label_count: (B) int32, distinct labels of each image.
    """

    loss: Tensor
    labels: Tensor
    label_count: Tensor


def clustering_loss(
    logits: Tensor, *, cluster_dim: int = 1, reduction: str = "mean", backend: str | None = None
) -> Clustering:
    """Cross-entropy of the scores against their own argmax: ``logsumexp(l) - max(l)`` for each pixel.

    Args:
        logits: (B, K, H, W) with ``cluster_dim=1`` or (B, H, W, K) with ``cluster_dim=-1``; any strides, K >= 2.
        cluster_dim: the axis of the clusters, 1 or -1.
        reduction: ``"mean"`` or ``"sum"`` over every pixel of the batch, or ``"none"``.
        backend: ``"triton"``, ``"native"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        ``loss``, a scalar, or (B, H, W) for ``"none"``; float32 for half-precision logits, else the logits' dtype.
        ``labels`` (B, H, W), the argmax (the first of equals), in the smallest integer dtype that holds K; no gradient
        goes through it. ``label_count`` (B) int32, the number of distinct labels in each image, on the logits' device.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    The kernels' gradient cannot be differentiated again; that of the other backends can.

    Source: MS-Former, clustering loss; Kim et al., IEEE TIP 2020, equation 1.
    """
    if cluster_dim not in (1, -1):
        raise InputError(f"{OP}: cluster_dim must be 1 or -1, got {cluster_dim}")
    if reduction not in REDUCTIONS:
        raise InputError(f"{OP}: reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    shapes = Shapes(OP)
    shapes("logits", logits, "B K H W" if cluster_dim == 1 else "B H W K")
    if shapes["K"] < 2:
        raise InputError(f"{OP}: logits must have at least 2 clusters, got {shapes['K']}")
    refusals = {
        "triton": lambda: _why_not_triton(logits, shapes["K"]),
        "native": lambda: why_not_native(OP, logits),
        "torch": lambda: why_not_torch(OP, logits),
    }
    chosen = choose(OP, backend, logits.device, refusals)
    if chosen == "reference":
        return Clustering(*_reference(logits, cluster_dim, reduction))
    if chosen == "torch" and not runs_in_strips(logits):
        return Clustering(*identity.clustering_loss(logits, cluster_dim, reduction))
    return Clustering(*_registered(logits, reduction, cluster_dim, chosen))


def _why_not_triton(logits: Tensor, clusters: int) -> str | None:
    return over_limit(OP, ("clusters", clusters, CLUSTERING_LOSS_CLUSTERS)) or why_not_triton(OP, logits)


def _forward(logits: Tensor, reduction: str, cluster_dim: int, backend: str) -> tuple[Tensor, ...]:
    if backend == "torch":
        return identity.clustering_loss_forward(logits, reduction, cluster_dim)
    if backend == "native":
        from msformer_fast.kernels.native import clustering_loss as native

        return native.clustering_loss_forward(logits, reduction, cluster_dim)
    from msformer_fast.kernels.clustering_loss import clustering_loss_forward

    return clustering_loss_forward(logits, reduction, cluster_dim)


def _backward(
    grad_loss: Tensor, logits: Tensor, labels: Tensor, reduction: str, cluster_dim: int, backend: str
) -> Tensor:
    if backend == "torch":
        return identity.clustering_loss_backward(grad_loss, logits, labels, reduction, cluster_dim)
    if backend == "native":
        from msformer_fast.kernels.native import clustering_loss as native

        return native.clustering_loss_backward(grad_loss, logits, labels, reduction, cluster_dim)
    from msformer_fast.kernels.clustering_loss import clustering_loss_backward

    return clustering_loss_backward(logits, grad_loss, reduction, cluster_dim)


def _shapes(logits: Tensor, reduction: str, cluster_dim: int) -> tuple[Tensor, ...]:
    pixels = list(logits.shape)
    clusters = pixels.pop(cluster_dim)
    return empty_results(logits, pixels, clusters, reduction)


def empty_results(like: Tensor, pixels: Sequence[int], clusters: int, reduction: str) -> tuple[Tensor, ...]:
    """Loss, labels (B, ...) and label count (B) of scores of this shape without clusters, for tracing."""
    loss = like.new_empty(pixels if reduction == "none" else (), dtype=sum_dtype(like.dtype))
    labels = like.new_empty(pixels, dtype=label_dtype(clusters))
    return loss, labels, like.new_empty(pixels[0], dtype=torch.int32)


_registered = register(
    OP,
    forward=_forward,
    outputs=("loss", "labels", "label_count"),
    shapes=_shapes,
    backward=_backward,
    gradients=["logits"],
    gradient_shapes=lambda logits: torch.empty_like(logits),
    expression=identity.clustering_loss,
)
