"""Kernels of mix_ffn's weight gradients: maths, shapes and shared arguments stand in ``mix_ffn_kernels``."""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.mix_ffn_kernels import (
    SIZES,
    add_to_slot,
    inner_norm,
    normal_cdf,
    normed_tokens,
    rows_of,
    tap,
    tap_weight,
    tile_of,
    token_statistics,
    vector,
)
from msformer_fast.kernels.partial_sums import sum_of_partials

_jit = triton.jit(do_not_specialize=SIZES)


@_jit
def product_gradient_kernel(
    p_dy,
    p_t,
    p_u,
    p_dv,
    p_gamma1,
    p_beta1,
    p_dw,
    p_bias_dw,
    p_gamma2,
    p_beta2,
    p_inner,
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
    eps,
    C: tl.constexpr,
    D: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    NORM: tl.constexpr,
    INNER_NORM: tl.constexpr,
    INNER_SKIP: tl.constexpr,
    PREC: tl.constexpr,
    ACC: tl.constexpr,
):
    """This program's share of dw1, dw2, ddw, dbias_dw and dbias1. Grid: blocks of BD channels, programs.

    p_sums (programs, 2 D C + 11 D): dw1 (D, C), dw2 (C, D), ddw (D, 9), dbias_dw, dbias1
    Sums of the convolution stay (p, d) until the end: nothing is reduced across threads inside the loop.
    """
    o_d, o_c = tl.program_id(0) * BD + tl.arange(0, BD), tl.arange(0, BC)
    zero = tl.zeros((TH * TW, BD), ACC)
    s_dw1, s_dw2, s_du, s_dv = tl.zeros((BD, BC), ACC), tl.zeros((BD, BC), ACC), zero, zero
    s = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        image, o_y, o_x, m_p = tile_of(tile, row_begin, row_end, W, tiles_y, tiles_x, TH, TW)
        o_p = (image * H + o_y) * W + o_x
        b_dv = rows_of(p_dv, ((image * R + o_y % R) * W + o_x) * D, m_p, o_d, D).to(ACC)
        b_du, b_v = zero, zero + vector(p_bias_dw, o_d, D, ACC)[None, :]
        for k in range(9):  # not unrolled here, as in stencil; after nine turns every sum is in its place again
            b_w = tap_weight(p_dw, o_d, k, D, INNER_SKIP, ACC)
            b_u = tap(p_u, image, o_y, o_x, m_p, o_d, k, H, W, R, D, ACC)
            b_v += b_u * b_w[None, :]
            b_du += tap(p_dv, image, o_y, o_x, m_p, o_d, 8 - k, H, W, R, D, ACC) * b_w[None, :]
            s = (s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[0] + b_u * b_dv)
        s_dv += b_dv
        s_du += b_du
        b_mean, b_rstd = tl.zeros((TH * TW,), ACC), tl.zeros((TH * TW,), ACC)
        if INNER_NORM:
            b_mean = tl.load(p_inner + o_p, mask=m_p, other=0.0)
            b_rstd = tl.load(p_inner + pixels.to(tl.int64) + o_p, mask=m_p, other=0.0)
        _, b_h = inner_norm(b_v, b_mean, b_rstd, p_gamma2, p_beta2, o_d, D, INNER_NORM, ACC)
        b_a = (b_h * normal_cdf(b_h)).to(p_dv.dtype.element_ty)
        b_dy = rows_of(p_dy, o_p * C, m_p, o_c, C).to(p_dv.dtype.element_ty)  # 0 outside, where a is not
        s_dw2 = tl.dot(tl.trans(b_a), b_dy, s_dw2, input_precision=PREC, out_dtype=ACC)
        b_mean, b_rstd = token_statistics(p_t, o_p * C, m_p, eps, C, BC, NORM, ACC)
        b_z = normed_tokens(p_t, p_gamma1, p_beta1, o_p * C, m_p, o_c, b_mean, b_rstd, C, NORM, ACC)
        b_du = tl.trans(b_du.to(p_dv.dtype.element_ty))  # 0 outside, where z is not
        s_dw1 = tl.dot(b_du, b_z.to(p_dv.dtype.element_ty), s_dw1, input_precision=PREC, out_dtype=ACC)
    p_sums += tl.program_id(1).to(tl.int64) * (2 * D * C + 11 * D)
    m_dc, m_d = (o_d < D)[:, None] & (o_c < C)[None, :], o_d < D
    add_to_slot(p_sums + o_d[:, None] * C + o_c[None, :], m_dc, s_dw1, first)
    add_to_slot(p_sums + D * C + o_d[:, None] + o_c[None, :] * D, m_dc, s_dw2, first)
    p_sums += 2 * D * C
    for k in tl.static_range(9):
        add_to_slot(p_sums + o_d * 9 + k, m_d, tl.sum(s[k], 0), first)
    add_to_slot(p_sums + 9 * D + o_d, m_d, tl.sum(s_dv, 0), first)
    add_to_slot(p_sums + 10 * D + o_d, m_d, tl.sum(s_du, 0), first)


@triton.jit
def _put(p, o, begin, size, b_sum):
    """Entries from `begin` on to a gradient of `size` entries, where there is one."""
    if p is not None:
        tl.store(p + (o - begin), b_sum.to(p.dtype.element_ty), mask=(o >= begin) & (o < begin + size))


@_jit
def finish_gradients_kernel(
    p_product_sums,
    p_wide_sums,
    p_token_sums,
    p_dw1,
    p_dw2,
    p_ddw,
    p_dbias_dw,
    p_dbias1,
    p_dgamma2,
    p_dbeta2,
    p_dgamma1,
    p_dbeta1,
    p_dbias2,
    product_slots,
    wide_slots,
    token_slots,
    C: tl.constexpr,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Every gradient of a parameter, in its layout and dtype: slots of all kernels, added in order.

    Grid: blocks of the first kernel's sums, then of the second's, then of the third's; those absent have none.
    """
    PRODUCT_BLOCKS: tl.constexpr = (2 * D * C + 11 * D + BLOCK - 1) // BLOCK
    WIDE_BLOCKS: tl.constexpr = 0 if p_wide_sums is None else (2 * D + BLOCK - 1) // BLOCK
    block, i = tl.program_id(0), tl.arange(0, BLOCK)
    if block < PRODUCT_BLOCKS:
        o = block * BLOCK + i
        b_sum = sum_of_partials(p_product_sums, o, 2 * D * C + 11 * D, 2 * D * C + 11 * D, product_slots, BLOCK_S, ACC)
        _put(p_dw1, o, 0, D * C, b_sum)
        _put(p_dw2, o, D * C, D * C, b_sum)
        _put(p_ddw, o, 2 * D * C, 9 * D, b_sum)
        _put(p_dbias_dw, o, 2 * D * C + 9 * D, D, b_sum)
        _put(p_dbias1, o, 2 * D * C + 10 * D, D, b_sum)
    elif block < PRODUCT_BLOCKS + WIDE_BLOCKS:
        if p_wide_sums is not None:
            o = (block - PRODUCT_BLOCKS) * BLOCK + i
            b_sum = sum_of_partials(p_wide_sums, o, 2 * D, 2 * D, wide_slots, BLOCK_S, ACC)
            _put(p_dgamma2, o, 0, D, b_sum)
            _put(p_dbeta2, o, D, D, b_sum)
    else:
        if p_token_sums is not None:
            o = (block - PRODUCT_BLOCKS - WIDE_BLOCKS) * BLOCK + i
            b_sum = sum_of_partials(p_token_sums, o, 3 * C, 3 * C, token_slots, BLOCK_S, ACC)
            _put(p_dgamma1, o, 0, C, b_sum)
            _put(p_dbeta1, o, C, C, b_sum)
            _put(p_dbias2, o, 2 * C, C, b_sum)
