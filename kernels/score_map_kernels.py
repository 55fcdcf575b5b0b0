"""Kernels of the two-scale head: the score map from both branches. ``score_map_gradient_kernels`` has its gradients.

    logits(2 h + p1, 2 w + p2) = Wf fine(2 h + p1, 2 w + p2) + Wc[p] coarse(h, w)        p = 2 p1 + p2

Wf (K, C) are the head's columns of the fine branch, Wc (4, K, C) those of the coarse one times the upsampling weight,
made once for forward and backward: the upsampled and the concatenated map are never made. Maps are (B, H, W, C),
contiguous; the coarse one is ceil(H / 2) x ceil(W / 2). Each map may be read through a batch norm:
    x = xhat gamma + beta    xhat = (raw - mean) / sqrt(var + eps)

A tile is BLOCK_N coarse tokens of one image, and with them the fine pixels at one position p of their 2 x 2 cells.
Backward, with d the gradient of the logits, d_p those at position p, s their sum over the pixels:
    dfine = d Wf            dcoarse = sum over p of d_p Wc[p]
    Gf = d^T xhat_fine      Gc[p] = d_p^T xhat_coarse
    dWf = Gf gamma + s beta     dgamma = sum over k of Wf Gf     dbeta = sum over k of Wf s     (coarse: p by p)
so what a batch norm's gradient sums over the pixels is known before the gradient of the map, which needs it, is made.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share:
    p_coarse (B, cells, C), p_fine (B, H, W, C)    p_wc (4, K, C)    p_wf (K, C), its rows stride_wf apart
    p_coarse_norm, p_fine_norm (4, C): mean, var, gamma, beta, with eps_coarse, eps_fine added to the variance; any
        pointer where the map has no batch norm
    p_grad (B, H, W, K): d    p_dnorm (4, C): dbeta, dgamma of the fine norm, then of the coarse one
    H, W, WC: rows and columns of the fine map, columns of the coarse one    cells: coarse tokens of an image
    pixels: B H W    blocks: tiles of an image and position    tiles: that the programs share
    c_end, k_end: C and K at run time, so that their loops are not unrolled
    FINE_NORM, COARSE_NORM: read through a batch norm    BLOCK_N: tokens of a tile    BLOCK_K: clusters
    BLOCK_C: channels    ACC: dtype of sums    PREC: input_precision of products
In device functions `sizes` are (H, W, WC, cells), and a `source` is a map as it is read: (pointer, of its norm, eps).
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.batch_statistics import add_block, merged_moments, store_moments
from msformer_fast.kernels.blocks import add_dot, load_block, load_vector, log1p, store_block
from msformer_fast.kernels.clustering_loss import NOTHING, add_losses, count_labels, top_and_others

# never specialised: a new size runs the code of the old one
SIZES = (
    *("B", "H", "W", "WC", "cells", "blocks", "tiles", "programs", "divisor", "images", "c_end", "k_end"),
    *("pixels", "pixels_coarse"),
)
_jit = triton.jit(do_not_specialize=SIZES)


@triton.jit
def tile_of(block, b, p, sizes, BLOCK_N: tl.constexpr):
    """Where a tile's tokens are in the coarse map and its pixels in the fine one (int64, in pixels); which exist.

    All four are [BLOCK_N]. The pixel at p of a coarse token that exists may lie beyond the fine map.
    """
    H, W, WC, cells = sizes
    image = b.to(tl.int64)
    o_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    o_y, o_x = o_n // WC * 2 + p // 2, o_n % WC * 2 + p % 2
    m_n = o_n < cells

    return image * cells + o_n, (image * H + o_y) * W + o_x, m_n, m_n & (o_y < H) & (o_x < W)


@triton.jit
def load_channels(p_map, o_n, m_n, o_c, C: tl.constexpr):
    """Some of the C channels of some pixels [BLOCK_N, channels], 0 outside."""
    return load_block(p_map, o_n * C, o_c, m_n, o_c < C)


@triton.jit
def load_weight(p_w, o_k, o_c, stride, K, C: tl.constexpr):
    """A block of a weight [BLOCK_K, BLOCK_C], its rows `stride` apart, 0 outside."""
    return load_block(p_w, o_k.to(tl.int64) * stride, o_c, o_k < K, o_c < C)


@triton.jit
def load_norm(p_norm, eps, o_c, C: tl.constexpr, ACC: tl.constexpr):
    """Mean, 1 / standard deviation, gamma, beta of some channels [BLOCK_C]."""
    m_c = o_c < C
    b_mean = tl.load(p_norm + o_c, mask=m_c, other=0.0).to(ACC)
    b_var = tl.load(p_norm + C + o_c, mask=m_c, other=1.0).to(ACC)
    b_gamma = tl.load(p_norm + 2 * C + o_c, mask=m_c, other=0.0).to(ACC)
    b_beta = tl.load(p_norm + 3 * C + o_c, mask=m_c, other=0.0).to(ACC)

    return b_mean, 1.0 / tl.sqrt(b_var + eps), b_gamma, b_beta


@triton.jit
def load_normed(source, o_n, m_n, o_c, NORM: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):
    """Some channels of some pixels [BLOCK_N, BLOCK_C] as the product takes them: through the norm, if there is one."""
    p_map, p_norm, eps = source
    b_x = load_channels(p_map, o_n, m_n, o_c, C)

    if NORM:
        b_mean, b_rstd, b_gamma, b_beta = load_norm(p_norm, eps, o_c, C, ACC)
        b_x = ((b_x.to(ACC) - b_mean[None, :]) * (b_rstd * b_gamma)[None, :] + b_beta[None, :]).to(b_x.dtype)
    return b_x


@triton.jit
def _store_norm(p_norm, p_mean, p_var, p_gamma, p_beta, o_c, C: tl.constexpr, ACC: tl.constexpr):
    """A batch norm's vectors (C) each to the rows of p_norm (4, C), in the dtype of sums."""
    tl.store(p_norm + o_c, load_vector(p_mean, o_c, C, 0.0, ACC), mask=o_c < C)
    tl.store(p_norm + C + o_c, load_vector(p_var, o_c, C, 0.0, ACC), mask=o_c < C)
    tl.store(p_norm + 2 * C + o_c, load_vector(p_gamma, o_c, C, 0.0, ACC), mask=o_c < C)
    tl.store(p_norm + 3 * C + o_c, load_vector(p_beta, o_c, C, 0.0, ACC), mask=o_c < C)


@_jit
def fold_kernel(
    p_up, p_head,
    p_coarse_mean, p_coarse_var, p_coarse_gamma, p_coarse_beta, p_fine_mean, p_fine_var, p_fine_gamma, p_fine_beta,
    p_wc, p_coarse_norm, p_fine_norm, p_present,
    stride_uc, stride_ud, c_end, images,
    K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """What the other kernels read of the parameters: Wc, the batch norms' vectors; and no label occurs yet.

    Grid: blocks of Wc, position by position, then one program for the rest.
    p_up (4 C, C), of strides stride_u*, p_head (K, 2 C), contiguous: the weights    p_*_mean to p_*_beta (C): vectors
    of the batch norms, which go to p_coarse_norm, p_fine_norm; None where there is none
    p_present (B, K) or None: flags of the labels that occur, set to 0    images: B
    BLOCK: side of a block of Wc    BLOCK_C: power of 2 >= C
    """
    c_blocks, k_blocks = (C + BLOCK - 1) // BLOCK, (K + BLOCK - 1) // BLOCK
    index, o = tl.program_id(0), tl.arange(0, BLOCK)

    if index < 4 * k_blocks * c_blocks:  # rows o_k and columns o_c of Wc[p]
        p = index // (k_blocks * c_blocks)
        o_k, o_c = index // c_blocks % k_blocks * BLOCK + o, index % c_blocks * BLOCK + o
        b_wc = tl.zeros((BLOCK, BLOCK), ACC)

        for start in range(0, c_end, BLOCK):
            o_r = start + o
            m_a, m_u = (o_k < K)[:, None] & (o_r < C)[None, :], (o_r < C)[:, None] & (o_c < C)[None, :]
            b_a = tl.load(p_head + o_k[:, None] * (2 * C) + o_r[None, :], mask=m_a, other=0.0).to(ACC)
            o_u = (p * C + o_r)[:, None] * stride_uc + o_c[None, :] * stride_ud
            b_u = tl.load(p_up + o_u, mask=m_u, other=0.0).to(ACC)

            b_wc = add_dot(b_a, b_u, b_wc, PREC, ACC)

        store_block(p_wc, (p * K + o_k) * C, o_c, o_k < K, o_c < C, b_wc)
    else:
        o_n = tl.arange(0, BLOCK_C)
        if p_coarse_norm is not None:
            _store_norm(p_coarse_norm, p_coarse_mean, p_coarse_var, p_coarse_gamma, p_coarse_beta, o_n, C, ACC)
        if p_fine_norm is not None:
            _store_norm(p_fine_norm, p_fine_mean, p_fine_var, p_fine_gamma, p_fine_beta, o_n, C, ACC)
        if p_present is not None:
            for start in range(0, images * K, BLOCK * BLOCK):
                o_f = start + tl.arange(0, BLOCK * BLOCK)
                tl.store(p_present + o_f, tl.zeros((BLOCK * BLOCK,), tl.uint8), mask=o_f < images * K)


@_jit
def scores_kernel(
    p_coarse, p_fine, p_coarse_norm, p_fine_norm, p_wc, p_wf,
    p_logits, p_labels, p_pixel, p_present, p_partials, p_moments,
    H, W, WC, cells, blocks, tiles, pixels, c_end, eps_coarse, eps_fine, stride_wf,
    K: tl.constexpr, C: tl.constexpr, COARSE_NORM: tl.constexpr, FINE_NORM: tl.constexpr, GATHER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The logits (B, H, W, K). Grid: programs that share the tiles, blocks of clusters. tiles: of all positions

    GATHER (BLOCK_K >= K): of the same tiles also
        p_labels (B, H, W), p_present (B, K): labels and flags of those that occur
        p_pixel (2, B, H, W): a pixel's largest logit, and the sum of exp(l - largest) over its other clusters
        p_partials (programs): sum of the losses of this program's pixels
        p_moments (programs, 4, K): moments of this program's logits, cluster by cluster (see ``batch_statistics``)
    """
    sizes, coarse, fine = (H, W, WC, cells), (p_coarse, p_coarse_norm, eps_coarse), (p_fine, p_fine_norm, eps_fine)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    n, b_loss = tl.zeros((), ACC), tl.zeros((), ACC)
    b_shift, b_mean, b_m2 = tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC)

    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        # The four positions of a tile follow one another: neighbouring programs read the same coarse tokens.
        p, b = index % 4, index // 4 // blocks
        o_coarse, o_fine, m_coarse, m_fine = tile_of(index // 4 % blocks, b, p, sizes, BLOCK_N)
        b_out = tl.zeros((BLOCK_N, BLOCK_K), ACC)

        for start in range(0, c_end, BLOCK_C):
            o_c = start + tl.arange(0, BLOCK_C)
            b_x = load_normed(fine, o_fine, m_fine, o_c, FINE_NORM, C, ACC)  # [BLOCK_N, BLOCK_C]
            b_w = load_weight(p_wf, o_k, o_c, stride_wf, K, C)  # [BLOCK_K, BLOCK_C]
            b_out = add_dot(b_x, tl.trans(b_w), b_out, PREC, ACC)

            # Wc[p] holds the upsampling weight: the coarse map goes straight to the clusters.
            b_x = load_normed(coarse, o_coarse, m_coarse, o_c, COARSE_NORM, C, ACC)
            b_w = load_weight(p_wc + p * (K * C), o_k, o_c, C, K, C)
            b_out = add_dot(b_x, tl.trans(b_w), b_out, PREC, ACC)

        b_logits = b_out.to(p_logits.dtype.element_ty)
        store_block(p_logits, o_fine * K, o_k, m_fine, o_k < K, b_logits)

        if GATHER:
            # The losses read what was stored, rounded: their gradient is computed from it.
            b_out = tl.where((o_k < K)[None, :], b_logits.to(ACC), NOTHING)
            b_max, b_top, _, b_others = top_and_others(b_out, o_k)  # [BLOCK_N]
            b_others += b_max - b_max  # NaN where the maximum is NaN or infinite
            b_label = tl.where(b_top < K, b_top, 0)  # nothing was found: all logits are NaN
            b_loss += tl.sum(tl.where(m_fine, log1p(b_others), 0.0), 0)

            tl.store(p_labels + o_fine, b_label.to(p_labels.dtype.element_ty), mask=m_fine)
            tl.store(p_present + b.to(tl.int64) * K + b_label, tl.full((BLOCK_N,), 1, tl.uint8), mask=m_fine)
            tl.store(p_pixel + o_fine, b_max, mask=m_fine)
            tl.store(p_pixel + pixels + o_fine, b_others, mask=m_fine)

            # The shift of the moments is the mean of the first block that has a pixel.
            more = tl.sum(m_fine.to(ACC), 0)
            m_out = m_fine[:, None] & (o_k < K)[None, :]
            b_out = tl.where(m_out, b_out, 0.0)
            if n == 0.0:
                b_shift = tl.sum(b_out, 0) / tl.maximum(more, 1.0)
            b_mean, b_m2 = add_block(n, b_shift, b_mean, b_m2, b_out, m_out, more)
            n += more

    if GATHER:
        tl.store(p_partials + tl.program_id(0), b_loss)
        store_moments(p_moments, o_k, K, n, b_shift, b_mean, b_m2, BLOCK_K, ACC)


@_jit
def gathered_kernel(
    p_moments, p_partials, p_present, p_mean, p_var, p_rstd, p_loss, p_count,
    programs, divisor, images, eps,
    K: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, ALL_K: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """What the programs gathered, merged in order. Grid: blocks of BLOCK_K clusters, then images (at least 1).

    p_mean, p_var, p_rstd (K): mean, biased variance and 1 / sqrt(var + eps) of every cluster's logits
    p_loss: the sum of the partial sums / divisor    p_count (B): labels that occur in an image
    BLOCK_S, BLOCK: programs at a time, of moments and of losses    ALL_K: power of 2 >= K    images: B
    """
    k_blocks = (K + BLOCK_K - 1) // BLOCK_K

    if tl.program_id(0) < k_blocks:
        o_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
        b_mean, b_var = merged_moments(p_moments, o_k, programs, K, BLOCK_S, BLOCK_K, ACC)

        tl.store(p_mean + o_k, b_mean, mask=o_k < K)
        tl.store(p_var + o_k, b_var, mask=o_k < K)
        tl.store(p_rstd + o_k, 1.0 / tl.sqrt(b_var + eps), mask=o_k < K)
    else:
        b = (tl.program_id(0) - k_blocks).to(tl.int64)
        count_labels(p_present, p_count, b, images, K, ALL_K)
        if b == 0:
            add_losses(p_partials, p_loss, programs, divisor, BLOCK)
