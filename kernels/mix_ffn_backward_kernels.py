"""Backward kernels of mix_ffn: maths, shapes and shared arguments stand in ``mix_ffn_kernels``.

Three passes, u given: (dy, u) -> dv; (dv, t, dy) -> dt; (u, dv, t, dy) -> gradients of both products and of the
convolution. Gradients of vectors come from the pass that has their terms. A last kernel adds the slots of all three.
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.mix_ffn_kernels import (
    SIZES,
    add_to_slot,
    factor,
    gelu_slope,
    inner_norm,
    matrix,
    rows_of,
    stencil,
    tile_of,
    token_statistics,
    vector,
)

_jit = triton.jit(do_not_specialize=SIZES)


@triton.jit
def _inner_statistics(p_inner, o_p, m_p, pixels, INNER_NORM: tl.constexpr, ACC: tl.constexpr):
    """Mean and rstd (p) of the inner norm, 0 outside and without it."""
    b_mean, b_rstd = tl.zeros((o_p.shape[0],), ACC), tl.zeros((o_p.shape[0],), ACC)
    if INNER_NORM:
        b_mean = tl.load(p_inner + o_p, mask=m_p, other=0.0)
        b_rstd = tl.load(p_inner + pixels.to(tl.int64) + o_p, mask=m_p, other=0.0)
    return b_mean, b_rstd


@triton.jit
def _gradient_of_h(
    p_dy,
    p_u,
    p_dw,
    p_bias_dw,
    p_gamma2,
    p_beta2,
    p_w2,
    image,
    o_y,
    o_x,
    o_p,
    m_p,
    o_d,
    b_mean,
    b_rstd,
    H,
    W,
    R,
    c_end,
    C: tl.constexpr,
    D: tl.constexpr,
    BK: tl.constexpr,
    INNER_NORM: tl.constexpr,
    INNER_SKIP: tl.constexpr,
    PREC: tl.constexpr,
    ACC: tl.constexpr,
):
    """n and dh (p, d), both made from u and dy."""
    b_v = stencil(p_u, p_dw, image, o_y, o_x, m_p, o_d, H, W, R, D, False, INNER_SKIP, ACC)
    b_v += vector(p_bias_dw, o_d, D, ACC)[None, :]
    b_n, b_h = inner_norm(b_v, b_mean, b_rstd, p_gamma2, p_beta2, o_d, D, INNER_NORM, ACC)
    b_da = tl.zeros((o_p.shape[0], o_d.shape[0]), ACC)
    for c in range(0, c_end, BK):
        o_k = c + tl.arange(0, BK)
        b_dy = rows_of(p_dy, o_p * C, m_p, o_k, C).to(p_w2.dtype.element_ty)
        b_da = tl.dot(b_dy, matrix(p_w2, o_k, o_d, D, 1, C, D), b_da, input_precision=PREC, out_dtype=ACC)
    return b_n, b_da * gelu_slope(b_h)


@_jit
def wide_gradient_kernel(
    p_dy,
    p_u,
    p_dw,
    p_bias_dw,
    p_gamma2,
    p_beta2,
    p_w2,
    p_inner,
    p_dv,
    p_sums,
    row_begin,
    row_end,
    H,
    W,
    R,
    tiles_y,
    tiles_x,
    tiles,
    pixels,
    first,
    c_end,
    C: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BLOCKS: tl.constexpr,
    INNER_NORM: tl.constexpr,
    INNER_SKIP: tl.constexpr,
    PREC: tl.constexpr,
    ACC: tl.constexpr,
):
    """dv, and this program's share of dgamma2 and dbeta2. Grid: programs that share the tiles.

    Two sweeps over the channels of a tile: the first gathers c1 and c2, the second makes dh again. One without norm.
    p_sums None or (programs, 2, D)    BLOCKS: power of 2, BLOCKS BD >= D: both sums stay in registers, a row a block
    """
    o_b = tl.arange(0, BLOCKS)
    s_gamma, s_beta = tl.zeros((BLOCKS, BD), ACC), tl.zeros((BLOCKS, BD), ACC)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, o_y, o_x, m_p = tile_of(tile, row_begin, row_end, W, tiles_y, tiles_x, TH, TW)
        o_p = (image * H + o_y) * W + o_x
        b_mean, b_rstd = _inner_statistics(p_inner, o_p, m_p, pixels, INNER_NORM, ACC)
        b_c1, b_c2 = tl.zeros((TH * TW,), ACC), tl.zeros((TH * TW,), ACC)
        if INNER_NORM:
            for d in range(0, D, BD):
                o_d = d + tl.arange(0, BD)
                b_n, b_dh = _gradient_of_h(
                    *(p_dy, p_u, p_dw, p_bias_dw, p_gamma2, p_beta2, p_w2),
                    *(image, o_y, o_x, o_p, m_p, o_d, b_mean, b_rstd, H, W, R, c_end),
                    *(C, D, BK, INNER_NORM, INNER_SKIP, PREC, ACC),
                )
                b_dn = b_dh * factor(p_gamma2, o_d, D, ACC)[None, :]  # 0 beyond D
                b_c1 += tl.sum(b_dn, 1)
                b_c2 += tl.sum(b_dn * b_n, 1)
            b_c1, b_c2 = b_c1 / D, b_c2 / D
        o_dv = ((image * R + o_y % R) * W + o_x) * D
        for d in range(0, D, BD):
            o_d = d + tl.arange(0, BD)
            b_n, b_dh = _gradient_of_h(
                *(p_dy, p_u, p_dw, p_bias_dw, p_gamma2, p_beta2, p_w2),
                *(image, o_y, o_x, o_p, m_p, o_d, b_mean, b_rstd, H, W, R, c_end),
                *(C, D, BK, INNER_NORM, INNER_SKIP, PREC, ACC),
            )
            b_dv = b_dh
            if INNER_NORM:
                b_dv = b_dh * factor(p_gamma2, o_d, D, ACC)[None, :] - b_c1[:, None] - b_n * b_c2[:, None]
                b_dv *= b_rstd[:, None]
            m_dv = m_p[:, None] & (o_d < D)[None, :]
            tl.store(p_dv + o_dv[:, None] + o_d[None, :], b_dv.to(p_dv.dtype.element_ty), mask=m_dv)
            if p_sums is not None:
                m_b = (o_b == d // BD)[:, None]
                s_gamma += tl.where(m_b, tl.sum(b_dh * b_n, 0)[None, :], 0.0)
                s_beta += tl.where(m_b, tl.sum(b_dh, 0)[None, :], 0.0)
    if p_sums is not None:
        o_s = o_b[:, None] * BD + tl.arange(0, BD)[None, :]
        p_sums += tl.program_id(0).to(tl.int64) * 2 * D + o_s
        add_to_slot(p_sums, o_s < D, s_gamma, first)
        add_to_slot(p_sums + D, o_s < D, s_beta, first)


@_jit
def token_gradient_kernel(
    p_dy,
    p_t,
    p_dv,
    p_dw,
    p_gamma1,
    p_w1,
    p_dt,
    p_sums,
    row_begin,
    row_end,
    H,
    W,
    R,
    tiles_y,
    tiles_x,
    tiles,
    first,
    eps,
    C: tl.constexpr,
    D: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    NORM: tl.constexpr,
    INNER_SKIP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PREC: tl.constexpr,
    ACC: tl.constexpr,
):
    """dt, and this program's share of dgamma1, dbeta1 and dbias2. Grid: programs that share the tiles.

    p_sums None or (programs, 3, C)
    """
    o_c = tl.arange(0, BC)
    s_gamma, s_beta, s_bias2 = tl.zeros((BC,), ACC), tl.zeros((BC,), ACC), tl.zeros((BC,), ACC)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, o_y, o_x, m_p = tile_of(tile, row_begin, row_end, W, tiles_y, tiles_x, TH, TW)
        o_t = ((image * H + o_y) * W + o_x) * C
        b_dt = tl.zeros((TH * TW, BC), ACC)
        for d in range(0, D, BD):
            o_d = d + tl.arange(0, BD)
            b_du = stencil(p_dv, p_dw, image, o_y, o_x, m_p, o_d, H, W, R, D, True, INNER_SKIP, ACC)
            b_w = matrix(p_w1, o_d, o_c, C, 1, D, C)
            b_dt = tl.dot(b_du.to(p_w1.dtype.element_ty), b_w, b_dt, input_precision=PREC, out_dtype=ACC)  # dz
        if NORM:
            b_mean, b_rstd = token_statistics(p_t, o_t, m_p, eps, C, BC, NORM, ACC)
            b_n = (rows_of(p_t, o_t, m_p, o_c, C).to(ACC) - b_mean[:, None]) * b_rstd[:, None]
            b_n = tl.where((o_c < C)[None, :], b_n, 0.0)
            s_gamma += tl.sum(b_dt * b_n, 0)
            s_beta += tl.sum(b_dt, 0)
            b_dn = b_dt * factor(p_gamma1, o_c, C, ACC)[None, :]
            b_c1, b_c2 = tl.sum(b_dn, 1) / C, tl.sum(b_dn * b_n, 1) / C
            b_dt = (b_dn - b_c1[:, None] - b_n * b_c2[:, None]) * b_rstd[:, None]
        if RESIDUAL or p_sums is not None:
            b_dy = rows_of(p_dy, o_t, m_p, o_c, C).to(ACC)
            s_bias2 += tl.sum(b_dy, 0)
            if RESIDUAL:
                b_dt += b_dy
        m_t = m_p[:, None] & (o_c < C)[None, :]
        tl.store(p_dt + o_t[:, None] + o_c[None, :], b_dt.to(p_dt.dtype.element_ty), mask=m_t)
    if p_sums is not None:
        p_sums += tl.program_id(0).to(tl.int64) * 3 * C + o_c
        add_to_slot(p_sums, o_c < C, s_gamma, first)
        add_to_slot(p_sums + C, o_c < C, s_beta, first)
        add_to_slot(p_sums + 2 * C, o_c < C, s_bias2, first)
