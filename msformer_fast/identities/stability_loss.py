"""The stability loss through its identity: a row of ``A = softmax(Q K^T / scale)`` sums to 1, so the loss is
``2 / T^2 * sum_i (1 - A_ii)``. Rows of A exist for one block at a time.

``1 - A_ii`` is ``sigmoid(others_i - s_ii)``, with ``others`` the logsumexp of a row without its diagonal: a loss near
zero keeps its digits, as it would not if 1 were taken from it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.identities.strips import strips


def stability_loss(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """See :func:`msformer_fast.ops.stability_loss`."""
    scores = (queries @ keys.transpose(1, 2) / scale).to(sum_dtype(queries.dtype))
    batch, patches, _ = scores.shape
    if patches == 1:  # no others: nothing to lose
        return scores.sum() * 0
    itself = torch.eye(patches, dtype=torch.bool, device=scores.device)
    # No view: Inductor may overwrite the scores in the backward while it still reads a diagonal that is part of them.
    diagonal = scores.masked_fill(~itself, 0.0).sum(-1)
    others = scores.masked_fill(itself, -torch.inf).logsumexp(-1)
    return torch.sigmoid(others - diagonal).sum() * (2 / (patches * patches * max(batch, 1)))


def _blocks(queries: Tensor) -> list[tuple[int, int, int]]:
    """(image, first, last) of blocks of rows of A."""
    batch, patches, _ = queries.shape
    bytes_each = 2 * patches * sum_dtype(queries.dtype).itemsize
    return [(image, first, last) for image in range(batch) for first, last in strips(patches, bytes_each)]


def _scores(queries: Tensor, keys: Tensor, first: int, last: int, scale: float) -> tuple[Tensor, Tensor]:
    """Scores of the rows ``first`` to ``last`` with -inf on the diagonal of A, and that diagonal."""
    scores = (queries[first:last] @ keys.t()).div_(scale)
    rows = torch.arange(last - first, device=scores.device)
    diagonal = scores[rows, rows + first]
    scores[rows, rows + first] = -torch.inf
    return scores, diagonal


def stability_loss_forward(queries: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss; logsumexp of every row without its diagonal, and the diagonal's score, (B, T) each."""
    batch, patches, _ = queries.shape
    dtype = sum_dtype(queries.dtype)
    queries, keys = queries.to(dtype), keys.to(dtype)
    others = queries.new_empty((batch, patches))
    diagonal = torch.empty_like(others)
    for image, first, last in _blocks(queries):
        scores, diagonal[image, first:last] = _scores(queries[image], keys[image], first, last, scale)
        others[image, first:last] = scores.logsumexp(-1)
    return torch.sigmoid(others - diagonal).sum() * (2 / (patches * patches * max(batch, 1))), others, diagonal


def stability_loss_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, others: Tensor, diagonal: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys.

    With E the softmax of a row without its diagonal, ``w_i = A_ii (1 - A_ii)`` and ``c = 2 / (scale B T^2)``::

        dQ_i = c w_i (sum_j E_ij K_j - K_i)        dK_j = c (sum_i w_i E_ij Q_i - w_j Q_j)
    """
    batch, patches, _ = queries.shape
    d_queries, d_keys = torch.empty_like(queries), torch.empty_like(keys)
    dtype = sum_dtype(queries.dtype)
    queries, keys = queries.to(dtype), keys.to(dtype)
    margin = diagonal - others
    weight = torch.sigmoid(margin) * torch.sigmoid(-margin)
    weight = weight * (grad * (2 / (scale * patches * patches * max(batch, 1))))
    wide_keys = -weight[..., None] * queries
    for image, first, last in _blocks(queries):
        scores, _ = _scores(queries[image], keys[image], first, last, scale)
        w = weight[image, first:last, None]
        # One patch has no others: a row of -inf alone is left out.
        share = (scores - others[image, first:last, None]).exp_() if patches > 1 else torch.zeros_like(scores)
        share.mul_(w)
        d_queries[image, first:last] = share @ keys[image] - w * keys[image, first:last]
        wide_keys[image] += share.t() @ queries[image, first:last]
    d_keys.copy_(wide_keys)
    return d_queries, d_keys
