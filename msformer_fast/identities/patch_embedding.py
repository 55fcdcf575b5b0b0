"""The patch embedding with both grids of patches as rows of one product against a weight that is read once.

For the CPU the long axis of that product is cut: a few rows of every patch at a time are normed, gathered and
multiplied while they are in the cache. No patch is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.identities.strips import strips


def patch_embedding(
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    patch: int,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See :func:`msformer_fast.ops.patch_embedding`."""
    normed = F.batch_norm(logits, running_mean, running_var, norm_weight, norm_bias, training, momentum, eps)
    patches = torch.cat([_windows(normed, start, patch).flatten(1, 2).flatten(2) for start in (1, 0)], 1)
    queries, keys = F.linear(patches, weight, bias).chunk(2, 1)
    return queries, keys


def _windows(logits: Tensor, start: int, patch: int) -> Tensor:
    """Patches of (B, K, H, W) from row and column ``start``: (B, rows, columns, patch, patch, K), a view."""
    rows, columns = ((side - 1) // patch * patch for side in logits.shape[2:])
    window = logits[:, :, start : start + rows, start : start + columns]
    return window.unflatten(2, (-1, patch)).unflatten(4, (-1, patch)).permute(0, 2, 4, 3, 5, 1)


def _slices(logits: Tensor, weight: Tensor, patch: int) -> list[tuple[int, int]]:
    """Rows of every patch that are taken at a time."""
    patches = 2 * logits.shape[0] * ((logits.shape[2] - 1) // patch) * ((logits.shape[3] - 1) // patch)
    row = patch * logits.shape[1] * sum_dtype(logits.dtype).itemsize
    return list(strips(patch, row * max(patches, weight.shape[0])))


def patch_embedding_forward(
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patch: int,
) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, T, C)."""
    dtype, clusters = sum_dtype(logits.dtype), logits.shape[1]
    norm = _Norm.of(mean, rstd, gamma, beta, dtype)
    views = [_windows(logits, start, patch) for start in (1, 0)]
    batch, down, across = views[0].shape[:3]
    out = logits.new_zeros((2 * batch * down * across, weight.shape[0]), dtype=dtype)
    for first, last in _slices(logits, weight, patch):
        gathered = _gathered(views, first, last, norm)
        columns = slice(first * patch * clusters, last * patch * clusters)
        out.addmm_(gathered, weight[:, columns].to(dtype).t())
    if bias is not None:
        out += bias.to(dtype)
    queries, keys = out.to(logits.dtype).view(2, batch, down * across, weight.shape[0])
    return queries.clone(), keys.clone()


class _Norm(NamedTuple):
    """A batch norm as ``(x - mean) * scale + beta``: the mean goes first, or a channel whose mean is large beside its
    spread loses digits."""

    mean: Tensor
    scale: Tensor
    beta: Tensor

    @classmethod
    def of(cls, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor, dtype: torch.dtype) -> _Norm:
        return cls(mean.to(dtype), rstd.to(dtype) * gamma.to(dtype), beta.to(dtype))


def _gathered(views: list[Tensor], first: int, last: int, norm: _Norm) -> Tensor:
    """Rows ``first`` to ``last`` of every patch of both grids, normed: (2BT, (last - first) * patch * K)."""
    shape = views[0][:, :, :, first:last].shape
    out = norm.scale.new_empty((2, *shape))
    for view, part in zip(views, out, strict=True):
        centred = torch.sub(view[:, :, :, first:last].to(norm.scale.dtype), norm.mean, out=part)
        torch.addcmul(norm.beta, centred, norm.scale, out=part)
    return out.view(2 * shape[0] * shape[1] * shape[2], shape[3] * shape[4] * shape[5])


def patch_embedding_backward(
    grad_queries: Tensor,
    grad_keys: Tensor,
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    patch: int,
    batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the logits, the weight, the bias (C), gamma and beta (K); where ``batch_stats``, the first holds the
    statistics' own dependence on the logits."""
    dtype, clusters = sum_dtype(logits.dtype), logits.shape[1]
    norm = _Norm.of(mean, rstd, gamma, beta, dtype)
    grad = torch.cat([g.to(dtype).flatten(0, 1) for g in (grad_queries, grad_keys)])
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    # Channels last in memory, as what follows reads and writes all channels of a pixel.
    d_normed = logits.new_zeros((logits.shape[0], *logits.shape[2:], clusters), dtype=dtype)
    views = [_windows(logits, start, patch) for start in (1, 0)]
    d_views = [_windows(d_normed.permute(0, 3, 1, 2), start, patch) for start in (1, 0)]
    for first, last in _slices(logits, weight, patch):
        columns = slice(first * patch * clusters, last * patch * clusters)
        d_weight[:, columns] = grad.t() @ _gathered(views, first, last, norm)
        parts = (grad @ weight[:, columns].to(dtype)).view(2, *views[0][:, :, :, first:last].shape)
        for d_view, part in zip(d_views, parts, strict=True):
            d_view[:, :, :, first:last] += part

    rstd = rstd.to(dtype)
    d_beta, d_gamma = torch.zeros_like(norm.beta), torch.zeros_like(norm.beta)
    rows = logits.permute(0, 2, 3, 1)
    ranges = list(strips(rows.shape[1], rows.shape[2] * clusters * dtype.itemsize))
    for image in range(logits.shape[0]):
        for first, last in ranges:
            d_rows = d_normed[image, first:last]
            d_beta += d_rows.sum((0, 1))
            centred = rows[image, first:last].to(dtype) - norm.mean
            d_gamma += centred.mul_(d_rows).sum((0, 1)) * rstd
    count = max(logits.numel() // max(clusters, 1), 1)
    d_logits = torch.empty_like(logits)
    d_out = d_logits.permute(0, 2, 3, 1)
    for image in range(logits.shape[0]):
        for first, last in ranges:
            d_rows = d_normed[image, first:last]
            if batch_stats:
                normed = (rows[image, first:last].to(dtype) - norm.mean).mul_(rstd * d_gamma / count)
                d_rows = (d_rows - d_beta / count).sub_(normed)
            d_out[image, first:last] = d_rows * norm.scale
    return d_logits, d_weight, grad.sum(0), d_gamma, d_beta
