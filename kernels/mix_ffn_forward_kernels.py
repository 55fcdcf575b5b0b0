"""Forward kernels of mix_ffn: maths, shapes and shared arguments stand in ``mix_ffn_kernels``.

Two passes: t -> u, which goes to memory once, and (u, t) -> y. The second can gather mean and variance of every channel
of y on the way, for a batch norm that follows; ``batch_statistics`` merges what its programs found.
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.batch_statistics import add_block, store_moments
from msformer_fast.kernels.mix_ffn_kernels import (
    SIZES,
    inner_norm,
    matrix,
    normal_cdf,
    normed_tokens,
    rows_of,
    stencil,
    tile_of,
    token_statistics,
    vector,
)

_jit = triton.jit(do_not_specialize=SIZES)


@_jit
def expand_kernel(
    p_t,
    p_gamma1,
    p_beta1,
    p_w1,
    p_bias1,
    p_u,
    row_begin,
    row_end,
    H,
    W,
    R,
    tiles_y,
    tiles_x,
    c_end,
    eps,
    C: tl.constexpr,
    D: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    NORM: tl.constexpr,
    PREC: tl.constexpr,
    ACC: tl.constexpr,
):
    """u: t read once, u written once. Grid: tiles."""
    image, o_y, o_x, m_p = tile_of(tl.program_id(0), row_begin, row_end, W, tiles_y, tiles_x, TH, TW)
    o_t, o_u = ((image * H + o_y) * W + o_x) * C, ((image * R + o_y % R) * W + o_x) * D
    b_mean, b_rstd = token_statistics(p_t, o_t, m_p, eps, C, BC, NORM, ACC)
    if BK >= C:
        o_c = tl.arange(0, BK)
        b_z = normed_tokens(p_t, p_gamma1, p_beta1, o_t, m_p, o_c, b_mean, b_rstd, C, NORM, ACC).to(
            p_u.dtype.element_ty
        )
    for d in range(0, D, BD):
        o_d = d + tl.arange(0, BD)
        b_u = tl.zeros((TH * TW, BD), ACC) + vector(p_bias1, o_d, D, ACC)[None, :]
        if BK >= C:
            b_w = matrix(p_w1, tl.arange(0, BK), o_d, 1, C, C, D)
            b_u = tl.dot(b_z, b_w, b_u, input_precision=PREC, out_dtype=ACC)
        else:
            for c in range(0, c_end, BK):
                o_k = c + tl.arange(0, BK)
                b_k = normed_tokens(p_t, p_gamma1, p_beta1, o_t, m_p, o_k, b_mean, b_rstd, C, NORM, ACC)
                b_w = matrix(p_w1, o_k, o_d, 1, C, C, D)
                b_u = tl.dot(b_k.to(p_u.dtype.element_ty), b_w, b_u, input_precision=PREC, out_dtype=ACC)
        m_u = m_p[:, None] & (o_d < D)[None, :]
        tl.store(p_u + o_u[:, None] + o_d[None, :], b_u.to(p_u.dtype.element_ty), mask=m_u)


@_jit
def contract_kernel(
    p_t,
    p_u,
    p_dw,
    p_bias_dw,
    p_gamma2,
    p_beta2,
    p_w2,
    p_bias2,
    p_y,
    p_inner,
    p_moments,
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
    INNER_NORM: tl.constexpr,
    INNER_SKIP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PREC: tl.constexpr,
    ACC: tl.constexpr,
):
    """y, the inner norm's statistics for the backward, and the moments of y. Grid: programs that share the tiles.

    Two sweeps over the channels of a tile: the first gathers the inner norm's statistics, merging blocks without
    cancellation; the second makes v again, from taps that lie in the caches by then.
    p_moments None or (programs, 4, C): moments of this program's pixels, see ``batch_statistics.merged_moments``. The
    shift is the mean of its first tile: a nearly constant channel far from 0 keeps its digits.
    """
    o_c = tl.arange(0, BC)
    n = tl.zeros((), ACC)
    b_shift, b_mean_y, b_m2_y = tl.zeros((BC,), ACC), tl.zeros((BC,), ACC), tl.zeros((BC,), ACC)
    if p_moments is not None:
        p_old, m_old = p_moments + tl.program_id(0).to(tl.int64) * 4 * C + o_c, o_c < C * (1 - first)
        n += tl.max(tl.load(p_old, mask=m_old, other=0.0), 0)  # the same in all
        b_shift += tl.load(p_old + C, mask=m_old, other=0.0)
        b_mean_y += tl.load(p_old + 2 * C, mask=m_old, other=0.0)
        b_m2_y += tl.load(p_old + 3 * C, mask=m_old, other=0.0)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, o_y, o_x, m_p = tile_of(tile, row_begin, row_end, W, tiles_y, tiles_x, TH, TW)
        o_p = (image * H + o_y) * W + o_x
        b_mean, b_rstd = tl.zeros((TH * TW,), ACC), tl.zeros((TH * TW,), ACC)
        if INNER_NORM:
            for d in range(0, D, BD):
                o_d = d + tl.arange(0, BD)
                b_v = stencil(p_u, p_dw, image, o_y, o_x, m_p, o_d, H, W, R, D, False, INNER_SKIP, ACC)
                b_v += vector(p_bias_dw, o_d, D, ACC)[None, :]
                count = tl.minimum(D - d, BD).to(ACC)
                b_delta = tl.sum(b_v, 1) / count - b_mean
                b_v = tl.where((o_d < D)[None, :], b_v - (b_mean + b_delta)[:, None], 0.0)
                b_rstd += tl.sum(b_v * b_v, 1) + b_delta * b_delta * (count * d / (d + count))
                b_mean += b_delta * (count / (d + count))
            b_rstd = 1.0 / tl.sqrt(b_rstd / D + eps)
            tl.store(p_inner + o_p, b_mean, mask=m_p)
            tl.store(p_inner + pixels.to(tl.int64) + o_p, b_rstd, mask=m_p)
        b_y = tl.zeros((TH * TW, BC), ACC)
        for d in range(0, D, BD):
            o_d = d + tl.arange(0, BD)
            b_v = stencil(p_u, p_dw, image, o_y, o_x, m_p, o_d, H, W, R, D, False, INNER_SKIP, ACC)
            b_v += vector(p_bias_dw, o_d, D, ACC)[None, :]
            _, b_h = inner_norm(b_v, b_mean, b_rstd, p_gamma2, p_beta2, o_d, D, INNER_NORM, ACC)
            b_a = (b_h * normal_cdf(b_h)).to(p_w2.dtype.element_ty)
            b_y = tl.dot(b_a, matrix(p_w2, o_d, o_c, 1, D, D, C), b_y, input_precision=PREC, out_dtype=ACC)
        b_y += vector(p_bias2, o_c, C, ACC)[None, :]
        if RESIDUAL:
            b_y += rows_of(p_t, o_p * C, m_p, o_c, C).to(ACC)
        b_out, m_y = b_y.to(p_y.dtype.element_ty), m_p[:, None] & (o_c < C)[None, :]
        tl.store(p_y + (o_p * C)[:, None] + o_c[None, :], b_out, mask=m_y)
        if p_moments is not None:
            b_out = tl.where(m_y, b_out.to(ACC), 0.0)
            more = tl.sum(m_p.to(ACC), 0)
            b_shift = tl.where(n > 0, b_shift, tl.sum(b_out, 0) / more)
            b_mean_y, b_m2_y = add_block(n, b_shift, b_mean_y, b_m2_y, b_out, m_y, more)
            n += more
    if p_moments is not None:
        store_moments(p_moments, o_c, C, n, b_shift, b_mean_y, b_m2_y, BC, ACC)
