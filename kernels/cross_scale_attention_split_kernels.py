"""Gradients of windowed cross-scale attention where windows take several tiles or have a halo: queries, bias, keys.

Names and shared arguments: :mod:`cross_scale_attention_kernels`. Between them:
    p_delta (2, B, heads, H, W)  sum(g * out) of every query, and 1 / the sum of its probabilities
    size  of one of these
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
    of_batch,
    padded_with,
    pairs_of,
    place_in_map,
    place_in_window,
    scores,
    store_pad,
    store_tile,
    sum_of,
    turns,
    vectors,
    window_of,
)


@_jit
def query_gradient_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_out, p_lse, p_g, p_dq, p_delta, p_dbias, q_b, q_y, q_x, q_h, q_d, k_b,
    k_y, k_x, k_h, k_d, v_b, v_y, v_x, v_h, v_d, g_b, g_y, g_x, g_h, g_d, dq_b, dq_y, dq_x, dq_h, dq_d, bias_0, bias_h,
    bias_ay, bias_ax, bias_cy, bias_cx, size_qy, cycle_qy, shift_qy, seam_qy, size_qx, cycle_qx, shift_qx, seam_qx,
    size_ky, cycle_ky, shift_ky, seam_ky, size_kx, cycle_kx, shift_kx, seam_kx, ny, nx, windows, heads, chunk, groups,
    scale, scale_rest, seam, seam_rest, size,
    D: tl.constexpr, BLOCK_D: tl.constexpr, WY: tl.constexpr, WX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, HY:
    tl.constexpr, HX: tl.constexpr, BIAS: tl.constexpr, PAD: tl.constexpr, SOFT: tl.constexpr, N: tl.constexpr, BLOCK_M:
    tl.constexpr, BLOCK_N: tl.constexpr, DBIAS: tl.constexpr, VEC: tl.constexpr, GVEC: tl.constexpr, ACC: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """dq of a tile of queries, from all their keys, for a chunk of groups one after the other.

    p_delta for the kernels after it; DBIAS (keys are one tile): the sum of the scores' gradients.
    Grid: heads * tiles of queries * chunks.
    """
    SQ: tl.constexpr = WY * WX
    RX: tl.constexpr = KX + 2 * HX
    SK: tl.constexpr = (KY + 2 * HY) * RX
    TILES: tl.constexpr = (N * SQ + BLOCK_M - 1) // BLOCK_M
    KEY_TILES: tl.constexpr = (N * SK + BLOCK_N - 1) // BLOCK_N
    HOLD: tl.constexpr = BIAS and KEY_TILES == 1
    tl.static_assert(KEY_TILES == 1 or not DBIAS)
    head, o_tile = tl.program_id(0) % heads, tl.program_id(0) // heads
    o_chunk = o_tile // TILES
    o_m = o_tile % TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    a_y, a_x, slot, m_a = place_in_window(o_m, SQ, WX, N)
    factor, b_seam = sum_of(scale, scale_rest, ACC), sum_of(seam, seam_rest, ACC) * LOG2E
    b_bias = factor
    if HOLD:
        c_y, c_x, key_slot, m_c = place_in_window(tl.arange(0, BLOCK_N), SK, RX, N)
        b_bias = load_bias(
            p_bias, head, a_y, a_x, c_y, c_x, pairs_of(slot, m_a, key_slot, m_c, N), bias_0, bias_h, bias_ay, bias_ax,
            bias_cy, bias_cx, ACC,
        )  # fmt: skip
    if DBIAS:
        b_db = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in range(0, tl.minimum(chunk, groups - o_chunk * chunk) if HOLD else 1):
        first = (o_chunk * chunk + step) * N
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
        b_lse = load_lse(p_lse, o_lse, m_q)
        b_delta, b_l = tl.zeros((BLOCK_M,), ACC), tl.zeros((BLOCK_M,), ACC)
        if KEY_TILES > 1:
            o_out = ((b.to(tl.int64) * size_qy + o_y) * size_qx + o_x) * heads + head
            p_rows = p_out + (o_out * D)[:, None] + tl.arange(0, BLOCK_D)[None, :]
            b_delta = tl.sum(tl.load(p_rows, mask=m_d, other=0.0).to(ACC) * b_g.to(ACC), 1)
        b_dq = tl.zeros((BLOCK_M, BLOCK_D), ACC)
        for tile in range(0, turns(KEY_TILES, heads)):
            c_y, c_x, key_slot, m_c = place_in_window(tile * BLOCK_N + tl.arange(0, BLOCK_N), SK, RX, N)
            key_b, j_y, j_x = window_of(first + key_slot, ny, nx)
            k_oy, m_ky, t_ky = place_in_map(j_y * KY + c_y - HY, size_ky, cycle_ky, shift_ky, seam_ky)
            k_ox, m_kx, t_kx = place_in_map(j_x * KX + c_x - HX, size_kx, cycle_kx, shift_kx, seam_kx)
            m_live = of_batch(m_c, first + key_slot, windows, N)
            m_k = m_live & m_ky & m_kx
            key_code = fixed_code(code_of(key_slot, t_ky, t_kx, m_live if PAD else m_k, NO_KEY), BLOCK_D)
            m_kd = vectors(m_k, D, BLOCK_D)
            o_k = addresses(p_k, key_b, head, k_oy, k_ox, k_b, k_y, k_x, k_h, k_d, BLOCK_D, VEC)
            o_v = addresses(p_v, key_b, head, k_oy, k_ox, v_b, v_y, v_x, v_h, v_d, BLOCK_D, VEC)
            b_k = padded_with(tl.load(o_k, mask=m_kd, other=0.0), m_k, p_pad_k, head, D, BLOCK_D, PAD)
            b_v = padded_with(tl.load(o_v, mask=m_kd, other=0.0), m_k, p_pad_v, head, D, BLOCK_D, PAD)
            b_here = b_bias
            if BIAS and not HOLD:
                b_here = load_bias(
                    p_bias, head, a_y, a_x, c_y, c_x, pairs_of(slot, m_a, key_slot, m_c, N), bias_0, bias_h, bias_ay,
                    bias_ax, bias_cy, bias_cx, ACC,
                )  # fmt: skip
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PREC, out_dtype=ACC)
            b_s = scores(b_s, b_here, code, key_code, factor * LOG2E, b_seam, BIAS, SOFT)
            b_p = tl.exp2(b_s - b_lse[:, None])
            b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PREC, out_dtype=ACC)
            b_l += tl.sum(b_p, 1)
            if KEY_TILES == 1:
                b_p = b_p * (1.0 / tl.where(b_l == 0.0, 1.0, b_l))[:, None]
                b_delta = tl.sum(b_p * b_dp, 1)  # sum(g * out) without reading out
            b_ds = b_p * (b_dp - b_delta[:, None])
            if DBIAS:
                b_db += b_ds
            b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PREC, out_dtype=ACC)
        b_norm = 1.0 / tl.where(b_l == 0.0, 1.0, b_l)
        if KEY_TILES > 1:
            b_dq = b_dq * b_norm[:, None]
        tl.store(p_delta + o_lse, b_delta, mask=m_q)
        tl.store(p_delta + size + o_lse, b_norm, mask=m_q)
        o_dq = addresses(p_dq, b, head, o_y, o_x, dq_b, dq_y, dq_x, dq_h, dq_d, BLOCK_D, VEC)
        tl.store(o_dq, (b_dq * factor).to(p_dq.dtype.element_ty), mask=m_d)
    if DBIAS:
        store_tile(p_dbias, o_chunk * heads + head, o_tile % TILES, 0, b_db, TILES, 1, BLOCK_M, BLOCK_N)


@_jit
def bias_gradient_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_lse, p_g, p_delta, p_dbias, q_b, q_y, q_x, q_h, q_d, k_b, k_y, k_x, k_h,
    k_d, v_b, v_y, v_x, v_h, v_d, g_b, g_y, g_x, g_h, g_d, bias_0, bias_h, bias_ay, bias_ax, bias_cy, bias_cx, size_qy,
    cycle_qy, shift_qy, seam_qy, size_qx, cycle_qx, shift_qx, seam_qx, size_ky, cycle_ky, shift_ky, seam_ky, size_kx,
    cycle_kx, shift_kx, seam_kx, ny, nx, windows, heads, chunk, groups, scale, scale_rest, seam, seam_rest, size,
    D: tl.constexpr, BLOCK_D: tl.constexpr, WY: tl.constexpr, WX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, HY:
    tl.constexpr, HX: tl.constexpr, PAD: tl.constexpr, SOFT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    VEC: tl.constexpr, GVEC: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The sum of the scores' gradients over a chunk of windows, for one tile of their queries and keys.

    Grid: heads * tiles of keys * tiles of queries * chunks.
    """
    SQ: tl.constexpr = WY * WX
    RX: tl.constexpr = KX + 2 * HX
    SK: tl.constexpr = (KY + 2 * HY) * RX
    TILES: tl.constexpr = (SQ + BLOCK_M - 1) // BLOCK_M
    KEY_TILES: tl.constexpr = (SK + BLOCK_N - 1) // BLOCK_N
    head, o_tile = tl.program_id(0) % heads, tl.program_id(0) // heads
    o_chunk = o_tile // (KEY_TILES * TILES)
    a_y, a_x, _, m_a = place_in_window(
        o_tile // KEY_TILES % TILES * BLOCK_M + tl.arange(0, BLOCK_M), SQ, WX, 1
    )  # fmt: skip
    c_y, c_x, _, m_c = place_in_window(o_tile % KEY_TILES * BLOCK_N + tl.arange(0, BLOCK_N), SK, RX, 1)
    m_pair = m_a[:, None] & m_c[None, :]
    factor, b_seam = sum_of(scale, scale_rest, ACC) * LOG2E, sum_of(seam, seam_rest, ACC) * LOG2E
    b_bias = load_bias(
        p_bias, head, a_y, a_x, c_y, c_x, m_pair, bias_0, bias_h, bias_ay, bias_ax, bias_cy, bias_cx, ACC
    )  # fmt: skip
    b_db = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for window in range(o_chunk * chunk, tl.minimum(o_chunk * chunk + chunk, groups)):
        b, i_y, i_x = window_of(window, ny, nx)
        o_y, m_y, t_y = place_in_map(i_y * WY + a_y, size_qy, cycle_qy, shift_qy, seam_qy)
        o_x, m_x, t_x = place_in_map(i_x * WX + a_x, size_qx, cycle_qx, shift_qx, seam_qx)
        m_q = m_a & m_y & m_x
        code = code_of(0, t_y, t_x, m_q, NO_QUERY)
        k_oy, m_ky, t_ky = place_in_map(i_y * KY + c_y - HY, size_ky, cycle_ky, shift_ky, seam_ky)
        k_ox, m_kx, t_kx = place_in_map(i_x * KX + c_x - HX, size_kx, cycle_kx, shift_kx, seam_kx)
        m_k = m_c & m_ky & m_kx
        key_code = fixed_code(code_of(0, t_ky, t_kx, m_c if PAD else m_k, NO_KEY), BLOCK_D)
        m_d, m_kd = vectors(m_q, D, BLOCK_D), vectors(m_k, D, BLOCK_D)
        o_q = addresses(p_q, b, head, o_y, o_x, q_b, q_y, q_x, q_h, q_d, BLOCK_D, VEC)
        o_k = addresses(p_k, b, head, k_oy, k_ox, k_b, k_y, k_x, k_h, k_d, BLOCK_D, VEC)
        b_k = padded_with(tl.load(o_k, mask=m_kd, other=0.0), m_k, p_pad_k, head, D, BLOCK_D, PAD)
        b_q = tl.load(o_q, mask=m_d, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PREC, out_dtype=ACC)
        b_s = scores(b_s, b_bias, code, key_code, factor, b_seam, True, SOFT)
        o_lse = ((b.to(tl.int64) * heads + head) * size_qy + o_y) * size_qx + o_x
        b_p = tl.exp2(b_s - load_lse(p_lse, o_lse, m_q)[:, None])
        b_p = b_p * tl.load(p_delta + size + o_lse, mask=m_q, other=0.0)[:, None]
        o_g = addresses(p_g, b, head, o_y, o_x, g_b, g_y, g_x, g_h, g_d, BLOCK_D, GVEC)
        o_v = addresses(p_v, b, head, k_oy, k_ox, v_b, v_y, v_x, v_h, v_d, BLOCK_D, VEC)
        b_v = padded_with(tl.load(o_v, mask=m_kd, other=0.0), m_k, p_pad_v, head, D, BLOCK_D, PAD)
        b_dp = tl.dot(
            tl.load(o_g, mask=m_d, other=0.0), tl.trans(b_v), input_precision=PREC, out_dtype=ACC
        )  # fmt: skip
        b_db += b_p * (b_dp - tl.load(p_delta + o_lse, mask=m_q, other=0.0)[:, None])
    store_tile(
        p_dbias, o_chunk * heads + head, o_tile // KEY_TILES % TILES, o_tile % KEY_TILES, b_db, TILES, KEY_TILES,
        BLOCK_M, BLOCK_N,
    )  # fmt: skip


@_jit
def key_gradient_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_lse, p_g, p_dk, p_dv, p_delta, p_dpad, q_b, q_y, q_x, q_h, q_d, k_b, k_y,
    k_x, k_h, k_d, v_b, v_y, v_x, v_h, v_d, g_b, g_y, g_x, g_h, g_d, dk_b, dk_y, dk_x, dk_h, dk_d, dv_b, dv_y, dv_x,
    dv_h, dv_d, bias_0, bias_h, bias_ay, bias_ax, bias_cy, bias_cx, size_qy, cycle_qy, shift_qy, seam_qy, size_qx,
    cycle_qx, shift_qx, seam_qx, size_ky, cycle_ky, shift_ky, seam_ky, size_kx, cycle_kx, shift_kx, seam_kx, ny, nx,
    windows, heads, scale, scale_rest, seam, seam_rest, size,
    D: tl.constexpr, BLOCK_D: tl.constexpr, WY: tl.constexpr, WX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, HY:
    tl.constexpr, HX: tl.constexpr, BIAS: tl.constexpr, PAD: tl.constexpr, SOFT: tl.constexpr, N: tl.constexpr, BLOCK_M:
    tl.constexpr, BLOCK_N: tl.constexpr, VEC: tl.constexpr, GVEC: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dk, dv of a tile of a key window without its halo, from all query windows that see it: NEAR_Y, NEAR_X away.

    PAD: keys of a rim of windows outside the grid are seen too; the sum of what falls outside the map goes to p_dpad.
    windows: of the batch, the rim included. Grid: heads * tiles of keys * ceil(windows / N).
    """
    SQ: tl.constexpr = WY * WX
    S: tl.constexpr = KY * KX
    NEAR_Y: tl.constexpr = (HY + KY - 1) // KY
    NEAR_X: tl.constexpr = (HX + KX - 1) // KX
    RIM_Y: tl.constexpr = NEAR_Y if PAD else 0
    RIM_X: tl.constexpr = NEAR_X if PAD else 0
    TILES: tl.constexpr = (N * S + BLOCK_N - 1) // BLOCK_N
    QUERY_TILES: tl.constexpr = (N * SQ + BLOCK_M - 1) // BLOCK_M
    WIDE: tl.constexpr = 2 * NEAR_X + 1
    head, o_tile = tl.program_id(0) % heads, tl.program_id(0) // heads
    first = o_tile // TILES * N
    c_y, c_x, key_slot, m_c = place_in_window(o_tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N), S, KX, N)
    key_b, j_y, j_x = window_of(first + key_slot, ny + 2 * RIM_Y, nx + 2 * RIM_X)
    j_y, j_x = j_y - RIM_Y, j_x - RIM_X
    k_oy, m_ky, t_ky = place_in_map(j_y * KY + c_y, size_ky, cycle_ky, shift_ky, seam_ky)
    k_ox, m_kx, t_kx = place_in_map(j_x * KX + c_x, size_kx, cycle_kx, shift_kx, seam_kx)
    m_live = of_batch(m_c, first + key_slot, windows, N)
    m_k = m_live & m_ky & m_kx
    m_kd = vectors(m_k, D, BLOCK_D)
    o_k = addresses(p_k, key_b, head, k_oy, k_ox, k_b, k_y, k_x, k_h, k_d, BLOCK_D, VEC)
    o_v = addresses(p_v, key_b, head, k_oy, k_ox, v_b, v_y, v_x, v_h, v_d, BLOCK_D, VEC)
    b_k = padded_with(tl.load(o_k, mask=m_kd, other=0.0), m_k, p_pad_k, head, D, BLOCK_D, PAD)
    b_v = padded_with(tl.load(o_v, mask=m_kd, other=0.0), m_k, p_pad_v, head, D, BLOCK_D, PAD)
    factor, b_seam = sum_of(scale, scale_rest, ACC), sum_of(seam, seam_rest, ACC) * LOG2E
    b_dk, b_dv = tl.zeros((BLOCK_N, BLOCK_D), ACC), tl.zeros((BLOCK_N, BLOCK_D), ACC)
    for step in range(0, turns((2 * NEAR_Y + 1) * WIDE * QUERY_TILES, heads)):
        near = step // QUERY_TILES
        near_y, near_x = near // WIDE - NEAR_Y, near % WIDE - NEAR_X  # from the keys' window to the queries'
        a_y, a_x, slot, m_a = place_in_window(step % QUERY_TILES * BLOCK_M + tl.arange(0, BLOCK_M), SQ, WX, N)
        b, i_y, i_x = window_of(first + slot, ny + 2 * RIM_Y, nx + 2 * RIM_X)
        i_y, i_x = i_y - RIM_Y + near_y, i_x - RIM_X + near_x
        o_y, m_y, t_y = place_in_map(i_y * WY + a_y, size_qy, cycle_qy, shift_qy, seam_qy)
        o_x, m_x, t_x = place_in_map(i_x * WX + a_x, size_qx, cycle_qx, shift_qx, seam_qx)
        m_q = of_batch(m_a, first + slot, windows, N) & m_y & m_x  # no row of the map lies in a window of the rim
        code = code_of(slot, t_y, t_x, m_q, NO_QUERY)
        # Where the keys lie in the queries' window and its halo.
        r_y, r_x = c_y - near_y * KY + HY, c_x - near_x * KX + HX
        m_near = (m_live if PAD else m_k) & (r_y >= 0) & (r_y < KY + 2 * HY) & (r_x >= 0) & (r_x < KX + 2 * HX)
        key_code = fixed_code(code_of(key_slot, t_ky, t_kx, m_near, NO_KEY), BLOCK_D)
        m_d = vectors(m_q, D, BLOCK_D)
        o_q = addresses(p_q, b, head, o_y, o_x, q_b, q_y, q_x, q_h, q_d, BLOCK_D, VEC)
        o_g = addresses(p_g, b, head, o_y, o_x, g_b, g_y, g_x, g_h, g_d, BLOCK_D, GVEC)
        b_q = tl.load(o_q, mask=m_d, other=0.0)
        b_bias = factor
        if BIAS:
            m_pair = pairs_of(slot, m_q, key_slot, m_near, N)
            b_bias = load_bias(
                p_bias, head, a_y, a_x, r_y, r_x, m_pair, bias_0, bias_h, bias_ay, bias_ax, bias_cy, bias_cx, ACC
            )  # fmt: skip
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PREC, out_dtype=ACC)
        b_s = scores(b_s, b_bias, code, key_code, factor * LOG2E, b_seam, BIAS, SOFT)
        o_lse = ((b.to(tl.int64) * heads + head) * size_qy + o_y) * size_qx + o_x
        b_p = tl.exp2(b_s - load_lse(p_lse, o_lse, m_q)[:, None])
        b_p = b_p * tl.load(p_delta + size + o_lse, mask=m_q, other=0.0)[:, None]
        b_g = tl.load(o_g, mask=m_d, other=0.0)
        b_dv = tl.dot(tl.trans(b_p.to(b_g.dtype)), b_g, b_dv, input_precision=PREC, out_dtype=ACC)
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PREC, out_dtype=ACC)
        b_ds = b_p * (b_dp - tl.load(p_delta + o_lse, mask=m_q, other=0.0)[:, None])
        b_dk = tl.dot(tl.trans(b_ds.to(b_q.dtype)), b_q, b_dk, input_precision=PREC, out_dtype=ACC)
    b_dk = b_dk * factor
    o_dk = addresses(p_dk, key_b, head, k_oy, k_ox, dk_b, dk_y, dk_x, dk_h, dk_d, BLOCK_D, VEC)
    o_dv = addresses(p_dv, key_b, head, k_oy, k_ox, dv_b, dv_y, dv_x, dv_h, dv_d, BLOCK_D, VEC)
    tl.store(o_dk, b_dk.to(p_dk.dtype.element_ty), mask=m_kd)
    tl.store(o_dv, b_dv.to(p_dv.dtype.element_ty), mask=m_kd)
    if PAD:
        store_pad(p_dpad, o_tile, 0, tl.sum(tl.where(m_k[:, None], 0.0, b_dk), 0), head, heads, D, BLOCK_D)
        store_pad(p_dpad, o_tile, 1, tl.sum(tl.where(m_k[:, None], 0.0, b_dv), 0), head, heads, D, BLOCK_D)
