"""Kernels of the score map's gradients; ``score_map_kernels`` has the formulas and the arguments that all share."""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.score_map_kernels import SIZES, load_standard, load_weight, norm_of, tile_of, values

_jit = triton.jit(do_not_specialize=SIZES)


@_jit
def weight_sums_kernel(
    p_grad,
    p_coarse,
    p_fine,
    p_coarse_norm,
    p_fine_norm,
    p_products,
    p_sums,
    H,
    W,
    WC,
    cells,
    blocks,
    tiles,
    eps_coarse,
    eps_fine,
    K: tl.constexpr,
    C: tl.constexpr,
    COARSE_NORM: tl.constexpr,
    FINE_NORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
):
    """This program's part of Gf, Gc[p] and s_p at one position p, to p_products (programs, 4, 2, K, C), p_sums (.., K).

    Grid: programs that share the tiles, 4 positions * blocks of clusters. BLOCK_C: power of 2 >= C
    tiles: of one position
    """
    k_blocks = (K + BLOCK_K - 1) // BLOCK_K
    p, o_k = tl.program_id(1) // k_blocks, tl.program_id(1) % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    o_c = tl.arange(0, BLOCK_C)
    b_fine, b_coarse = tl.zeros((BLOCK_K, BLOCK_C), ACC), tl.zeros((BLOCK_K, BLOCK_C), ACC)
    b_sum = tl.zeros((BLOCK_K,), ACC)
    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        o_coarse, o_fine, m_coarse, m_fine = tile_of(index % blocks, index // blocks, p, H, W, WC, cells, BLOCK_N)
        b_grad = values(p_grad, o_fine, m_fine, o_k, K)
        b_x = load_standard(p_fine, p_fine_norm, o_fine, m_fine, o_c, eps_fine, FINE_NORM, C, ACC)
        b_fine = tl.dot(tl.trans(b_grad), b_x, b_fine, input_precision=PREC, out_dtype=ACC)
        b_x = load_standard(p_coarse, p_coarse_norm, o_coarse, m_coarse, o_c, eps_coarse, COARSE_NORM, C, ACC)
        b_coarse = tl.dot(tl.trans(b_grad), b_x, b_coarse, input_precision=PREC, out_dtype=ACC)
        b_sum += tl.sum(b_grad.to(ACC), 0)
    slot = tl.program_id(0).to(tl.int64) * 4 + p
    o_out = slot * (2 * K * C) + o_k[:, None] * C + o_c[None, :]
    m_out = (o_k < K)[:, None] & (o_c < C)[None, :]
    tl.store(p_products + o_out, b_fine, mask=m_out)
    tl.store(p_products + K * C + o_out, b_coarse, mask=m_out)
    tl.store(p_sums + slot * K + o_k, b_sum, mask=o_k < K)


@_jit
def weight_finish_kernel(
    p_products,
    p_sums,
    p_coarse_norm,
    p_fine_norm,
    p_wc,
    p_wf,
    p_dwc,
    p_dhead,
    p_parts,
    slots,
    stride_wf,
    K: tl.constexpr,
    C: tl.constexpr,
    COARSE_NORM: tl.constexpr,
    FINE_NORM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Sums over the slots, in order: p_dwc (4, K, C) in ACC, the fine half of p_dhead (K, 2 C), and of one cluster what
    dgamma and dbeta of both norms sum over the clusters, p_parts (K, 4, C): dbeta, dgamma of fine, then of coarse.

    Grid: clusters.
    """
    k, o_c, o_s = tl.program_id(0), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    m_c = o_c < C
    if FINE_NORM:
        _, _, b_gamma_fine, b_beta_fine = norm_of(p_fine_norm, o_c, 0.0, C, ACC)
    if COARSE_NORM:
        _, _, b_gamma_coarse, b_beta_coarse = norm_of(p_coarse_norm, o_c, 0.0, C, ACC)
    b_fine, b_dbeta, b_dgamma = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    total = tl.zeros((), ACC)
    for p in range(4):
        b_coarse, b_sum = tl.zeros((BLOCK_C,), ACC), tl.zeros((), ACC)
        for start in range(0, slots, BLOCK_S):
            slot = (start + o_s).to(tl.int64) * 4 + p
            m_s = start + o_s < slots
            o_part = (slot * (2 * K * C) + k * C)[:, None] + o_c[None, :]
            m_part = m_s[:, None] & m_c[None, :]
            b_fine += tl.sum(tl.load(p_products + o_part, mask=m_part, other=0.0), 0)
            b_coarse += tl.sum(tl.load(p_products + K * C + o_part, mask=m_part, other=0.0), 0)
            b_sum += tl.sum(tl.load(p_sums + slot * K + k, mask=m_s, other=0.0), 0)
        total += b_sum
        o_w = (p * K + k) * C + o_c
        if COARSE_NORM:
            b_w = tl.load(p_wc + o_w, mask=m_c, other=0.0).to(ACC)
            b_dbeta += b_w * b_sum
            b_dgamma += b_w * b_coarse
            b_coarse = b_coarse * b_gamma_coarse + b_sum * b_beta_coarse
        tl.store(p_dwc + o_w, b_coarse, mask=m_c)
    p_parts += k * 4 * C + o_c
    if COARSE_NORM:
        tl.store(p_parts + 2 * C, b_dbeta, mask=m_c)
        tl.store(p_parts + 3 * C, b_dgamma, mask=m_c)
    if FINE_NORM:
        b_w = tl.load(p_wf + k * stride_wf + o_c, mask=m_c, other=0.0).to(ACC)
        tl.store(p_parts, b_w * total, mask=m_c)
        tl.store(p_parts + C, b_w * b_fine, mask=m_c)
        b_fine = b_fine * b_gamma_fine + total * b_beta_fine
    tl.store(p_dhead + k * 2 * C + C + o_c, b_fine.to(p_dhead.dtype.element_ty), mask=m_c)


@_jit
def unfold_kernel(
    p_dwc,
    p_up,
    p_head,
    p_parts,
    p_dup,
    p_dhead,
    p_dnorm,
    stride_uc,
    stride_ud,
    stride_hk,
    stride_hc,
    k_end,
    c_end,
    K: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
):
    """From dWc to the gradients of its two factors, and the sums over the clusters of p_parts to p_dnorm (4, C).

    With Wc[p] = A U_p, A the head's coarse columns (K, C) and U_p rows p C to (p + 1) C of the upsampling weight:
    dU_p = A^T dWc[p], dA = sum over p of dWc[p] U_p^T. Grid: blocks of dU, position by position, of dA, of p_dnorm.
    """
    c_blocks, k_blocks = (C + BLOCK - 1) // BLOCK, (K + BLOCK - 1) // BLOCK
    index, o = tl.program_id(0), tl.arange(0, BLOCK)
    b_out = tl.zeros((BLOCK, BLOCK), ACC)
    if index < 4 * c_blocks * c_blocks:
        p = index // (c_blocks * c_blocks)
        o_r, o_c = index // c_blocks % c_blocks * BLOCK + o, index % c_blocks * BLOCK + o
        for start in range(0, k_end, BLOCK):
            o_k = start + o
            m_a, m_d = (o_k < K)[:, None] & (o_r < C)[None, :], (o_k < K)[:, None] & (o_c < C)[None, :]
            b_a = tl.load(p_head + o_k[:, None] * stride_hk + o_r[None, :] * stride_hc, mask=m_a, other=0.0).to(ACC)
            b_d = tl.load(p_dwc + (p * K + o_k)[:, None] * C + o_c[None, :], mask=m_d, other=0.0)
            b_out = tl.dot(tl.trans(b_a), b_d, b_out, input_precision=PREC, out_dtype=ACC)
        m_out = (o_r < C)[:, None] & (o_c < C)[None, :]
        o_out = (p * C + o_r)[:, None] * C + o_c[None, :]
        tl.store(p_dup + o_out, b_out.to(p_dup.dtype.element_ty), mask=m_out)
    elif index < 4 * c_blocks * c_blocks + k_blocks * c_blocks:
        index -= 4 * c_blocks * c_blocks
        o_k, o_r = index // c_blocks * BLOCK + o, index % c_blocks * BLOCK + o
        for p in range(4):
            for start in range(0, c_end, BLOCK):
                o_c = start + o
                m_d, m_u = (o_k < K)[:, None] & (o_c < C)[None, :], (o_r < C)[:, None] & (o_c < C)[None, :]
                b_d = tl.load(p_dwc + (p * K + o_k)[:, None] * C + o_c[None, :], mask=m_d, other=0.0)
                o_u = (p * C + o_r)[:, None] * stride_uc + o_c[None, :] * stride_ud
                b_u = tl.load(p_up + o_u, mask=m_u, other=0.0).to(ACC)
                b_out = tl.dot(b_d, tl.trans(b_u), b_out, input_precision=PREC, out_dtype=ACC)
        m_out = (o_k < K)[:, None] & (o_r < C)[None, :]
        tl.store(p_dhead + o_k[:, None] * (2 * C) + o_r[None, :], b_out.to(p_dhead.dtype.element_ty), mask=m_out)
    else:
        o_n = (index - 4 * c_blocks * c_blocks - k_blocks * c_blocks) * BLOCK + o
        b_sum = tl.zeros((BLOCK,), ACC)
        for start in range(0, k_end, BLOCK):
            o_k = start + o
            m_part = (o_k < K)[:, None] & (o_n < 4 * C)[None, :]
            b_sum += tl.sum(tl.load(p_parts + o_k[:, None] * (4 * C) + o_n[None, :], mask=m_part, other=0.0), 0)
        tl.store(p_dnorm + o_n, b_sum, mask=o_n < 4 * C)


@triton.jit
def _through_norm(b_d, p_map, p_norm, p_dnorm, o_n, m_n, o_c, eps, pixels, C: tl.constexpr, ACC: tl.constexpr):
    """Gradient of the raw map (n, c) from that of the normed one; p_dnorm: dbeta, dgamma (2, C)."""
    b_mean, b_rstd, b_gamma, _ = norm_of(p_norm, o_c, eps, C, ACC)
    b_xhat = (values(p_map, o_n, m_n, o_c, C).to(ACC) - b_mean[None, :]) * b_rstd[None, :]
    b_dbeta = tl.load(p_dnorm + o_c, mask=o_c < C, other=0.0) / pixels
    b_dgamma = tl.load(p_dnorm + C + o_c, mask=o_c < C, other=0.0) / pixels
    return (b_d - b_dbeta[None, :] - b_xhat * b_dgamma[None, :]) * (b_gamma * b_rstd)[None, :]


@_jit
def map_gradients_kernel(
    p_grad,
    p_coarse,
    p_fine,
    p_coarse_norm,
    p_fine_norm,
    p_dnorm,
    p_wc,
    p_wf,
    p_dcoarse,
    p_dfine,
    H,
    W,
    WC,
    cells,
    blocks,
    pixels,
    pixels_coarse,
    k_end,
    eps_coarse,
    eps_fine,
    stride_wf,
    K: tl.constexpr,
    C: tl.constexpr,
    COARSE_NORM: tl.constexpr,
    FINE_NORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
):
    """dfine and dcoarse: a coarse token and its four pixels at a time, so that the logits' gradient is read once.

    Grid: tiles of all images, blocks of channels. pixels, pixels_coarse: over which each batch norm took its statistics
    """
    index, o_c = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    b_coarse = tl.zeros((BLOCK_N, BLOCK_C), ACC)
    for p in range(4):
        o_coarse, o_fine, m_coarse, m_fine = tile_of(index % blocks, index // blocks, p, H, W, WC, cells, BLOCK_N)
        b_fine = tl.zeros((BLOCK_N, BLOCK_C), ACC)
        for start in range(0, k_end, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            b_grad = values(p_grad, o_fine, m_fine, o_k, K)
            b_w = load_weight(p_wf, o_k, o_c, stride_wf, K, C)
            b_fine = tl.dot(b_grad, b_w, b_fine, input_precision=PREC, out_dtype=ACC)
            b_w = load_weight(p_wc + p * (K * C), o_k, o_c, C, K, C)
            b_coarse = tl.dot(b_grad, b_w, b_coarse, input_precision=PREC, out_dtype=ACC)
        if FINE_NORM:
            b_fine = _through_norm(b_fine, p_fine, p_fine_norm, p_dnorm, o_fine, m_fine, o_c, eps_fine, pixels, C, ACC)
        m_out = m_fine[:, None] & (o_c < C)[None, :]
        tl.store(p_dfine + (o_fine * C)[:, None] + o_c[None, :], b_fine.to(p_dfine.dtype.element_ty), mask=m_out)
    o_coarse, _, m_coarse, _ = tile_of(index % blocks, index // blocks, 0, H, W, WC, cells, BLOCK_N)
    if COARSE_NORM:
        b_coarse = _through_norm(
            b_coarse,
            p_coarse,
            p_coarse_norm,
            p_dnorm + 2 * C,
            o_coarse,
            m_coarse,
            o_c,
            eps_coarse,
            pixels_coarse,
            C,
            ACC,
        )
    m_out = m_coarse[:, None] & (o_c < C)[None, :]
    tl.store(p_dcoarse + (o_coarse * C)[:, None] + o_c[None, :], b_coarse.to(p_dcoarse.dtype.element_ty), mask=m_out)
