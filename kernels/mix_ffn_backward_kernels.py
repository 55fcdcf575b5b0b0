"""Backward kernels of mix_ffn: the math and the arguments that kernels share stand in ``mix_ffn_kernels``.

Three passes, u given: (dy, u) -> dv, a; (dv, t, dy) -> dt; (u, dv, a, t, dy) -> gradients of both products and of the
convolution. Gradients of vectors come from the pass that has their terms. A last kernel adds the partial sums of all.
    p_a (B, R, W, D): the activations behind the GELU, a row buffer as u and dv are
    p_tokens (2, B, H, W): mean and rstd of the op's norm, from the second pass for the third; None without the norm
`s_` a sum that a program keeps over its tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.blocks import add_dot, load_vector, store_block
from msformer_fast.kernels.mix_ffn_kernels import (
    INNER_GAMMA,
    SIZES,
    convolved,
    hidden_of,
    inner_norm,
    is_inner,
    load_channels,
    load_hidden,
    load_scale,
    load_weight,
    mask_of,
    moved,
    normal_cdf,
    pixels_of,
    place_of,
    scratch_of,
    stencil,
    tap,
    taps_of,
    tile_at,
    tile_of,
    token_statistics,
)
from msformer_fast.kernels.partial_sums import store_gradient, sum_of_partials

_jit = triton.jit(do_not_specialize=SIZES)


@triton.jit
def gelu_and_slope(b_h):
    """GELU(h) and GELU'(h) [P, BLOCK_D]."""
    b_cdf = normal_cdf(b_h)
    b_slope = b_cdf + b_h * tl.exp2(b_h * (b_h * -0.7213475204444817)) * 0.3989422804014327  # -1 / (2 log 2)

    # A sum over one element, past which the compiler does not look: else it would compute the slope a second time, in
    # the layout of the product that it meets, which costs ten times as much as to convert it.
    return b_h * b_cdf, tl.sum(b_slope[:, :, None], 2)


@triton.jit
def add_partial(p, m, b_sum, is_first_strip):
    """Add to this program's partial sums, or begin them. Each launch writes an entry once."""
    m_old = m & (tl.zeros(m.shape, tl.int32) + is_first_strip == 0)  # the scalar as a block of m's shape
    b_old = tl.load(p, mask=m_old, other=0.0)

    # Several warps may hold a copy of the block, of which one stores: none may load after that.
    tl.debug_barrier()
    tl.store(p, b_sum + b_old, mask=m)


@triton.jit
def load_statistics(p_statistics, o_p, m_p, pixels, ACC: tl.constexpr):
    """Mean and rstd [P] of a norm from (2, B, H, W); 0 outside and without the norm, where that is None."""
    b_mean, b_rstd = tl.zeros((o_p.shape[0],), ACC), tl.zeros((o_p.shape[0],), ACC)
    if p_statistics is not None:
        b_mean = tl.load(p_statistics + o_p, mask=m_p, other=0.0)
        b_rstd = tl.load(p_statistics + pixels.to(tl.int64) + o_p, mask=m_p, other=0.0)
    return b_mean, b_rstd


@triton.jit
def load_gradients(p_dy, p_w2, o_p, m_p, o_k, C: tl.constexpr):
    """Channels o_k of dy [P, BLOCK_K] in the dtype of products."""
    return load_channels(p_dy, o_p * C, m_p, o_k, C).to(p_w2.dtype.element_ty)


@_jit
def hidden_gradient_kernel(
    p_dy, p_u, p_vectors, p_w2, p_inner, p_dv, p_a, p_scratch, p_partials,
    row_begin, row_end, H, W, R, tiles_y, tiles_x, tiles, pixels, is_first_strip, c_end,
    C: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCKS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, INNER_NORM: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dv, a, and this program's partial sums of dinner_gamma and dinner_beta. Grid: programs that share the tiles.

    The first sweep over the hidden channels of a tile stores a, dn in dv's place, and n in the scratch memory, and
    gathers the means c1 and c2; the second makes dv of them. Without the norm dn is dv.
    p_partials None or (programs, 2, D)
    BLOCKS: power of 2, BLOCKS BLOCK_D >= D: both sums stay in registers [BLOCKS, BLOCK_D], one row
    per block of channels
    """
    o_b = tl.arange(0, BLOCKS)
    s_dgamma, s_dbeta = tl.zeros((BLOCKS, BLOCK_D), ACC), tl.zeros((BLOCKS, BLOCK_D), ACC)

    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        tile = tile_of(index, row_begin, row_end, H, W, tiles_y, tiles_x, TILE_H, TILE_W)
        o_p, m_p = pixels_of(tile, H, W), mask_of(tile)
        b_mean, b_rstd = load_statistics(p_inner, o_p, m_p, pixels, ACC)
        b_c1, b_c2 = tl.zeros((TILE_H * TILE_W,), ACC), tl.zeros((TILE_H * TILE_W,), ACC)
        if BLOCK_K >= C:  # dy stays where products read it
            o_k = tl.arange(0, BLOCK_K)
            b_dy = load_gradients(p_dy, p_w2, o_p, m_p, o_k, C)

        for d in range(0, D, BLOCK_D):
            o_d = d + tl.arange(0, BLOCK_D)
            b_v = convolved(p_u, p_vectors, tile, o_d, H, W, R, D, PAD_D, ACC)  # [P, BLOCK_D]
            b_n, b_h = inner_norm(b_v, b_mean, b_rstd, p_vectors, o_d, PAD_D, INNER_NORM)
            b_a, b_slope = gelu_and_slope(b_h)

            b_dh = tl.zeros((TILE_H * TILE_W, BLOCK_D), ACC)  # da, the product over C
            if BLOCK_K >= C:
                b_w = load_weight(p_w2, o_k, o_d, stride_row=D, stride_col=1, N_ROW=C, N_COL=D)  # [BLOCK_K, BLOCK_D]
                b_dh = add_dot(b_dy, b_w, b_dh, PREC, ACC)
            else:
                for c in range(0, c_end, BLOCK_K):
                    o_k = c + tl.arange(0, BLOCK_K)
                    b_dy_piece = load_gradients(p_dy, p_w2, o_p, m_p, o_k, C)
                    b_w = load_weight(p_w2, o_k, o_d, stride_row=D, stride_col=1, N_ROW=C, N_COL=D)
                    b_dh = add_dot(b_dy_piece, b_w, b_dh, PREC, ACC)
            b_dh *= b_slope

            b_dn = b_dh
            if INNER_NORM:
                b_dn = b_dh * load_hidden(p_vectors, INNER_GAMMA, o_d, PAD_D)  # 0 beyond D
                b_c1 += tl.sum(b_dn, 1)
                b_c2 += tl.sum(b_dn * b_n, 1)
                tl.store(scratch_of(p_scratch, o_d, TILE_H * TILE_W, D), b_n.to(p_dv.dtype.element_ty))

            m_dv = m_p[:, None] & (o_d < D)[None, :]
            tl.store(hidden_of(p_a, tile, o_d, H, R, W, D), b_a.to(p_a.dtype.element_ty), mask=m_dv)
            tl.store(hidden_of(p_dv, tile, o_d, H, R, W, D), b_dn.to(p_dv.dtype.element_ty), mask=m_dv)

            if p_partials is not None:
                m_b = (o_b == d // BLOCK_D)[:, None]  # a row of registers cannot be indexed
                s_dgamma += tl.where(m_b, tl.sum(b_dh * b_n, 0)[None, :], 0.0)
                s_dbeta += tl.where(m_b, tl.sum(b_dh, 0)[None, :], 0.0)

        if INNER_NORM:
            b_c1, b_c2 = b_c1 / D, b_c2 / D
            tl.debug_barrier()  # what a thread reads back another may have stored

            for d in range(0, D, BLOCK_D):
                o_d = d + tl.arange(0, BLOCK_D)
                p_tile_dv, m_dv = hidden_of(p_dv, tile, o_d, H, R, W, D), m_p[:, None] & (o_d < D)[None, :]
                b_n = tl.load(scratch_of(p_scratch, o_d, TILE_H * TILE_W, D)).to(ACC)
                b_dn = tl.load(p_tile_dv, mask=m_dv, other=0.0).to(ACC)
                b_dv = (b_dn - b_c1[:, None] - b_n * b_c2[:, None]) * b_rstd[:, None]
                tl.store(p_tile_dv, b_dv.to(p_dv.dtype.element_ty), mask=m_dv)

            tl.debug_barrier()  # all have read before the next tile's n is stored

    if p_partials is not None:
        o_s = o_b[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        p_partials += tl.program_id(0).to(tl.int64) * 2 * D + o_s
        add_partial(p_partials, o_s < D, s_dgamma, is_first_strip)
        add_partial(p_partials + D, o_s < D, s_dbeta, is_first_strip)


@_jit
def token_gradient_kernel(
    p_dy, p_t, p_dv, p_vectors, p_gamma, p_w1, p_dt, p_tokens, p_partials,
    row_begin, row_end, H, W, R, tiles_y, tiles_x, tiles, pixels, is_first_strip, eps,
    C: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dt, the norm's statistics, and this program's partial sums of dgamma, dbeta and dbias2. Grid: programs that share
    the tiles.

    p_partials None or (programs, 3, C)
    """
    o_c = tl.arange(0, BLOCK_C)
    s_dgamma, s_dbeta, s_dbias2 = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)

    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        tile = tile_of(index, row_begin, row_end, H, W, tiles_y, tiles_x, TILE_H, TILE_W)
        o_p, m_p = pixels_of(tile, H, W), mask_of(tile)
        o_t = o_p * C

        # dz = du w1, the product over D.
        b_dz = tl.zeros((TILE_H * TILE_W, BLOCK_C), ACC)
        for d in range(0, D, BLOCK_D):
            o_d = d + tl.arange(0, BLOCK_D)
            # [P, BLOCK_D]
            b_du = stencil(p_dv, p_vectors, tile, o_d, H, W, R, D, PAD_D, FLIP=True, ACC=ACC)
            b_w = load_weight(p_w1, o_d, o_c, stride_row=C, stride_col=1, N_ROW=D, N_COL=C)  # [BLOCK_D, BLOCK_C]
            b_dz = add_dot(b_du.to(p_w1.dtype.element_ty), b_w, b_dz, PREC, ACC)

        # Past the norm over C: x = (t - mean) rstd, z = x gamma + beta.
        b_dt = b_dz
        if NORM:
            b_mean, b_rstd = token_statistics(p_t, o_t, m_p, eps, C, BLOCK_C, NORM, ACC)
            tl.store(p_tokens + o_p, b_mean, mask=m_p)
            tl.store(p_tokens + pixels.to(tl.int64) + o_p, b_rstd, mask=m_p)
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


@triton.jit
def walk(
    p_tile_dv, p_vectors, b_u, s_dconv, taps, o_d, W, R,
    D: tl.constexpr, PAD_D: tl.constexpr, INNER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """du [P, BLOCK_D] and the sums of dconv from one walk over the taps of dv: dconv[k] = sum over pixels q of
    u[q] dv[q - k]. INNER: see ``tap``"""
    b_du = tl.zeros(b_u.shape, ACC)
    WHOLE: tl.constexpr = o_d.shape[0] <= D

    # A tuple cannot be indexed by a number that is known at run time only, so every turn moves the sums three places
    # on: in turn y row y's are the first, and after three each is where it was.
    for y in range(3):
        b_left = tap(p_tile_dv, taps, o_d, 8 - 3 * y, W, R, D, INNER, WHOLE, ACC)
        b_middle = tap(p_tile_dv, taps, o_d, 7 - 3 * y, W, R, D, INNER, WHOLE, ACC)
        b_right = tap(p_tile_dv, taps, o_d, 6 - 3 * y, W, R, D, INNER, WHOLE, ACC)
        b_du += b_left * load_hidden(p_vectors, 3 * y, o_d, PAD_D)
        b_du += b_middle * load_hidden(p_vectors, 3 * y + 1, o_d, PAD_D)
        b_du += b_right * load_hidden(p_vectors, 3 * y + 2, o_d, PAD_D)
        s0, s1, s2, s3, s4, s5, s6, s7, s8 = s_dconv
        s_dconv = (s3, s4, s5, s6, s7, s8, s0 + b_u * b_left, s1 + b_u * b_middle, s2 + b_u * b_right)

    return b_du, s_dconv


@_jit
def product_gradient_kernel(
    p_dy, p_t, p_u, p_dv, p_a, p_gamma, p_beta, p_vectors, p_tokens, p_partials,
    row_begin, row_end, H, W, R, tiles_y, tiles_x, tiles, pixels, is_first_strip,
    C: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, NORM: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial sums of dw1, dw2, dconv, dbias_conv and dbias1. Grid: blocks of BLOCK_D channels, programs.

    p_partials (programs, 2 D C + 11 D): dw1 (D, C), dw2 (C, D), dconv (D, 9), dbias_conv, dbias1
    Sums of the convolution stay [P, BLOCK_D] until the end: nothing is reduced across threads inside the loop.
    """
    # The last block begins early where it would not be full: channels that it shares with the one before are summed in
    # both, and stored once. So no load of an inner tile asks whether a channel exists.
    first = tl.program_id(0) * BLOCK_D
    o_d, o_c = tl.minimum(first, max(D - BLOCK_D, 0)) + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    b_zero = tl.zeros((TILE_H * TILE_W, BLOCK_D), ACC)
    s_dw1, s_dw2 = tl.zeros((BLOCK_D, BLOCK_C), ACC), tl.zeros((BLOCK_D, BLOCK_C), ACC)
    s_dbias1, s_dbias_conv = b_zero, b_zero
    s_dconv = (b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero)  # one a tap

    # Tiles are small here: dividing to find each would be a sixth of all instructions.
    place, step = place_of(tl.program_id(1), tiles_y, tiles_x), place_of(tl.num_programs(1), tiles_y, tiles_x)
    for _ in range(tl.program_id(1), tiles, tl.num_programs(1)):
        tile = tile_at(place, row_begin, row_end, H, W, TILE_H, TILE_W)
        o_p, m_p = pixels_of(tile, H, W), mask_of(tile)
        p_tile_u, p_tile_a = hidden_of(p_u, tile, o_d, H, R, W, D), hidden_of(p_a, tile, o_d, H, R, W, D)
        p_tile_dv, taps = hidden_of(p_dv, tile, o_d, H, R, W, D), taps_of(tile, H, W, R)
        m_u, m_t = m_p[:, None] & (o_d < D)[None, :], m_p[:, None] & (o_c < C)[None, :]
        o_t = (o_p * C)[:, None] + o_c[None, :]

        # du, and the sums of the convolution.
        if is_inner(tile):
            b_u = tl.load(p_tile_u).to(ACC)  # [P, BLOCK_D]
            b_du, s_dconv = walk(p_tile_dv, p_vectors, b_u, s_dconv, taps, o_d, W, R, D, PAD_D, True, ACC)
            s_dbias_conv += tl.load(p_tile_dv).to(ACC)
        else:
            b_u = tl.load(p_tile_u, mask=m_u, other=0.0).to(ACC)
            b_du, s_dconv = walk(p_tile_dv, p_vectors, b_u, s_dconv, taps, o_d, W, R, D, PAD_D, False, ACC)
            s_dbias_conv += tl.load(p_tile_dv, mask=m_u, other=0.0).to(ACC)
        s_dbias1 += b_du

        # Both products: dw2 = dy^T a; dw1 = du^T z with z = x gamma + beta, of x here, the rest at the end. Beyond C an
        # inner tile's loads give the next pixel's channels, which end in columns that nobody stores.
        if is_inner(tile):
            b_a, b_dy, b_x = tl.load(p_tile_a), tl.load(p_dy + o_t), tl.load(p_t + o_t)  # [P, BLOCK_D], [P, BLOCK_C]
        else:
            b_a, b_dy = tl.load(p_tile_a, mask=m_u, other=0.0), tl.load(p_dy + o_t, mask=m_t, other=0.0)
            b_x = tl.load(p_t + o_t, mask=m_t, other=0.0)
        s_dw2 = add_dot(tl.trans(b_a), b_dy.to(p_a.dtype.element_ty), s_dw2, PREC, ACC)

        b_x = b_x.to(ACC)
        if NORM:
            b_mean, b_rstd = load_statistics(p_tokens, o_p, m_p, pixels, ACC)
            b_x = (b_x - b_mean[:, None]) * b_rstd[:, None]
        b_du = tl.trans(b_du.to(p_a.dtype.element_ty))  # [BLOCK_D, P], 0 outside
        s_dw1 = add_dot(b_du, b_x.to(p_a.dtype.element_ty), s_dw1, PREC, ACC)
        place = moved(place, step, tiles_y, tiles_x)

    if NORM:
        s_dw1 *= load_scale(p_gamma, o_c, C, ACC)[None, :]
        s_dw1 += tl.sum(s_dbias1, 0)[:, None] * load_vector(p_beta, o_c, C, 0.0, ACC)[None, :]
    p_partials += tl.program_id(1).to(tl.int64) * (2 * D * C + 11 * D)
    m_d = (o_d >= first) & (o_d < D)
    m_dc = m_d[:, None] & (o_c < C)[None, :]
    add_partial(p_partials + o_d[:, None] * C + o_c[None, :], m_dc, s_dw1, is_first_strip)
    add_partial(p_partials + D * C + o_d[:, None] + o_c[None, :] * D, m_dc, s_dw2, is_first_strip)
    p_partials += 2 * D * C
    for k in tl.static_range(9):
        add_partial(p_partials + o_d * 9 + k, m_d, tl.sum(s_dconv[k], 0), is_first_strip)
    add_partial(p_partials + 9 * D + o_d, m_d, tl.sum(s_dbias_conv, 0), is_first_strip)
    add_partial(p_partials + 10 * D + o_d, m_d, tl.sum(s_dbias1, 0), is_first_strip)


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
