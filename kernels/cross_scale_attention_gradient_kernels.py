"""Gradients of windowed cross-scale attention where windows fit into one tile and have no halo, and of its bias.

Names and shared arguments: :mod:`cross_scale_attention_kernels`; kernels for other windows:
:mod:`cross_scale_attention_split_kernels`.
"""

from __future__ import annotations

import triton.language as tl

from msformer_fast.kernels.cross_scale_attention_kernels import (
    LOG2E,
    NO_KEY,
    NO_QUERY,
    _jit,
    addresses,
    code_of,
    fixed_code,
    load_bias,
    load_lse,
    load_tile,
    of_batch,
    padded_with,
    pairs_of,
    place_in_map,
    place_in_window,
    scores,
    store_pad,
    store_tile,
    sum_of,
    vectors,
    window_of,
)


@_jit
def expand_bias_kernel(
    p_bias, p_tiles, bias_0, bias_h, bias_ay, bias_ax, bias_cy, bias_cx,
    WX: tl.constexpr, KX: tl.constexpr, SQ: tl.constexpr, SK: tl.constexpr, N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Biases of the tiles (heads, BLOCK_M, BLOCK_N) of N windows, as scores take them: wide accesses, no gather, and no
    registers that hold them from window to window. Grid: heads.
    """
    head = tl.program_id(0)
    a_y, a_x, slot, m_a = place_in_window(tl.arange(0, BLOCK_M), SQ, WX, N)
    c_y, c_x, key_slot, m_c = place_in_window(tl.arange(0, BLOCK_N), SK, KX, N)
    b_bias = load_bias(
        p_bias, head, a_y, a_x, c_y, c_x, pairs_of(slot, m_a, key_slot, m_c, N), bias_0, bias_h, bias_ay, bias_ax,
        bias_cy, bias_cx, p_tiles.dtype.element_ty,
    )  # fmt: skip
    store_tile(p_tiles, head, 0, 0, b_bias, 1, 1, BLOCK_M, BLOCK_N)


@_jit
def fused_gradient_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_lse, p_g, p_dq, p_dk, p_dv, p_dbias, p_dpad, q_b, q_y, q_x, q_h, q_d,
    k_b, k_y, k_x, k_h, k_d, v_b, v_y, v_x, v_h, v_d, g_b, g_y, g_x, g_h, g_d, dq_b, dq_y, dq_x, dq_h, dq_d, dk_b, dk_y,
    dk_x, dk_h, dk_d, dv_b, dv_y, dv_x, dv_h, dv_d, size_qy, cycle_qy, shift_qy, seam_qy, size_qx, cycle_qx, shift_qx,
    seam_qx, size_ky, cycle_ky, shift_ky, seam_ky, size_kx, cycle_kx, shift_kx, seam_kx, ny, nx, windows, heads, chunk,
    groups, scale, scale_rest, seam, seam_rest,
    D: tl.constexpr, BLOCK_D: tl.constexpr, WY: tl.constexpr, WX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    BIAS: tl.constexpr, PAD: tl.constexpr, SOFT: tl.constexpr, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N:
    tl.constexpr, VEC: tl.constexpr, GVEC: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """All gradients of groups of N windows without a halo, each one tile, from one read; a chunk of groups in turn.

    p_bias (heads, BLOCK_M, BLOCK_N): see expand_bias_kernel. Grid: heads * chunks.
    """
    SQ: tl.constexpr = WY * WX
    SK: tl.constexpr = KY * KX
    tl.static_assert(N * SQ <= BLOCK_M and N * SK <= BLOCK_N)
    head, o_chunk = tl.program_id(0) % heads, tl.program_id(0) // heads
    factor, b_seam = sum_of(scale, scale_rest, ACC), sum_of(seam, seam_rest, ACC) * LOG2E
    a_y, a_x, slot, m_a = place_in_window(tl.arange(0, BLOCK_M), SQ, WX, N)
    c_y, c_x, key_slot, m_c = place_in_window(tl.arange(0, BLOCK_N), SK, KX, N)
    if BIAS:
        b_db = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    if PAD:
        b_pad_k, b_pad_v = tl.zeros((BLOCK_D,), ACC), tl.zeros((BLOCK_D,), ACC)
    for step in range(0, tl.minimum(chunk, groups - o_chunk * chunk) if BIAS or PAD else 1):
        first = (o_chunk * chunk + step) * N
        key_b, j_y, j_x = window_of(first + key_slot, ny, nx)
        k_oy, m_ky, t_ky = place_in_map(j_y * KY + c_y, size_ky, cycle_ky, shift_ky, seam_ky)
        k_ox, m_kx, t_kx = place_in_map(j_x * KX + c_x, size_kx, cycle_kx, shift_kx, seam_kx)
        m_live = of_batch(m_c, first + key_slot, windows, N)
        m_k = m_live & m_ky & m_kx
        key_code = fixed_code(code_of(key_slot, t_ky, t_kx, m_live if PAD else m_k, NO_KEY), BLOCK_D)
        m_kd = vectors(m_k, D, BLOCK_D)
        o_k = addresses(p_k, key_b, head, k_oy, k_ox, k_b, k_y, k_x, k_h, k_d, BLOCK_D, VEC)
        o_v = addresses(p_v, key_b, head, k_oy, k_ox, v_b, v_y, v_x, v_h, v_d, BLOCK_D, VEC)
        b_k = padded_with(tl.load(o_k, mask=m_kd, other=0.0), m_k, p_pad_k, head, D, BLOCK_D, PAD)
        b_v = padded_with(tl.load(o_v, mask=m_kd, other=0.0), m_k, p_pad_v, head, D, BLOCK_D, PAD)
        b, i_y, i_x = window_of(first + slot, ny, nx)
        o_y, m_y, t_y = place_in_map(i_y * WY + a_y, size_qy, cycle_qy, shift_qy, seam_qy)
        o_x, m_x, t_x = place_in_map(i_x * WX + a_x, size_qx, cycle_qx, shift_qx, seam_qx)
        m_q = of_batch(m_a, first + slot, windows, N) & m_y & m_x
        code = code_of(slot, t_y, t_x, m_q, NO_QUERY)
        m_d = vectors(m_q, D, BLOCK_D)
        o_q = addresses(p_q, b, head, o_y, o_x, q_b, q_y, q_x, q_h, q_d, BLOCK_D, VEC)
        o_g = addresses(p_g, b, head, o_y, o_x, g_b, g_y, g_x, g_h, g_d, BLOCK_D, GVEC)
        b_q = tl.load(o_q, mask=m_d, other=0.0)
        b_g = tl.load(o_g, mask=m_d, other=0.0)
        o_lse = ((b.to(tl.int64) * heads + head) * size_qy + o_y) * size_qx + o_x
        b_bias = factor
        if BIAS:
            b_bias = load_tile(p_bias, head, BLOCK_M, BLOCK_N)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PREC, out_dtype=ACC)
        b_s = scores(b_s, b_bias, code, key_code, factor * LOG2E, b_seam, BIAS, SOFT)
        b_p = tl.exp2(b_s - load_lse(p_lse, o_lse, m_q)[:, None])
        b_l = tl.sum(b_p, 1)
        b_p = b_p * (1.0 / tl.where(b_l == 0.0, 1.0, b_l))[:, None]
        # Each gradient is stored before the next product: there are no registers for two.
        b_dv = tl.dot(tl.trans(b_p.to(b_g.dtype)), b_g, input_precision=PREC, out_dtype=ACC)
        o_dv = addresses(p_dv, key_b, head, k_oy, k_ox, dv_b, dv_y, dv_x, dv_h, dv_d, BLOCK_D, VEC)
        tl.store(o_dv, b_dv.to(p_dv.dtype.element_ty), mask=m_kd)
        if PAD:
            b_pad_v += tl.sum(tl.where(m_k[:, None], 0.0, b_dv), 0)
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PREC, out_dtype=ACC)
        b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, 1)[:, None])  # sum(p * dp) = sum(g * out) without reading out
        if BIAS:
            b_db += b_ds
        b_ds = b_ds.to(b_q.dtype)
        b_dk = tl.dot(tl.trans(b_ds), b_q, input_precision=PREC, out_dtype=ACC) * factor
        o_dk = addresses(p_dk, key_b, head, k_oy, k_ox, dk_b, dk_y, dk_x, dk_h, dk_d, BLOCK_D, VEC)
        tl.store(o_dk, b_dk.to(p_dk.dtype.element_ty), mask=m_kd)
        if PAD:
            b_pad_k += tl.sum(tl.where(m_k[:, None], 0.0, b_dk), 0)
        b_dq = tl.dot(b_ds, b_k, input_precision=PREC, out_dtype=ACC) * factor
        o_dq = addresses(p_dq, b, head, o_y, o_x, dq_b, dq_y, dq_x, dq_h, dq_d, BLOCK_D, VEC)
        tl.store(o_dq, b_dq.to(p_dq.dtype.element_ty), mask=m_d)
    if BIAS:
        store_tile(p_dbias, o_chunk * heads + head, 0, 0, b_db, 1, 1, BLOCK_M, BLOCK_N)
    if PAD:
        store_pad(p_dpad, o_chunk, 0, b_pad_k, head, heads, D, BLOCK_D)
        store_pad(p_dpad, o_chunk, 1, b_pad_v, head, heads, D, BLOCK_D)


@_jit
def table_gradient_kernel(
    p_tiles, p_dtable, tile_rows, tile_columns, heads, rows,
    WY: tl.constexpr, WX: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, QY:
    tl.constexpr, QX: tl.constexpr, N: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each entry of a table (rows, heads) gathers its pairs in the gradient of the scores of N windows' tiles.

    p_tiles (heads, tile_rows, tile_columns)    RY, RX: keys of a window, halo included    P / Q: keys / queries of an
    axis. Grid: blocks of entries, heads.
    """
    SQ: tl.constexpr = WY * WX
    OFFSETS: tl.constexpr = (WX - 1) * PX + (RX - 1) * QX + 1
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    p_head = p_tiles + head.to(tl.int64) * tile_rows * tile_columns
    b_sum = tl.zeros((BLOCK,), p_tiles.dtype.element_ty)
    for start in range(0, N * SQ, BLOCK_A):
        o_m = start + tl.arange(0, BLOCK_A)
        o_a = o_m % SQ
        # Q times the row and column of the key that makes the pair, if there is one.
        c_y = (o_a // WX * PY + (RY - 1) * QY)[None, :] - (o // OFFSETS)[:, None]
        c_x = (o_a % WX * PX + (RX - 1) * QX)[None, :] - (o % OFFSETS)[:, None]
        m_y = (c_y >= 0) & (c_y % QY == 0) & (c_y < RY * QY)
        m_x = (c_x >= 0) & (c_x % QX == 0) & (c_x < RX * QX)
        m_pair = m_y & m_x & (o_m < N * SQ)[None, :] & (o < rows)[:, None]
        o_pair = (o_m * tile_columns + o_m // SQ * (RY * RX))[None, :] + c_y // QY * RX + c_x // QX
        b_sum += tl.sum(tl.load(p_head + o_pair, mask=m_pair, other=0.0), 1)
    tl.store(p_dtable + o * heads + head, b_sum.to(p_dtable.dtype.element_ty), mask=o < rows)
