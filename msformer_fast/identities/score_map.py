"""The two-scale head through its identity: nothing nonlinear sits between its two projections, so the coarse branch's
are one matrix, and neither the upsampled nor the concatenated map is ever made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.identities.strips import strips

#: Rows and columns that a coarse token fills, in the order of its channels.
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


def score_map(coarse: Tensor, fine: Tensor, up_weight: Tensor, head_weight: Tensor) -> Tensor:
    """See :func:`msformer_fast.ops.score_map`."""
    folded, fine_weight = folded_of(up_weight, head_weight)
    up = F.linear(coarse, folded).unflatten(-1, (2, 2, -1)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
    return F.linear(fine, fine_weight) + up[:, : fine.shape[1], : fine.shape[2]]


def folded_of(up_weight: Tensor, head_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights from a coarse token to its four pixels' scores, (4K, C) in the order (p1, p2, k), and from a fine one."""
    channels = up_weight.shape[1]
    coarse_weight, fine_weight = head_weight.split(channels, 1)
    return (coarse_weight @ up_weight.unflatten(0, (4, channels))).flatten(0, 1), fine_weight


def _ranges(fine: Tensor, clusters: int) -> list[tuple[int, int]]:
    """Coarse rows of the strips."""
    height, width, channels = fine.shape[1:]
    row = 2 * width * max(clusters, channels) * sum_dtype(fine.dtype).itemsize
    return list(strips((height + 1) // 2, 2 * row))


def score_map_forward(coarse: Tensor, fine: Tensor, up_weight: Tensor, head_weight: Tensor) -> Tensor:
    """Logits (B, H, W, K), in strips."""
    dtype = sum_dtype(fine.dtype)
    folded, fine_weight = folded_of(up_weight.to(dtype), head_weight.to(dtype))
    batch, height, width, channels = fine.shape
    clusters = head_weight.shape[0]
    logits = fine.new_empty((batch, height, width, clusters))
    for image in range(batch):
        for first, last in _ranges(fine, clusters):
            rows = slice(2 * first, min(2 * last, height))
            out = fine[image, rows].to(dtype).reshape(-1, channels) @ fine_weight.t()
            out = out.view(-1, width, clusters)
            up = coarse[image, first:last].to(dtype).reshape(-1, channels) @ folded.t()
            up = up.view(last - first, -1, 4, clusters)
            for corner, (p1, p2) in enumerate(CORNERS):
                pixels = out[p1::2, p2::2]
                pixels += up[: pixels.shape[0], : pixels.shape[1], corner]
            logits[image, rows] = out
    return logits


def score_map_backward(
    grad: Tensor, coarse: Tensor, fine: Tensor, up_weight: Tensor, head_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four inputs."""
    dtype = sum_dtype(fine.dtype)
    up, head = up_weight.to(dtype), head_weight.to(dtype)
    folded, fine_weight = folded_of(up, head)
    height, channels = fine.shape[1], fine.shape[3]
    clusters = head_weight.shape[0]
    d_coarse, d_fine = torch.empty_like(coarse), torch.empty_like(fine)
    d_folded, d_fine_weight = torch.zeros_like(folded), torch.zeros_like(fine_weight)
    for image in range(fine.shape[0]):
        for first, last in _ranges(fine, clusters):
            rows = slice(2 * first, min(2 * last, height))
            d_logits = grad[image, rows].to(dtype)
            # The four pixels of a coarse token side by side; those beyond the map have no gradient.
            d_up = d_logits.new_zeros((last - first, coarse.shape[2], 4, clusters))
            for corner, (p1, p2) in enumerate(CORNERS):
                pixels = d_logits[p1::2, p2::2]
                d_up[: pixels.shape[0], : pixels.shape[1], corner] = pixels
            flat, flat_up = d_logits.reshape(-1, clusters), d_up.view(-1, 4 * clusters)
            tokens = coarse[image, first:last]
            d_folded.addmm_(flat_up.t(), tokens.to(dtype).reshape(-1, channels))
            d_coarse[image, first:last] = (flat_up @ folded).view(tokens.shape)
            tokens = fine[image, rows]
            d_fine_weight.addmm_(flat.t(), tokens.to(dtype).reshape(-1, channels))
            d_fine[image, rows] = (flat @ fine_weight).view(tokens.shape)
    d_up_weight, d_head_weight = weight_gradients(d_folded, d_fine_weight, up, head)
    return d_coarse, d_fine, d_up_weight.to(up_weight.dtype), d_head_weight.to(head_weight.dtype)


def weight_gradients(
    d_folded: Tensor, d_fine_weight: Tensor, up_weight: Tensor, head_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``up_weight`` and ``head_weight`` from those of what :func:`folded_of` makes of them."""
    clusters, channels = head_weight.shape[0], up_weight.shape[1]
    blocks, coarse_weight = d_folded.unflatten(0, (4, clusters)), head_weight[:, :channels]
    d_up_weight = (coarse_weight.t() @ blocks).flatten(0, 1)
    d_coarse_weight = (blocks @ up_weight.unflatten(0, (4, channels)).transpose(1, 2)).sum(0)
    return d_up_weight, torch.cat([d_coarse_weight, d_fine_weight], 1)
