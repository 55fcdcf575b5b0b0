"""Backward kernels of mix_ffn: the math and the arguments that kernels share stand in ``mix_ffn_kernels``.

Three passes, u given: (dy, u) -> dv; (dv, t, dy) -> dt; (u, dv, t, dy) -> gradients of both products and of the
convolution. Gradients of vectors come from the pass that has their terms. A last kernel adds the partial sums of all.
`s_` a sum that a program keeps over its tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.blocks import load_vector, store_block
from msformer_fast.kernels.mix_ffn_kernels import (
    SIZES,
    convolved,
    hidden_of,
    inner_norm,
    load_channels,
    load_scale,
    load_weight,
    mask_of,
    normal_cdf,
    normed_tokens,
    pixels_of,
    stencil,
    tap,
    tap_weight,
    taps_of,
    tile_of,
    token_statistics,
)
from msformer_fast.kernels.partial_sums import sum_of_partials

_jit = triton.jit(do_not_specialize=SIZES)


@triton.jit
def gelu_slope(b_h):
    """GELU'(h)."""
    return normal_cdf(b_h) + b_h * tl.exp(-0.5 * b_h * b_h) * 0.3989422804014327


@triton.jit
def add_partial(p, m, b_sum, is_first_strip):
    """Add to this program's partial sums, or begin them. Each launch writes an entry once."""
    m_old = m & (tl.zeros(m.shape, tl.int32) + is_first_strip == 0)  # the scalar as a block of m's shape
    b_old = tl.load(p, mask=m_old, other=0.0)

    # Several warps may hold a copy of the block, of which one stores: none may load after that.
    tl.debug_barrier()
    tl.store(p, b_sum + b_old, mask=m)


@triton.jit
def inner_statistics(p_inner, o_p, m_p, pixels, INNER_NORM: tl.constexpr, ACC: tl.constexpr):
    """Mean and rstd [P] of the inner norm, 0 outside and without it."""
    b_mean, b_rstd = tl.zeros((o_p.shape[0],), ACC), tl.zeros((o_p.shape[0],), ACC)
    if INNER_NORM:
        b_mean = tl.load(p_inner + o_p, mask=m_p, other=0.0)
        b_rstd = tl.load(p_inner + pixels.to(tl.int64) + o_p, mask=m_p, other=0.0)
    return b_mean, b_rstd


@triton.jit
def gradient_of_h(
    p_dy, p_u, p_conv, p_bias_conv, p_inner_gamma, p_inner_beta, p_w2, tile, o_p, o_d, b_mean, b_rstd,
    H, W, R, c_end,
    C: tl.constexpr, D: tl.constexpr, BLOCK_K: tl.constexpr, INNER_NORM: tl.constexpr, INNER_SKIP: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """n and dh [P, BLOCK_D], both recomputed from u and dy."""
    b_v = convolved(p_u, p_conv, p_bias_conv, tile, o_d, H, W, R, D, INNER_SKIP, ACC)
    b_n, b_h = inner_norm(b_v, b_mean, b_rstd, p_inner_gamma, p_inner_beta, o_d, D, INNER_NORM, ACC)

    m_p = mask_of(tile)
    b_da = tl.zeros((o_p.shape[0], o_d.shape[0]), ACC)
    for c in range(0, c_end, BLOCK_K):
        o_k = c + tl.arange(0, BLOCK_K)
        b_dy = load_channels(p_dy, o_p * C, m_p, o_k, C).to(p_w2.dtype.element_ty)  # [P, BLOCK_K]
        b_w = load_weight(p_w2, o_k, o_d, stride_row=D, stride_col=1, N_ROW=C, N_COL=D)  # [BLOCK_K, BLOCK_D]
        b_da = tl.dot(b_dy, b_w, b_da, input_precision=PREC, out_dtype=ACC)

    return b_n, b_da * gelu_slope(b_h)


@_jit
def hidden_gradient_kernel(
    p_dy, p_u, p_conv, p_bias_conv, p_inner_gamma, p_inner_beta, p_w2, p_inner, p_dv, p_partials,
    row_begin, row_end, H, W, R, tiles_y, tiles_x, tiles, pixels, is_first_strip, c_end,
    C: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCKS: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, INNER_NORM: tl.constexpr, INNER_SKIP: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dv, and this program's partial sums of dinner_gamma and dinner_beta. Grid: programs that share the tiles.

    Two sweeps over the hidden channels of a tile: the first gathers c1 and c2, the second recomputes dh. Without the
    norm there is one.
    p_partials None or (programs, 2, D)
    BLOCKS: power of 2, BLOCKS BLOCK_D >= D: both sums stay in registers [BLOCKS, BLOCK_D], one row
    per block of channels
    """
    o_b = tl.arange(0, BLOCKS)
    s_dgamma, s_dbeta = tl.zeros((BLOCKS, BLOCK_D), ACC), tl.zeros((BLOCKS, BLOCK_D), ACC)

    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        tile = tile_of(index, row_begin, row_end, W, tiles_y, tiles_x, TILE_H, TILE_W)
        o_p, m_p = pixels_of(tile, H, W), mask_of(tile)
        b_mean, b_rstd = inner_statistics(p_inner, o_p, m_p, pixels, INNER_NORM, ACC)

        # First sweep: means of dn and dn n over D.
        b_c1, b_c2 = tl.zeros((TILE_H * TILE_W,), ACC), tl.zeros((TILE_H * TILE_W,), ACC)
        if INNER_NORM:
            for d in range(0, D, BLOCK_D):
                o_d = d + tl.arange(0, BLOCK_D)
                b_n, b_dh = gradient_of_h(
                    p_dy, p_u, p_conv, p_bias_conv, p_inner_gamma, p_inner_beta, p_w2, tile, o_p, o_d, b_mean, b_rstd,
                    H, W, R, c_end, C, D, BLOCK_K, INNER_NORM, INNER_SKIP, PREC, ACC,
                )  # fmt: skip
                b_dn = b_dh * load_scale(p_inner_gamma, o_d, D, ACC)[None, :]  # 0 beyond D
                b_c1 += tl.sum(b_dn, 1)
                b_c2 += tl.sum(b_dn * b_n, 1)
            b_c1, b_c2 = b_c1 / D, b_c2 / D

        # Second sweep: dv.
        for d in range(0, D, BLOCK_D):
            o_d = d + tl.arange(0, BLOCK_D)
            b_n, b_dh = gradient_of_h(
                p_dy, p_u, p_conv, p_bias_conv, p_inner_gamma, p_inner_beta, p_w2, tile, o_p, o_d, b_mean, b_rstd,
                H, W, R, c_end, C, D, BLOCK_K, INNER_NORM, INNER_SKIP, PREC, ACC,
            )  # fmt: skip
            b_dv = b_dh
            if INNER_NORM:
                b_dv = b_dh * load_scale(p_inner_gamma, o_d, D, ACC)[None, :] - b_c1[:, None] - b_n * b_c2[:, None]
                b_dv *= b_rstd[:, None]

            m_dv = m_p[:, None] & (o_d < D)[None, :]
            tl.store(hidden_of(p_dv, tile, o_d, H, R, W, D), b_dv.to(p_dv.dtype.element_ty), mask=m_dv)

            if p_partials is not None:
                m_b = (o_b == d // BLOCK_D)[:, None]  # a row of registers cannot be indexed
                s_dgamma += tl.where(m_b, tl.sum(b_dh * b_n, 0)[None, :], 0.0)
                s_dbeta += tl.where(m_b, tl.sum(b_dh, 0)[None, :], 0.0)

    if p_partials is not None:
        o_s = o_b[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        p_partials += tl.program_id(0).to(tl.int64) * 2 * D + o_s
        add_partial(p_partials, o_s < D, s_dgamma, is_first_strip)
        add_partial(p_partials + D, o_s < D, s_dbeta, is_first_strip)


@_jit
def token_gradient_kernel(
    p_dy, p_t, p_dv, p_conv, p_gamma, p_w1, p_dt, p_partials,
    row_begin, row_end, H, W, R, tiles_y, tiles_x, tiles, is_first_strip, eps,
    C: tl.constexpr, D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, TILE_H: tl.constexpr,
    TILE_W: tl.constexpr, NORM: tl.constexpr, INNER_SKIP: tl.constexpr, RESIDUAL: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dt, and this program's partial sums of dgamma, dbeta and dbias2. Grid: programs that share the tiles.

    p_partials None or (programs, 3, C)
    """
    o_c = tl.arange(0, BLOCK_C)
    s_dgamma, s_dbeta, s_dbias2 = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)

    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        tile = tile_of(index, row_begin, row_end, W, tiles_y, tiles_x, TILE_H, TILE_W)
        o_t, m_p = pixels_of(tile, H, W) * C, mask_of(tile)

        # dz = du w1, the product over D.
        b_dz = tl.zeros((TILE_H * TILE_W, BLOCK_C), ACC)
        for d in range(0, D, BLOCK_D):
            o_d = d + tl.arange(0, BLOCK_D)
            # [P, BLOCK_D]
            b_du = stencil(p_dv, p_conv, tile, o_d, H, W, R, D, FLIP=True, INNER_SKIP=INNER_SKIP, ACC=ACC)
            b_w = load_weight(p_w1, o_d, o_c, stride_row=C, stride_col=1, N_ROW=D, N_COL=C)  # [BLOCK_D, BLOCK_C]
            b_dz = tl.dot(b_du.to(p_w1.dtype.element_ty), b_w, b_dz, input_precision=PREC, out_dtype=ACC)

        # Past the norm over C: x = (t - mean) rstd, z = x gamma + beta.
        b_dt = b_dz
        if NORM:
            b_mean, b_rstd = token_statistics(p_t, o_t, m_p, eps, C, BLOCK_C, NORM, ACC)
            b_xhat = (load_channels(p_t, o_t, m_p, o_c, C).to(ACC) - b_mean[:, None]) * b_rstd[:, None]
            b_xhat = tl.where((o_c < C)[None, :], b_xhat, 0.0)

            s_dgamma += tl.sum(b_dz * b_xhat, 0)
            s_dbeta += tl.sum(b_dz, 0)
            b_dxhat = b_dz * load_scale(p_gamma, o_c, C, ACC)[None, :]
            b_c1, b_c2 = tl.sum(b_dxhat, 1) / C, tl.sum(b_dxhat * b_xhat, 1) / C  # [P], means over C
            b_dt = (b_dxhat - b_c1[:, None] - b_xhat * b_c2[:, None]) * b_rstd[:, None]

        if RESIDUAL or p_partials is not None:
            b_dy = load_channels(p_dy, o_t, m_p, o_c, C).to(ACC)
            s_dbias2 += tl.sum(b_dy, 0)
            if RESIDUAL:
                b_dt += b_dy

        store_block(p_dt, o_t, o_c, m_p, o_c < C, b_dt)

    if p_partials is not None:
        p_partials += tl.program_id(0).to(tl.int64) * 3 * C + o_c
        add_partial(p_partials, o_c < C, s_dgamma, is_first_strip)
        add_partial(p_partials + C, o_c < C, s_dbeta, is_first_strip)
        add_partial(p_partials + 2 * C, o_c < C, s_dbias2, is_first_strip)


@_jit
def product_gradient_kernel(
    p_dy, p_t, p_u, p_dv, p_gamma, p_beta, p_conv, p_bias_conv, p_inner_gamma, p_inner_beta, p_inner, p_partials,
    row_begin, row_end, H, W, R, tiles_y, tiles_x, tiles, pixels, is_first_strip, eps,
    C: tl.constexpr, D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, TILE_H: tl.constexpr,
    TILE_W: tl.constexpr, NORM: tl.constexpr, INNER_NORM: tl.constexpr, INNER_SKIP: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial sums of dw1, dw2, dconv, dbias_conv and dbias1. Grid: blocks of BLOCK_D channels, programs.

    p_partials (programs, 2 D C + 11 D): dw1 (D, C), dw2 (C, D), dconv (D, 9), dbias_conv, dbias1
    Sums of the convolution stay [P, BLOCK_D] until the end: nothing is reduced across threads inside the loop.
    """
    o_d, o_c = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    b_zero = tl.zeros((TILE_H * TILE_W, BLOCK_D), ACC)
    s_dw1, s_dw2 = tl.zeros((BLOCK_D, BLOCK_C), ACC), tl.zeros((BLOCK_D, BLOCK_C), ACC)
    s_dbias1, s_dbias_conv = b_zero, b_zero
    s_dconv = (b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero)  # one a tap

    for index in range(tl.program_id(1), tiles, tl.num_programs(1)):
        tile = tile_of(index, row_begin, row_end, W, tiles_y, tiles_x, TILE_H, TILE_W)
        o_p, m_p = pixels_of(tile, H, W), mask_of(tile)
        p_tile_u, p_tile_dv = hidden_of(p_u, tile, o_d, H, R, W, D), hidden_of(p_dv, tile, o_d, H, R, W, D)
        b_dv = tl.load(p_tile_dv, mask=m_p[:, None] & (o_d < D)[None, :], other=0.0).to(ACC)  # [P, BLOCK_D]

        # v, du and the sums of dconv from one walk over the taps.
        b_du, b_v = b_zero, b_zero + load_vector(p_bias_conv, o_d, D, 0.0, ACC)[None, :]  # [P, BLOCK_D] both
        taps = taps_of(tile, H, W, R)
        # Not unrolled, as in stencil. A tuple cannot be indexed by a number that is known at run time only, so every
        # turn moves the sums one place on: in turn k tap k's is the first, and after nine each is where it was.
        for k in range(9):
            b_w = tap_weight(p_conv, o_d, k, D, INNER_SKIP, ACC)
            b_u = tap(p_tile_u, taps, o_d, k, W, R, D, ACC)
            b_v += b_u * b_w[None, :]
            b_du += tap(p_tile_dv, taps, o_d, 8 - k, W, R, D, ACC) * b_w[None, :]
            s0, s1, s2, s3, s4, s5, s6, s7, s8 = s_dconv
            s_dconv = (s1, s2, s3, s4, s5, s6, s7, s8, s0 + b_u * b_dv)
        s_dbias_conv += b_dv
        s_dbias1 += b_du

        # dw2 = dy^T a.
        b_inner_mean, b_inner_rstd = inner_statistics(p_inner, o_p, m_p, pixels, INNER_NORM, ACC)
        _, b_h = inner_norm(b_v, b_inner_mean, b_inner_rstd, p_inner_gamma, p_inner_beta, o_d, D, INNER_NORM, ACC)
        b_a = (b_h * normal_cdf(b_h)).to(p_dv.dtype.element_ty)  # [P, BLOCK_D]
        # [P, BLOCK_C], 0 outside, where a is not.
        b_dy = load_channels(p_dy, o_p * C, m_p, o_c, C).to(p_dv.dtype.element_ty)
        s_dw2 = tl.dot(tl.trans(b_a), b_dy, s_dw2, input_precision=PREC, out_dtype=ACC)

        # dw1 = du^T z.
        b_mean, b_rstd = token_statistics(p_t, o_p * C, m_p, eps, C, BLOCK_C, NORM, ACC)
        b_z = normed_tokens(p_t, p_gamma, p_beta, o_p * C, m_p, o_c, b_mean, b_rstd, C, NORM, ACC)  # [P, BLOCK_C]
        b_du = tl.trans(b_du.to(p_dv.dtype.element_ty))  # [BLOCK_D, P], 0 outside, where z is not
        s_dw1 = tl.dot(b_du, b_z.to(p_dv.dtype.element_ty), s_dw1, input_precision=PREC, out_dtype=ACC)

    p_partials += tl.program_id(1).to(tl.int64) * (2 * D * C + 11 * D)
    m_dc, m_d = (o_d < D)[:, None] & (o_c < C)[None, :], o_d < D
    add_partial(p_partials + o_d[:, None] * C + o_c[None, :], m_dc, s_dw1, is_first_strip)
    add_partial(p_partials + D * C + o_d[:, None] + o_c[None, :] * D, m_dc, s_dw2, is_first_strip)
    p_partials += 2 * D * C
    for k in tl.static_range(9):
        add_partial(p_partials + o_d * 9 + k, m_d, tl.sum(s_dconv[k], 0), is_first_strip)
    add_partial(p_partials + 9 * D + o_d, m_d, tl.sum(s_dbias_conv, 0), is_first_strip)
    add_partial(p_partials + 10 * D + o_d, m_d, tl.sum(s_dbias1, 0), is_first_strip)


@triton.jit
def store_gradient(p, o, begin, size, b_sum):
    """Store the sums begin to begin + size - 1 as the gradient p, unless that is None. o: numbers of the sums b_sum."""
    if p is not None:
        tl.store(p + (o - begin), b_sum.to(p.dtype.element_ty), mask=(o >= begin) & (o < begin + size))


@_jit
def finish_gradients_kernel(
    p_product_partials, p_hidden_partials, p_token_partials,
    p_dw1, p_dw2, p_dconv, p_dbias_conv, p_dbias1, p_dinner_gamma, p_dinner_beta, p_dgamma, p_dbeta, p_dbias2,
    product_programs, hidden_programs, token_programs,
    C: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every gradient of a parameter, in its layout and dtype: partial sums of all kernels, added in order.

    Grid: blocks of the sums of product_gradient_kernel, then of hidden_gradient_kernel, then of token_gradient_kernel;
    absent ones have none.
    p_d*: gradients of the parameters, None if absent    *_programs: how many left partial sums
    BLOCK: sums of a program    BLOCK_S: partial sums at a time
    """
    PRODUCT_SUMS: tl.constexpr = 2 * D * C + 11 * D
    PRODUCT_BLOCKS: tl.constexpr = (PRODUCT_SUMS + BLOCK - 1) // BLOCK
    HIDDEN_BLOCKS: tl.constexpr = 0 if p_hidden_partials is None else (2 * D + BLOCK - 1) // BLOCK
    block, i = tl.program_id(0), tl.arange(0, BLOCK)

    if block < PRODUCT_BLOCKS:
        o = block * BLOCK + i
        b_sum = sum_of_partials(p_product_partials, o, PRODUCT_SUMS, PRODUCT_SUMS, product_programs, BLOCK_S, ACC)
        store_gradient(p_dw1, o, 0, D * C, b_sum)
        store_gradient(p_dw2, o, D * C, D * C, b_sum)
        store_gradient(p_dconv, o, 2 * D * C, 9 * D, b_sum)
        store_gradient(p_dbias_conv, o, 2 * D * C + 9 * D, D, b_sum)
        store_gradient(p_dbias1, o, 2 * D * C + 10 * D, D, b_sum)

    elif block < PRODUCT_BLOCKS + HIDDEN_BLOCKS:
        if p_hidden_partials is not None:
            o = (block - PRODUCT_BLOCKS) * BLOCK + i
            b_sum = sum_of_partials(p_hidden_partials, o, 2 * D, 2 * D, hidden_programs, BLOCK_S, ACC)
            store_gradient(p_dinner_gamma, o, 0, D, b_sum)
            store_gradient(p_dinner_beta, o, D, D, b_sum)

    else:
        if p_token_partials is not None:
            o = (block - PRODUCT_BLOCKS - HIDDEN_BLOCKS) * BLOCK + i
            b_sum = sum_of_partials(p_token_partials, o, 3 * C, 3 * C, token_programs, BLOCK_S, ACC)
            store_gradient(p_dgamma, o, 0, C, b_sum)
            store_gradient(p_dbeta, o, C, C, b_sum)
            store_gradient(p_dbias2, o, 2 * C, C, b_sum)
