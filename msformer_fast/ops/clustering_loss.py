"""The clustering loss of every pixel, with the label map and the label count of the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import clustering_loss as identity
from msformer_fast.ops.backend import choose, over_limit, runs_in_strips, why_not_torch, why_not_triton
from msformer_fast.ops.double_backward import differentiable_gradients, refuse_double_backward, wants_double_backward
from msformer_fast.ops.launch import in_strips, launching
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.clustering_loss import clustering_loss as _reference

OP = "clustering_loss"
REDUCTIONS = ("mean", "sum", "none")
MAX_CLUSTERS = 1024


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
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        loss: scalar, or (B, H, W) for ``"none"``; float32 for half-precision logits, else the logits' dtype.
        labels: (B, H, W), the argmax (the first of equals), in the smallest integer dtype that holds K;
            no gradient goes through it.
        label_count: (B) int32, the number of distinct labels in each image, on the logits' device.

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
    refusals = {"triton": lambda: _why_not_triton(logits, shapes["K"]), "torch": lambda: why_not_torch(OP, logits)}
    chosen = choose(OP, backend, logits.device, refusals)
    if chosen == "reference":
        return Clustering(*_reference(logits, cluster_dim, reduction))
    if chosen == "torch" and not runs_in_strips(logits):
        return Clustering(*identity.clustering_loss(logits, cluster_dim, reduction))
    return Clustering(*_forward(logits, reduction, cluster_dim, chosen))


def _why_not_triton(logits: Tensor, clusters: int) -> str | None:
    return over_limit(OP, ("clusters", clusters, MAX_CLUSTERS)) or why_not_triton(OP, logits)


@torch.library.custom_op("msformer_fast::clustering_loss", mutates_args=())
def _forward(logits: Tensor, reduction: str, cluster_dim: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "torch":
        with in_strips("clustering_loss.forward", logits):
            return identity.clustering_loss_forward(logits, reduction, cluster_dim)
    from msformer_fast.kernels.clustering_loss import clustering_loss_forward

    with launching("clustering_loss.forward", logits):
        return clustering_loss_forward(logits, reduction, cluster_dim)


@_forward.register_fake
def _(logits: Tensor, reduction: str, cluster_dim: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    shape = list(logits.shape)
    clusters = shape.pop(cluster_dim)
    return fake_results(logits, shape, clusters, reduction)


def fake_results(like: Tensor, shape: Sequence[int], clusters: int, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Empty loss, labels (of ``shape``) and label count (of its first axis), for tracing."""
    loss = like.new_empty(shape if reduction == "none" else (), dtype=sum_dtype(like.dtype))
    count = like.new_empty(shape[0], dtype=torch.int32)
    return loss, like.new_empty(shape, dtype=label_dtype(clusters)), count


@torch.library.custom_op("msformer_fast::clustering_loss_backward", mutates_args=())
def _backward(
    grad_loss: Tensor, logits: Tensor, labels: Tensor, reduction: str, cluster_dim: int, backend: str
) -> Tensor:
    if backend == "torch":
        with in_strips("clustering_loss.backward", logits):
            return identity.clustering_loss_backward(grad_loss, logits, labels, reduction, cluster_dim)
    from msformer_fast.kernels.clustering_loss import clustering_loss_backward

    with launching("clustering_loss.backward", logits):
        return clustering_loss_backward(logits, grad_loss, reduction, cluster_dim)


@_backward.register_fake
def _(grad_loss: Tensor, logits: Tensor, labels: Tensor, reduction: str, cluster_dim: int, backend: str) -> Tensor:
    return torch.empty_like(logits)


refuse_double_backward(OP, _backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, ctx.reduction, ctx.cluster_dim, ctx.backend = inputs
    ctx.save_for_backward(logits, output[1])


def _differentiate(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, None, None, None]:
    logits, labels = ctx.saved_tensors
    reduction, cluster_dim = ctx.reduction, ctx.cluster_dim
    if ctx.backend == "torch" and wants_double_backward():
        (d_logits,) = differentiable_gradients(
            lambda x: identity.clustering_loss(x, cluster_dim, reduction)[:1], [logits], [grad_loss]
        )
        return d_logits, None, None, None
    return _backward(grad_loss, logits, labels, reduction, cluster_dim, ctx.backend), None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
