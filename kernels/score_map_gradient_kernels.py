"""Kernels of the score map's gradients; ``score_map_kernels`` has the formulas and the arguments that all share."""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.blocks import add_dot, store_block
from msformer_fast.kernels.partial_sums import store_gradient
from msformer_fast.kernels.score_map_kernels import SIZES, load_channels, load_norm, load_weight, tile_of

_jit = triton.jit(do_not_specialize=SIZES)


@triton.jit
def _load_standard(source, o_n, m_n, o_c, NORM: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):
    """xhat [BLOCK_N, BLOCK_C] of a map with a batch norm, else the map; 0 outside."""
    p_map, p_norm, eps = source
    b_x = load_channels(p_map, o_n, m_n, o_c, C)

    if NORM:
        b_mean, b_rstd, _, _ = load_norm(p_norm, eps, o_c, C, ACC)
        b_x = tl.where(m_n[:, None], (b_x.to(ACC) - b_mean[None, :]) * b_rstd[None, :], 0.0).to(b_x.dtype)
    return b_x


@_jit
def weight_sums_kernel(
    p_grad, p_coarse, p_fine, p_coarse_norm, p_fine_norm, p_products, p_sums,
    H, W, WC, cells, blocks, tiles, eps_coarse, eps_fine,
    K: tl.constexpr, C: tl.constexpr, COARSE_NORM: tl.constexpr, FINE_NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """This program's partial sums of Gf, Gc[p] and s_p at one position p.

    Grid: programs that share the tiles, 4 positions * blocks of clusters.
    p_products (programs, 4, 2, K, C): Gf, Gc    p_sums (programs, 4, K)    tiles: of one position
    BLOCK_C: power of 2 >= C
    """
    sizes, coarse, fine = (H, W, WC, cells), (p_coarse, p_coarse_norm, eps_coarse), (p_fine, p_fine_norm, eps_fine)
    k_blocks = (K + BLOCK_K - 1) // BLOCK_K
    p, o_k = tl.program_id(1) // k_blocks, tl.program_id(1) % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    o_c = tl.arange(0, BLOCK_C)

    b_fine, b_coarse = tl.zeros((BLOCK_K, BLOCK_C), ACC), tl.zeros((BLOCK_K, BLOCK_C), ACC)
    b_sum = tl.zeros((BLOCK_K,), ACC)

    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        o_coarse, o_fine, m_coarse, m_fine = tile_of(index % blocks, index // blocks, p, sizes, BLOCK_N)
        b_grad = load_channels(p_grad, o_fine, m_fine, o_k, K)  # [BLOCK_N, BLOCK_K]

        b_x = _load_standard(fine, o_fine, m_fine, o_c, FINE_NORM, C, ACC)  # [BLOCK_N, BLOCK_C]
        b_fine = add_dot(tl.trans(b_grad), b_x, b_fine, PREC, ACC)

        b_x = _load_standard(coarse, o_coarse, m_coarse, o_c, COARSE_NORM, C, ACC)
        b_coarse = add_dot(tl.trans(b_grad), b_x, b_coarse, PREC, ACC)

        b_sum += tl.sum(b_grad.to(ACC), 0)

    row = tl.program_id(0).to(tl.int64) * 4 + p  # of (programs, 4)
    o_out = row * (2 * K * C) + o_k[:, None] * C + o_c[None, :]  # [BLOCK_K, BLOCK_C]
    m_out = (o_k < K)[:, None] & (o_c < C)[None, :]
    tl.store(p_products + o_out, b_fine, mask=m_out)
    tl.store(p_products + K * C + o_out, b_coarse, mask=m_out)
    tl.store(p_sums + row * K + o_k, b_sum, mask=o_k < K)


@_jit
def weight_finish_kernel(
    p_products, p_sums, p_coarse_norm, p_fine_norm, p_wc, p_wf, p_dwc, p_dhead, p_partials,
    programs, stride_wf,
    K: tl.constexpr, C: tl.constexpr, COARSE_NORM: tl.constexpr, FINE_NORM: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums over the programs of ``weight_sums_kernel``, in their order, for one cluster. Grid: clusters.

    p_dwc (4, K, C): dWc, in ACC    p_dhead (K, 2 C): of the head's weight, dWf goes to its second half
    p_partials (K, 4, C): what this cluster adds to dbeta and dgamma of the fine norm, then of the coarse one
    BLOCK_S: programs at a time    BLOCK_C: power of 2 >= C
    """
    k, o_c, o_s = tl.program_id(0), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    m_c = o_c < C
    if FINE_NORM:
        _, _, b_gamma_fine, b_beta_fine = load_norm(p_fine_norm, 0.0, o_c, C, ACC)
    if COARSE_NORM:
        _, _, b_gamma_coarse, b_beta_coarse = load_norm(p_coarse_norm, 0.0, o_c, C, ACC)

    # b_fine goes over all positions, b_coarse over one: each has a Wc of its own.
    b_fine, b_dbeta, b_dgamma = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    total = tl.zeros((), ACC)

    for p in range(4):
        b_coarse, b_sum = tl.zeros((BLOCK_C,), ACC), tl.zeros((), ACC)

        for start in range(0, programs, BLOCK_S):
            o_row = (start + o_s).to(tl.int64) * 4 + p  # [BLOCK_S], of (programs, 4)
            m_s = start + o_s < programs
            o_products = (o_row * (2 * K * C) + k * C)[:, None] + o_c[None, :]  # [BLOCK_S, BLOCK_C]
            m_products = m_s[:, None] & m_c[None, :]

            b_fine += tl.sum(tl.load(p_products + o_products, mask=m_products, other=0.0), 0)
            b_coarse += tl.sum(tl.load(p_products + K * C + o_products, mask=m_products, other=0.0), 0)
            b_sum += tl.sum(tl.load(p_sums + o_row * K + k, mask=m_s, other=0.0), 0)

        total += b_sum
        o_w = (p * K + k) * C + o_c
        if COARSE_NORM:  # Gc is that of xhat: through gamma and beta it becomes dWc
            b_w = tl.load(p_wc + o_w, mask=m_c, other=0.0).to(ACC)
            b_dbeta += b_w * b_sum
            b_dgamma += b_w * b_coarse
            b_coarse = b_coarse * b_gamma_coarse + b_sum * b_beta_coarse

        tl.store(p_dwc + o_w, b_coarse, mask=m_c)

    p_partials += k * 4 * C + o_c
    if COARSE_NORM:
        tl.store(p_partials + 2 * C, b_dbeta, mask=m_c)
        tl.store(p_partials + 3 * C, b_dgamma, mask=m_c)
    if FINE_NORM:
        b_w = tl.load(p_wf + k * stride_wf + o_c, mask=m_c, other=0.0).to(ACC)
        tl.store(p_partials, b_w * total, mask=m_c)
        tl.store(p_partials + C, b_w * b_fine, mask=m_c)

        b_fine = b_fine * b_gamma_fine + total * b_beta_fine

    tl.store(p_dhead + k * 2 * C + C + o_c, b_fine.to(p_dhead.dtype.element_ty), mask=m_c)


@_jit
def unfold_kernel(
    p_dwc, p_up, p_head, p_partials, p_dup, p_dhead, p_dnorm,
    p_dgamma_coarse, p_dbeta_coarse, p_dgamma_fine, p_dbeta_fine,
    stride_uc, stride_ud, stride_hk, stride_hc, k_end, c_end,
    K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """From dWc to the gradients of its two factors, and the sums over the clusters of p_partials (K, 4, C) to p_dnorm.

    With Wc[p] = A U_p, A the head's coarse columns (K, C) and U_p rows p C to (p + 1) C of the upsampling weight:
    dU_p = A^T dWc[p], dA = sum over p of dWc[p] U_p^T. Grid: blocks of dU, position by position, of dA, of p_dnorm.

    p_up, p_dup (4 C, C), p_head, p_dhead (K, 2 C): the weights, of strides stride_u* and stride_h*, their gradients
    p_dgamma_*, p_dbeta_* (C): the same as p_dnorm, in the parameters' dtypes; None without the norm
    BLOCK: side of a block of any of these
    """
    c_blocks, k_blocks = (C + BLOCK - 1) // BLOCK, (K + BLOCK - 1) // BLOCK
    index, o = tl.program_id(0), tl.arange(0, BLOCK)
    b_out = tl.zeros((BLOCK, BLOCK), ACC)

    if index < 4 * c_blocks * c_blocks:  # dU_p, rows o_r and columns o_c
        p = index // (c_blocks * c_blocks)
        o_r, o_c = index // c_blocks % c_blocks * BLOCK + o, index % c_blocks * BLOCK + o

        for start in range(0, k_end, BLOCK):
            o_k = start + o
            m_a, m_d = (o_k < K)[:, None] & (o_r < C)[None, :], (o_k < K)[:, None] & (o_c < C)[None, :]
            b_a = tl.load(p_head + o_k[:, None] * stride_hk + o_r[None, :] * stride_hc, mask=m_a, other=0.0).to(ACC)
            b_d = tl.load(p_dwc + (p * K + o_k)[:, None] * C + o_c[None, :], mask=m_d, other=0.0)

            b_out = add_dot(tl.trans(b_a), b_d, b_out, PREC, ACC)

        m_out = (o_r < C)[:, None] & (o_c < C)[None, :]
        o_out = (p * C + o_r)[:, None] * C + o_c[None, :]
        tl.store(p_dup + o_out, b_out.to(p_dup.dtype.element_ty), mask=m_out)

    elif index < 4 * c_blocks * c_blocks + k_blocks * c_blocks:  # dA, rows o_k and columns o_r
        index -= 4 * c_blocks * c_blocks
        o_k, o_r = index // c_blocks * BLOCK + o, index % c_blocks * BLOCK + o

        for p in range(4):
            for start in range(0, c_end, BLOCK):
                o_c = start + o
                m_d, m_u = (o_k < K)[:, None] & (o_c < C)[None, :], (o_r < C)[:, None] & (o_c < C)[None, :]
                b_d = tl.load(p_dwc + (p * K + o_k)[:, None] * C + o_c[None, :], mask=m_d, other=0.0)
                o_u = (p * C + o_r)[:, None] * stride_uc + o_c[None, :] * stride_ud
                b_u = tl.load(p_up + o_u, mask=m_u, other=0.0).to(ACC)

                b_out = add_dot(b_d, tl.trans(b_u), b_out, PREC, ACC)

        m_out = (o_k < K)[:, None] & (o_r < C)[None, :]
        tl.store(p_dhead + o_k[:, None] * (2 * C) + o_r[None, :], b_out.to(p_dhead.dtype.element_ty), mask=m_out)

    else:  # sums over the clusters
        o_n = (index - 4 * c_blocks * c_blocks - k_blocks * c_blocks) * BLOCK + o
        b_sum = tl.zeros((BLOCK,), ACC)

        for start in range(0, k_end, BLOCK):
            o_k = start + o
            m_k = (o_k < K)[:, None] & (o_n < 4 * C)[None, :]
            b_sum += tl.sum(tl.load(p_partials + o_k[:, None] * (4 * C) + o_n[None, :], mask=m_k, other=0.0), 0)

        tl.store(p_dnorm + o_n, b_sum, mask=o_n < 4 * C)
        store_gradient(p_dbeta_fine, o_n, 0, C, b_sum)
        store_gradient(p_dgamma_fine, o_n, C, C, b_sum)
        store_gradient(p_dbeta_coarse, o_n, 2 * C, C, b_sum)
        store_gradient(p_dgamma_coarse, o_n, 3 * C, C, b_sum)


@triton.jit
def _through_norm(b_d, source, p_dnorm, o_n, m_n, o_c, pixels, C: tl.constexpr, ACC: tl.constexpr):
    """Gradient of the raw map [BLOCK_N, BLOCK_C] from that of the normed one; p_dnorm: dbeta, dgamma (2, C)."""
    p_map, p_norm, eps = source
    b_mean, b_rstd, b_gamma, _ = load_norm(p_norm, eps, o_c, C, ACC)
    b_xhat = (load_channels(p_map, o_n, m_n, o_c, C).to(ACC) - b_mean[None, :]) * b_rstd[None, :]
    b_dbeta = tl.load(p_dnorm + o_c, mask=o_c < C, other=0.0) / pixels
    b_dgamma = tl.load(p_dnorm + C + o_c, mask=o_c < C, other=0.0) / pixels

    return (b_d - b_dbeta[None, :] - b_xhat * b_dgamma[None, :]) * (b_gamma * b_rstd)[None, :]


@_jit
def map_gradients_kernel(
    p_grad, p_coarse, p_fine, p_coarse_norm, p_fine_norm, p_dnorm, p_wc, p_wf, p_dcoarse, p_dfine,
    H, W, WC, cells, blocks, pixels, pixels_coarse, k_end, eps_coarse, eps_fine, stride_wf,
    K: tl.constexpr, C: tl.constexpr, COARSE_NORM: tl.constexpr, FINE_NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dfine and dcoarse: a coarse token and its four pixels at a time, so that the logits' gradient is read once.

    Grid: tiles of all images, blocks of channels. pixels, pixels_coarse: over which each batch norm took its statistics
    """
    sizes, coarse, fine = (H, W, WC, cells), (p_coarse, p_coarse_norm, eps_coarse), (p_fine, p_fine_norm, eps_fine)
    block, image = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    b_coarse = tl.zeros((BLOCK_N, BLOCK_C), ACC)

    # A coarse token has the sum of all four positions, a fine pixel that of its own.
    for p in range(4):
        _, o_fine, _, m_fine = tile_of(block, image, p, sizes, BLOCK_N)
        b_fine = tl.zeros((BLOCK_N, BLOCK_C), ACC)

        for start in range(0, k_end, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            b_grad = load_channels(p_grad, o_fine, m_fine, o_k, K)  # [BLOCK_N, BLOCK_K]

            b_w = load_weight(p_wf, o_k, o_c, stride_wf, K, C)  # [BLOCK_K, BLOCK_C]
            b_fine = add_dot(b_grad, b_w, b_fine, PREC, ACC)

            b_w = load_weight(p_wc + p * (K * C), o_k, o_c, C, K, C)
            b_coarse = add_dot(b_grad, b_w, b_coarse, PREC, ACC)

        if FINE_NORM:
            b_fine = _through_norm(b_fine, fine, p_dnorm, o_fine, m_fine, o_c, pixels, C, ACC)
        store_block(p_dfine, o_fine * C, o_c, m_fine, o_c < C, b_fine)

    o_coarse, _, m_coarse, _ = tile_of(block, image, 0, sizes, BLOCK_N)
    if COARSE_NORM:
        b_coarse = _through_norm(b_coarse, coarse, p_dnorm + 2 * C, o_coarse, m_coarse, o_c, pixels_coarse, C, ACC)
    store_block(p_dcoarse, o_coarse * C, o_c, m_coarse, o_c < C, b_coarse)
