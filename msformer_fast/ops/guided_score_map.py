"""The score map together with all that the self-guiding losses read of it, in the fewest passes over it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.limits import GUIDED_SCORE_MAP_CLUSTERS, SCORE_MAP_CHANNELS
from msformer_fast.ops.backend import choose, over_limit, why_not_native, why_not_torch
from msformer_fast.ops.batch_norm import BatchNorm, batch_statistics
from msformer_fast.ops.clustering_loss import clustering_loss
from msformer_fast.ops.patch_embedding import check_patches, patch_embedding
from msformer_fast.ops.precision import cast_product, kernel_precision
from msformer_fast.ops.registration import contiguous_like, register
from msformer_fast.ops.score_map import check_shapes, map_norm, norms_like, score_map, why_not

OP = "guided_score_map"


class GuidedScores(NamedTuple):
    """Scores of a batch, and what its losses read.

    Attributes:
        logits: (B, K, H, W), channels-last in memory.
        loss: scalar, the clustering loss, mean over all pixels.
        queries, keys: (B, T, E), of the stability loss.
        labels, label_count: (B, H, W) and (B), as of :func:`clustering_loss`.
        mean, var: (K), statistics of the logits that the patches were normed by, ``var`` biased; without a gradient.
    """

    logits: Tensor
    loss: Tensor
    queries: Tensor
    keys: Tensor
    labels: Tensor
    label_count: Tensor
    mean: Tensor
    var: Tensor


def guided_score_map(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    coarse_norm: BatchNorm | None = None,
    fine_norm: BatchNorm | None = None,
    patch: int = 32,
    eps: float = 1e-5,
    backend: str | None = None,
) -> GuidedScores:
    """:func:`score_map`, and of its logits :func:`clustering_loss` and :func:`patch_embedding` in training.

    The kernels take the clustering loss, the labels and the batch norm's statistics from the pass that makes the
    logits, and the gradients of both losses from one pass that reads the logits and writes their gradient.

    Args:
        coarse, fine, up_weight, head_weight, coarse_norm, fine_norm: see :func:`score_map`.
        patch_weight: (E, patch * patch * K); patch_bias: (E) or ``None``: ``weight`` and ``bias`` of
            :func:`patch_embedding`.
        norm_weight, norm_bias: (K); patch, eps: see there. The batch norm takes the batch's own statistics.
        backend: ``"triton"`` (C, K and E at most 256), ``"native"``, ``"torch"``, ``"reference"`` or ``None``
            for the fastest that can run. All but the first are the three ops one after the other.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    The gradient of ``"triton"`` cannot be differentiated again; that of the other backends can.

    Source: MS-Former, its head and what the losses read.
    """
    shapes = check_shapes(OP, coarse, fine, up_weight, head_weight, coarse_norm, fine_norm)
    check_patches(OP, shapes, patch_weight, patch_bias, norm_weight, norm_bias, patch)
    affine = cast_product(patch_weight), cast_product(patch_bias), norm_weight, norm_bias
    given = [cast_product(value) for value in (coarse, fine, up_weight, head_weight)]
    refusals = {
        "triton": lambda: _why_not_triton(*affine[:2], *given),
        "native": lambda: why_not_native(OP, *given, *affine, *(coarse_norm or ())[:2], *(fine_norm or ())[:2]),
        "torch": lambda: why_not_torch(OP, *given, *affine[:2]),
    }
    chosen = choose(OP, backend, fine.device, refusals)
    if chosen == "triton":
        made = _registered(*given, coarse_norm, fine_norm, *affine, patch, eps)
        return GuidedScores(*made[: len(GuidedScores._fields)])
    logits = score_map(
        coarse, fine, up_weight, head_weight, coarse_norm=coarse_norm, fine_norm=fine_norm, backend=chosen
    ).permute(0, 3, 1, 2)
    loss, labels, label_count = clustering_loss(logits, backend=chosen)
    queries, keys = patch_embedding(
        logits, patch_weight, patch_bias, norm_weight, norm_bias, patch=patch, eps=eps, backend=chosen
    )
    mean, var = batch_statistics(logits.permute(0, 2, 3, 1), backend=chosen)
    return GuidedScores(logits, loss, queries, keys, labels, label_count, mean, var)


def _why_not_triton(patch_weight: Tensor, patch_bias: Tensor | None, *head: Tensor) -> str | None:
    clusters, width = head[-1].shape[0], patch_weight.shape[0]
    limits = ("clusters", clusters, GUIDED_SCORE_MAP_CLUSTERS), ("embedded channels", width, SCORE_MAP_CHANNELS)
    bias = () if patch_bias is None else (patch_bias,)
    return over_limit(OP, *limits) or why_not(OP, *head, patch_weight, *bias)


def _forward(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: BatchNorm | None,
    fine_norm: BatchNorm | None,
    patch_weight: Tensor,
    patch_bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    patch: int,
    eps: float,
) -> tuple[Tensor, ...]:
    """The fields of :class:`GuidedScores`; 1 / standard deviation of the logits, two numbers of every pixel, and what
    was made of the parameters, all for the backward."""
    from msformer_fast.kernels.patch_embedding import patch_embedding_forward
    from msformer_fast.kernels.score_map import score_map_forward

    norms = map_norm(coarse_norm), map_norm(fine_norm)
    precision = kernel_precision(fine.dtype, fine.device)
    logits, found, folded = score_map_forward(coarse, fine, up_weight, head_weight, *norms, precision, eps)
    assert found is not None
    logits = logits.permute(0, 3, 1, 2)  # (B, K, H, W)

    queries, keys = patch_embedding_forward(
        logits, found.mean, found.rstd, norm_weight, norm_bias, patch_weight, patch_bias, patch, precision
    )
    losses = found.loss, queries, keys, found.labels, found.label_count
    return logits, *losses, found.mean, found.var, found.rstd, found.pixel, *folded


class Kept(NamedTuple):
    """What the backward reads beside the forward's arguments."""

    logits: Tensor
    labels: Tensor
    mean: Tensor
    rstd: Tensor
    pixel: Tensor
    wc: Tensor
    coarse_vectors: Tensor
    fine_vectors: Tensor


def _backward(
    grad_logits: Tensor | None,
    grad_loss: Tensor,
    grad_queries: Tensor,
    grad_keys: Tensor,
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: BatchNorm | None,
    fine_norm: BatchNorm | None,
    patch_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    patch: int,
    kept: Kept,
) -> tuple[Tensor | list[Tensor], ...]:
    """Gradients of every tensor in the forward's order."""
    from msformer_fast.kernels.patch_embedding import Clustering, patch_embedding_backward
    from msformer_fast.kernels.score_map import Folded, score_map_backward

    norms = map_norm(coarse_norm), map_norm(fine_norm)
    precision = kernel_precision(fine.dtype, fine.device)
    grad, d_weight, d_bias, d_gamma, d_beta = patch_embedding_backward(
        grad_queries, grad_keys, kept.logits, kept.mean, kept.rstd, norm_weight, norm_bias, patch_weight, patch,
        precision, clustering=Clustering(kept.pixel, kept.labels, grad_loss),
    )  # fmt: skip
    if grad_logits is not None:
        grad += grad_logits

    folded = Folded(kept.wc, kept.coarse_vectors, kept.fine_vectors)
    found = score_map_backward(
        grad.permute(0, 2, 3, 1), coarse, fine, up_weight, head_weight, *norms, precision, folded
    )
    d_norms = [*(found.coarse_norm or ())], [*(found.fine_norm or ())]
    return *found[:4], *d_norms, d_weight, d_bias, d_gamma.to(norm_weight.dtype), d_beta.to(norm_bias.dtype)


def _shapes(
    fine: Tensor,
    head_weight: Tensor,
    coarse_norm: BatchNorm | None,
    fine_norm: BatchNorm | None,
    patch_weight: Tensor,
    patch: int,
) -> tuple[Tensor, ...]:
    batch, height, width, channels = fine.shape
    clusters, patches = head_weight.shape[0], ((height - 1) // patch) * ((width - 1) // patch)

    def sums(*shape: int) -> Tensor:
        return fine.new_empty(shape, dtype=sum_dtype(fine.dtype))

    queries, keys = (fine.new_empty(batch, patches, patch_weight.shape[0]) for _ in "qk")
    labels = fine.new_empty(batch, height, width, dtype=label_dtype(clusters))
    label_count = fine.new_empty(batch, dtype=torch.int32)
    logits = fine.new_empty(batch, height, width, clusters).permute(0, 3, 1, 2)
    vectors = sums(clusters), sums(clusters), sums(clusters)
    norms = [sums(0) if norm is None else sums(4, channels) for norm in (coarse_norm, fine_norm)]
    folded = head_weight.new_empty(4, clusters, channels), *norms
    return logits, sums(), queries, keys, labels, label_count, *vectors, sums(2, batch, height, width), *folded


def _gradient_shapes(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: BatchNorm | None,
    fine_norm: BatchNorm | None,
    patch_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
) -> tuple[Tensor | list[Tensor], ...]:
    head = [contiguous_like(value) for value in (coarse, fine, up_weight, head_weight)]
    d_norms = norms_like(coarse_norm, fine_norm)
    d_bias = patch_weight.new_empty(patch_weight.shape[0], dtype=sum_dtype(fine.dtype))
    affine = contiguous_like(norm_weight), contiguous_like(norm_bias)
    return *head, *d_norms, contiguous_like(patch_weight), d_bias, *affine


_registered = register(
    OP,
    forward=_forward,
    outputs=(*GuidedScores._fields, "rstd", "pixel", "wc", "coarse_vectors", "fine_vectors"),
    shapes=_shapes,
    backward=_backward,
    gradients=[
        *("coarse", "fine", "up_weight", "head_weight", "coarse_norm", "fine_norm"),
        *("patch_weight", "patch_bias", "norm_weight", "norm_bias"),
    ],
    gradient_shapes=_gradient_shapes,
)
