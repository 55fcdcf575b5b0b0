"""Kernels of the two-scale head: the score map from both branches, and its gradients.

    logits(2 h + p1, 2 w + p2) = Wf fine(2 h + p1, 2 w + p2) + Wc[p] coarse(h, w)        p = 2 p1 + p2

Wf (K, C) are the head's columns of the fine branch, Wc (4, K, C) those of the coarse one times the upsampling weight:
the upsampled and the concatenated map are never made. Maps are (B, H, W, C), contiguous; the coarse one is
ceil(H / 2) x ceil(W / 2). Each map may be read through a batch norm:
    x = xhat gamma + beta    xhat = (raw - mean) / sqrt(var + eps)

A tile is BLOCK_N coarse tokens of one image, and with them the fine pixels at one position p of their 2 x 2 cells.
Backward, with d the gradient of the logits, d_p those at position p, s their sum over the pixels:
    dfine = d Wf            dcoarse = sum over p of d_p Wc[p]
    Gf = d^T xhat_fine      Gc[p] = d_p^T xhat_coarse
    dWf = Gf gamma + s beta     dgamma = sum over k of Wf Gf     dbeta = sum over k of Wf s     (coarse: p by p)
so what a batch norm's gradient sums over the pixels is known before the gradient of the map, which needs it, is made.

Shapes in comments: n tokens of a tile, k clusters, c channels.
`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks.
Arguments that kernels share:
    p_norm (4, C) of a map: mean, var, gamma, beta; any pointer where the map has no batch norm (NORM false)
    H, W, WC: rows and columns of the fine map, columns of the coarse one    cells: coarse tokens of an image
    blocks: tiles of an image and position    c_end, k_end: C and K at run time, lest their loops be unrolled
    FINE_NORM, COARSE_NORM: read through a batch norm    ACC: type of sums    PREC: input_precision of products
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.batch_statistics import add_block, merged_moments, store_moments
from msformer_fast.kernels.clustering_loss import NOTHING, count_and_sum, log1p, top_and_others

SIZES = (
    "B",
    "H",
    "W",
    "WC",
    "cells",
    "blocks",
    "tiles",
    "slots",
    "divisor",
    "images",
    "c_end",
    "k_end",
    "pixels",
    "pixels_coarse",
)
_jit = triton.jit(do_not_specialize=SIZES)


@triton.jit
def tile_of(block, b, p, H, W, WC, cells, BLOCK_N: tl.constexpr):
    """Offsets (n, int64) of a tile's tokens in the coarse map and of its pixels in the fine one, in pixels; validity.

    A coarse token exists where o_n < cells; its pixel at p may lie beyond the fine map.
    """
    o_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    o_y, o_x = o_n // WC * 2 + p // 2, o_n % WC * 2 + p % 2
    image = b.to(tl.int64)
    m_n = o_n < cells
    return image * cells + o_n, (image * H + o_y) * W + o_x, m_n, m_n & (o_y < H) & (o_x < W)


@triton.jit
def values(p_map, o_n, m_n, o_c, C: tl.constexpr):
    """Some channels of some pixels (n, c); 0 outside."""
    return tl.load(p_map + (o_n * C)[:, None] + o_c[None, :], mask=m_n[:, None] & (o_c < C)[None, :], other=0.0)


@triton.jit
def norm_of(p_norm, o_c, eps, C: tl.constexpr, ACC: tl.constexpr):
    """Mean, 1 / standard deviation, gamma, beta of some channels."""
    m_c = o_c < C
    b_mean = tl.load(p_norm + o_c, mask=m_c, other=0.0).to(ACC)
    b_var = tl.load(p_norm + C + o_c, mask=m_c, other=1.0).to(ACC)
    b_gamma = tl.load(p_norm + 2 * C + o_c, mask=m_c, other=0.0).to(ACC)
    b_beta = tl.load(p_norm + 3 * C + o_c, mask=m_c, other=0.0).to(ACC)
    return b_mean, 1.0 / tl.sqrt(b_var + eps), b_gamma, b_beta


@triton.jit
def load_normed(p_map, p_norm, o_n, m_n, o_c, eps, NORM: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):
    """Some channels of some pixels (n, c) as the product takes them: through the batch norm, if there is one."""
    b_x = values(p_map, o_n, m_n, o_c, C)
    if NORM:
        b_mean, b_rstd, b_gamma, b_beta = norm_of(p_norm, o_c, eps, C, ACC)
        b_x = ((b_x.to(ACC) - b_mean[None, :]) * (b_rstd * b_gamma)[None, :] + b_beta[None, :]).to(b_x.dtype)
    return b_x


@triton.jit
def load_standard(p_map, p_norm, o_n, m_n, o_c, eps, NORM: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):
    """xhat (n, c) of a map with a batch norm, else the map; 0 outside."""
    b_x = values(p_map, o_n, m_n, o_c, C)
    if NORM:
        b_mean, b_rstd, _, _ = norm_of(p_norm, o_c, eps, C, ACC)
        b_x = tl.where(m_n[:, None], (b_x.to(ACC) - b_mean[None, :]) * b_rstd[None, :], 0.0).to(b_x.dtype)
    return b_x


@triton.jit
def load_weight(p_w, o_k, o_c, stride, K, C: tl.constexpr):
    """A block (k, c) of a weight, 0 outside."""
    m_w = (o_k < K)[:, None] & (o_c < C)[None, :]
    return tl.load(p_w + (o_k.to(tl.int64) * stride)[:, None] + o_c[None, :], mask=m_w, other=0.0)


@_jit
def scores_kernel(
    p_coarse,
    p_fine,
    p_coarse_norm,
    p_fine_norm,
    p_wc,
    p_wf,
    p_logits,
    p_labels,
    p_pixel,
    p_present,
    p_loss,
    p_moments,
    H,
    W,
    WC,
    cells,
    blocks,
    tiles,
    pixels,
    c_end,
    eps_coarse,
    eps_fine,
    stride_wf,
    K: tl.constexpr,
    C: tl.constexpr,
    COARSE_NORM: tl.constexpr,
    FINE_NORM: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
):
    """The logits (B, H, W, K). Grid: programs that share the tiles, blocks of clusters.

    GATHER (BLOCK_K >= K): of the same tiles also
        p_labels (B, H, W), p_present (B, K): labels and flags of those that occur
        p_pixel (2, B H W): a pixel's largest logit, and the sum of exp(l - largest) over its other clusters
        p_loss (programs): sum of the losses of this program's pixels
        p_moments (programs, 4, K): their count, shift, mean - shift and squared deviations, cluster by cluster
    pixels: B H W
    """
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    n, b_loss = tl.zeros((), ACC), tl.zeros((), ACC)
    b_shift, b_mean, b_m2 = tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC)
    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        p, b = index % 4, index // 4 // blocks
        o_coarse, o_fine, m_coarse, m_fine = tile_of(index // 4 % blocks, b, p, H, W, WC, cells, BLOCK_N)
        b_out = tl.zeros((BLOCK_N, BLOCK_K), ACC)
        for start in range(0, c_end, BLOCK_C):
            o_c = start + tl.arange(0, BLOCK_C)
            b_x = load_normed(p_fine, p_fine_norm, o_fine, m_fine, o_c, eps_fine, FINE_NORM, C, ACC)
            b_w = load_weight(p_wf, o_k, o_c, stride_wf, K, C)
            b_out = tl.dot(b_x, tl.trans(b_w), b_out, input_precision=PREC, out_dtype=ACC)
            b_x = load_normed(p_coarse, p_coarse_norm, o_coarse, m_coarse, o_c, eps_coarse, COARSE_NORM, C, ACC)
            b_w = load_weight(p_wc + p * (K * C), o_k, o_c, C, K, C)
            b_out = tl.dot(b_x, tl.trans(b_w), b_out, input_precision=PREC, out_dtype=ACC)
        b_logits = b_out.to(p_logits.dtype.element_ty)
        m_out = m_fine[:, None] & (o_k < K)[None, :]
        tl.store(p_logits + (o_fine * K)[:, None] + o_k[None, :], b_logits, mask=m_out)
        if GATHER:
            b_out = tl.where((o_k < K)[None, :], b_logits.to(ACC), NOTHING)  # the losses read what was stored
            b_max, b_top, _, b_others = top_and_others(b_out, o_k)
            b_others += b_max - b_max
            b_label = tl.where(b_top < K, b_top, 0)
            b_loss += tl.sum(tl.where(m_fine, log1p(b_others), 0.0), 0)
            tl.store(p_labels + o_fine, b_label.to(p_labels.dtype.element_ty), mask=m_fine)
            tl.store(p_present + b.to(tl.int64) * K + b_label, tl.full((BLOCK_N,), 1, tl.uint8), mask=m_fine)
            tl.store(p_pixel + o_fine, b_max, mask=m_fine)
            tl.store(p_pixel + pixels + o_fine, b_others, mask=m_fine)
            more = tl.sum(m_fine.to(ACC), 0)
            b_out = tl.where(m_out, b_out, 0.0)
            if n == 0.0:
                b_shift = tl.sum(b_out, 0) / tl.maximum(more, 1.0)
            b_mean, b_m2 = add_block(n, b_shift, b_mean, b_m2, b_out, m_out, more)
            n += more
    if GATHER:
        tl.store(p_loss + tl.program_id(0), b_loss)
        store_moments(p_moments, o_k, K, n, b_shift, b_mean, b_m2, BLOCK_K, ACC)


@_jit
def gathered_kernel(
    p_moments,
    p_loss,
    p_present,
    p_mean,
    p_var,
    p_rstd,
    p_total,
    p_count,
    slots,
    divisor,
    images,
    eps,
    K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALL_K: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """What the tiles gathered, summed in the slots' order: mean, biased variance and 1 / sqrt(var + eps) of every
    cluster (K), loss, label counts (B).

    Grid: blocks of BLOCK_K clusters, then images (at least 1).
    BLOCK_S, BLOCK: slots at once    ALL_K: power of 2 >= K    divisor: of the loss
    """
    k_blocks = (K + BLOCK_K - 1) // BLOCK_K
    if tl.program_id(0) < k_blocks:
        o_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
        b_mean, b_var = merged_moments(p_moments, o_k, slots, K, BLOCK_S, BLOCK_K, ACC)
        tl.store(p_mean + o_k, b_mean, mask=o_k < K)
        tl.store(p_var + o_k, b_var, mask=o_k < K)
        tl.store(p_rstd + o_k, 1.0 / tl.sqrt(b_var + eps), mask=o_k < K)
    else:
        b = (tl.program_id(0) - k_blocks).to(tl.int64)
        count_and_sum(p_loss, p_present, p_total, p_count, b, slots, divisor, images, K, ALL_K, BLOCK, True)
