"""The stability loss through its identity: a row of ``A = softmax(Q K^T / scale)`` sums to 1, so the loss is
``2 / T^2 * sum_i (1 - A_ii)``. Rows of A exist for one block at a time.

``1 - A_ii`` is the sum of the others of the row: a loss near zero keeps its digits, as it would not if A_ii were taken
from 1.
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


def _shares(queries: Tensor, keys: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Rows ``first`` to ``last`` of A with zeros for its diagonal, and that diagonal; ``queries`` over the scale."""
    shares = torch.mm(queries[first:last], keys.t())
    torch.softmax(shares, -1, out=shares)
    diagonal = shares.diagonal(first)
    itself = diagonal.clone()
    diagonal.zero_()
    return shares, itself


def stability_loss_forward(queries: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss; ``1 - A_ii`` and ``A_ii``, (B, T) each."""
    batch, patches, _ = queries.shape
    dtype = sum_dtype(queries.dtype)
    queries, keys = queries.to(dtype) / scale, keys.to(dtype)
    others = queries.new_empty((batch, patches))
    diagonal = torch.empty_like(others)
    for image, first, last in _blocks(queries):
        shares, diagonal[image, first:last] = _shares(queries[image], keys[image], first, last)
        torch.sum(shares, -1, out=others[image, first:last])
    return others.sum() * (2 / (patches * patches * max(batch, 1))), others, diagonal


def stability_loss_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, others: Tensor, diagonal: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys.

    With ``c = 2 / (scale B T^2)`` and sums over all j (or i) but the row's (column's) own::

        dQ_i = c A_ii (sum_j A_ij K_j - (1 - A_ii) K_i)        dK_j = c (sum_i A_ii A_ij Q_i - A_jj (1 - A_jj) Q_j)
    """
    batch, patches, _ = queries.shape
    d_queries, d_keys = torch.empty_like(queries), torch.empty_like(keys)
    dtype = sum_dtype(queries.dtype)
    queries, keys = queries.to(dtype), keys.to(dtype)
    slope = diagonal * (grad * (2 / (scale * patches * patches * max(batch, 1))))
    weight = slope * others
    wide_keys = -weight[..., None] * queries
    over_scale = queries / scale
    for image, first, last in _blocks(queries):
        shares, _ = _shares(over_scale[image], keys[image], first, last)
        shares.mul_(slope[image, first:last, None])
        d_queries[image, first:last] = shares @ keys[image] - weight[image, first:last, None] * keys[image, first:last]
        wide_keys[image].addmm_(shares.t(), queries[image, first:last])
    d_keys.copy_(wide_keys)
    return d_queries, d_keys
