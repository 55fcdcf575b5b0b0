"""Gradients of windowed cross-scale attention: all in one kernel, or those of the queries, then of keys and values.

    dP = g v^T    dS = P (dP - sum of P dP over the keys), where sum(P dP) = sum(g out)
    dq = scale dS k    dk = scale dS^T q    dv = P^T g

A backward recomputes probabilities from the saved lse and divides them by their sum once more: an lse of 45 in float32
leaves them an error of several eps.

Arguments besides those of ``cross_scale_attention_kernels``:
    p_g, p_dq (B, H, W, heads, D)  gradients of the result and of the queries
    p_dk, p_dv (B, Hk, Wk, heads, D)  gradients of keys and values
    p_delta (2, B, heads, H, W)  sum(g * out) of every query, and 1 / the sum of its probabilities
    delta_size  of one half of p_delta    GVEC  elements that an access to g may take
    p_dbias (partials, heads, tiles * BLOCK_M, tiles * BLOCK_N), p_dpad (partials, 2, heads, D)  sums over a program's
        windows
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.cross_scale_attention_tiles import (
    LOG2E,
    head_rows,
    inverse_of,
    load_bias,
    load_keys_and_values,
    load_lse,
    load_queries_and_gradients,
    load_tile,
    out_addresses,
    runtime_count,
    scores,
    store_pad,
    store_tile,
    store_vectors,
    sum_of,
    vector_addresses,
    vector_mask,
)
from msformer_fast.kernels.cross_scale_attention_windows import (
    NO_QUERY,
    SIZES,
    STRIDES,
    axes_of,
    code_of,
    key_code_of,
    masked,
    minus,
    of_axes,
    place_in_map,
    place_in_window,
    place_near,
    place_of,
    plus,
    rows_and_columns,
    window_of,
)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def fused_gradient_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_lse, p_g, p_dq, p_dk, p_dv, p_dbias, p_dpad,
    stride_qb, stride_qy, stride_qx, stride_qh, stride_qd, stride_kb, stride_ky, stride_kx, stride_kh, stride_kd,
    stride_vb, stride_vy, stride_vx, stride_vh, stride_vd, stride_gb, stride_gy, stride_gx, stride_gh, stride_gd,
    stride_dqb, stride_dqy, stride_dqx, stride_dqh, stride_dqd,
    stride_dkb, stride_dky, stride_dkx, stride_dkh, stride_dkd,
    stride_dvb, stride_dvy, stride_dvx, stride_dvh, stride_dvd,
    size_qz, cycle_qz, shift_qz, seam_qz, size_qy, cycle_qy, shift_qy, seam_qy,
    size_qx, cycle_qx, shift_qx, seam_qx,
    size_kz, cycle_kz, shift_kz, seam_kz, size_ky, cycle_ky, shift_ky, seam_ky,
    size_kx, cycle_kx, shift_kx, seam_kx,
    nz, ny, nx, windows, heads, chunk, groups,
    scale, scale_rest, seam, seam_rest,
    D: tl.constexpr, BLOCK_D: tl.constexpr, AXES: tl.constexpr,
    WINDOW_Z: tl.constexpr, WINDOW_Y: tl.constexpr, WINDOW_X: tl.constexpr,
    CORE_Z: tl.constexpr, CORE_Y: tl.constexpr, CORE_X: tl.constexpr,
    BIAS: tl.constexpr, PAD: tl.constexpr, SOFT: tl.constexpr,
    N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    VEC: tl.constexpr, GVEC: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """All gradients of groups of N windows without a halo, each one tile, from one read; a chunk of groups in turn.

    p_bias (heads, BLOCK_M, BLOCK_N): see expand_bias_kernel. Grid: heads * chunks.
    """
    QUERIES: tl.constexpr = WINDOW_Z * WINDOW_Y * WINDOW_X
    KEYS: tl.constexpr = CORE_Z * CORE_Y * CORE_X
    tl.static_assert(N * QUERIES <= BLOCK_M and N * KEYS <= BLOCK_N)

    q_strides = stride_qb, stride_qy, stride_qx, stride_qh, stride_qd
    k_strides = stride_kb, stride_ky, stride_kx, stride_kh, stride_kd
    v_strides = stride_vb, stride_vy, stride_vx, stride_vh, stride_vd
    g_strides = stride_gb, stride_gy, stride_gx, stride_gh, stride_gd
    dq_strides = stride_dqb, stride_dqy, stride_dqx, stride_dqh, stride_dqd
    dk_strides = stride_dkb, stride_dky, stride_dkx, stride_dkh, stride_dkd
    dv_strides = stride_dvb, stride_dvy, stride_dvx, stride_dvh, stride_dvd
    q_axes = axes_of(
        size_qz, cycle_qz, shift_qz, seam_qz, size_qy, cycle_qy, shift_qy, seam_qy,
        size_qx, cycle_qx, shift_qx, seam_qx, AXES,
    )  # fmt: skip
    k_axes = axes_of(
        size_kz, cycle_kz, shift_kz, seam_kz, size_ky, cycle_ky, shift_ky, seam_ky,
        size_kx, cycle_kx, shift_kx, seam_kx, AXES,
    )  # fmt: skip
    grid = of_axes(nz, ny, nx, AXES), windows
    q_size, origin = rows_and_columns(q_axes), of_axes(0, 0, 0, AXES)
    sides, core = of_axes(WINDOW_Z, WINDOW_Y, WINDOW_X, AXES), of_axes(CORE_Z, CORE_Y, CORE_X, AXES)

    head, o_chunk = tl.program_id(0) % heads, tl.program_id(0) // heads
    query = place_in_window(tl.arange(0, BLOCK_M), QUERIES, sides, N)
    key = place_in_window(tl.arange(0, BLOCK_N), KEYS, core, N)
    factor = sum_of(scale, scale_rest, ACC)
    b_seam = sum_of(seam, seam_rest, ACC) * LOG2E
    if BIAS:
        b_db = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    if PAD:
        b_pad_k, b_pad_v = tl.zeros((BLOCK_D,), ACC), tl.zeros((BLOCK_D,), ACC)

    for step in range(0, tl.minimum(chunk, groups - o_chunk * chunk) if BIAS or PAD else 1):
        first = (o_chunk * chunk + step) * N
        k_window, k_live = window_of(key, first, grid, N)
        k_pixel, m_k, k_past = place_in_map(k_window, key, k_live, k_axes, core, origin)
        k_code = key_code_of(key, k_past, k_live if PAD else m_k, BLOCK_D)  # [BLOCK_N]
        b_k, b_v = load_keys_and_values(
            p_k, p_v, p_pad_k, p_pad_v, k_strides, v_strides, k_pixel, head, m_k, D, BLOCK_D, VEC, PAD
        )  # [BLOCK_N, BLOCK_D]

        q_window, q_live = window_of(query, first, grid, N)
        q_pixel, m_q, q_past = place_in_map(q_window, query, q_live, q_axes, sides, origin)
        q_code = code_of(query, q_past, m_q, NO_QUERY)  # [BLOCK_M]
        b_q, b_g = load_queries_and_gradients(
            p_q, p_g, q_strides, g_strides, q_pixel, head, m_q, D, BLOCK_D, VEC, GVEC
        )  # [BLOCK_M, BLOCK_D]
        o_lse = head_rows(q_pixel, head, heads, q_size)
        b_bias = factor  # a stand-in without BIAS
        if BIAS:
            b_bias = load_tile(p_bias, head, BLOCK_M, BLOCK_N)

        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PREC, out_dtype=ACC)  # [BLOCK_M, BLOCK_N]
        b_s = scores(b_s, b_bias, q_code, k_code, factor * LOG2E, b_seam, BIAS, SOFT, AXES)
        b_p = tl.exp2(b_s - load_lse(p_lse, o_lse, m_q)[:, None])
        b_p = b_p * inverse_of(tl.sum(b_p, 1))[:, None]

        # Each gradient is stored before the next product: there are no registers for two.
        b_dv = tl.dot(tl.trans(b_p.to(b_g.dtype)), b_g, input_precision=PREC, out_dtype=ACC)  # [BLOCK_N, BLOCK_D]
        store_vectors(p_dv, dv_strides, k_pixel, head, m_k, b_dv, D, BLOCK_D, VEC)
        if PAD:
            b_pad_v += tl.sum(tl.where(m_k[:, None], 0.0, b_dv), 0)

        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PREC, out_dtype=ACC)  # [BLOCK_M, BLOCK_N]
        b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, 1)[:, None])  # sum(p * dp) = sum(g * out) without reading out
        if BIAS:
            b_db += b_ds
        b_ds = b_ds.to(b_q.dtype)

        b_dk = tl.dot(tl.trans(b_ds), b_q, input_precision=PREC, out_dtype=ACC) * factor  # [BLOCK_N, BLOCK_D]
        store_vectors(p_dk, dk_strides, k_pixel, head, m_k, b_dk, D, BLOCK_D, VEC)
        if PAD:
            b_pad_k += tl.sum(tl.where(m_k[:, None], 0.0, b_dk), 0)

        b_dq = tl.dot(b_ds, b_k, input_precision=PREC, out_dtype=ACC) * factor  # [BLOCK_M, BLOCK_D]
        store_vectors(p_dq, dq_strides, q_pixel, head, m_q, b_dq, D, BLOCK_D, VEC)

    if BIAS:
        store_tile(p_dbias, o_chunk * heads + head, 0, 0, b_db, 1, 1)
    if PAD:
        store_pad(p_dpad, o_chunk, 0, b_pad_k, head, heads, D, BLOCK_D)
        store_pad(p_dpad, o_chunk, 1, b_pad_v, head, heads, D, BLOCK_D)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def query_gradient_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_out, p_lse, p_g, p_dq, p_delta, p_dbias,
    stride_qb, stride_qy, stride_qx, stride_qh, stride_qd, stride_kb, stride_ky, stride_kx, stride_kh, stride_kd,
    stride_vb, stride_vy, stride_vx, stride_vh, stride_vd, stride_gb, stride_gy, stride_gx, stride_gh, stride_gd,
    stride_dqb, stride_dqy, stride_dqx, stride_dqh, stride_dqd,
    bias_start, bias_h, bias_qz, bias_qy, bias_qx, bias_kz, bias_ky, bias_kx,
    size_qz, cycle_qz, shift_qz, seam_qz, size_qy, cycle_qy, shift_qy, seam_qy,
    size_qx, cycle_qx, shift_qx, seam_qx,
    size_kz, cycle_kz, shift_kz, seam_kz, size_ky, cycle_ky, shift_ky, seam_ky,
    size_kx, cycle_kx, shift_kx, seam_kx,
    nz, ny, nx, windows, heads, chunk, groups,
    scale, scale_rest, seam, seam_rest, delta_size,
    D: tl.constexpr, BLOCK_D: tl.constexpr, AXES: tl.constexpr,
    WINDOW_Z: tl.constexpr, WINDOW_Y: tl.constexpr, WINDOW_X: tl.constexpr,
    CORE_Z: tl.constexpr, CORE_Y: tl.constexpr, CORE_X: tl.constexpr,
    HALO_Z: tl.constexpr, HALO_Y: tl.constexpr, HALO_X: tl.constexpr,
    BIAS: tl.constexpr, PAD: tl.constexpr, SOFT: tl.constexpr,
    N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DBIAS: tl.constexpr,
    VEC: tl.constexpr, GVEC: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq of a tile of queries, from all their keys, for a chunk of groups one after the other.

    p_delta for the kernels after it; DBIAS (keys are one tile): the sum of the scores' gradients.
    Grid: heads * tiles of queries * chunks.
    """
    QUERIES: tl.constexpr = WINDOW_Z * WINDOW_Y * WINDOW_X
    REACH_Z: tl.constexpr = CORE_Z + 2 * HALO_Z
    REACH_Y: tl.constexpr = CORE_Y + 2 * HALO_Y
    REACH_X: tl.constexpr = CORE_X + 2 * HALO_X
    KEYS: tl.constexpr = REACH_Z * REACH_Y * REACH_X
    TILES: tl.constexpr = (N * QUERIES + BLOCK_M - 1) // BLOCK_M
    KEY_TILES: tl.constexpr = (N * KEYS + BLOCK_N - 1) // BLOCK_N
    HOLD: tl.constexpr = BIAS and KEY_TILES == 1
    tl.static_assert(KEY_TILES == 1 or not DBIAS)

    q_strides = stride_qb, stride_qy, stride_qx, stride_qh, stride_qd
    k_strides = stride_kb, stride_ky, stride_kx, stride_kh, stride_kd
    v_strides = stride_vb, stride_vy, stride_vx, stride_vh, stride_vd
    g_strides = stride_gb, stride_gy, stride_gx, stride_gh, stride_gd
    dq_strides = stride_dqb, stride_dqy, stride_dqx, stride_dqh, stride_dqd
    q_axes = axes_of(
        size_qz, cycle_qz, shift_qz, seam_qz, size_qy, cycle_qy, shift_qy, seam_qy,
        size_qx, cycle_qx, shift_qx, seam_qx, AXES,
    )  # fmt: skip
    k_axes = axes_of(
        size_kz, cycle_kz, shift_kz, seam_kz, size_ky, cycle_ky, shift_ky, seam_ky,
        size_kx, cycle_kx, shift_kx, seam_kx, AXES,
    )  # fmt: skip
    bias_steps = bias_start, bias_h, of_axes(bias_qz, bias_qy, bias_qx, AXES), of_axes(bias_kz, bias_ky, bias_kx, AXES)
    grid = of_axes(nz, ny, nx, AXES), windows
    q_size, origin = rows_and_columns(q_axes), of_axes(0, 0, 0, AXES)
    sides, core = of_axes(WINDOW_Z, WINDOW_Y, WINDOW_X, AXES), of_axes(CORE_Z, CORE_Y, CORE_X, AXES)
    reach, halo = of_axes(REACH_Z, REACH_Y, REACH_X, AXES), of_axes(HALO_Z, HALO_Y, HALO_X, AXES)

    head, o_tile = tl.program_id(0) % heads, tl.program_id(0) // heads
    o_chunk = o_tile // TILES
    query = place_in_window(o_tile % TILES * BLOCK_M + tl.arange(0, BLOCK_M), QUERIES, sides, N)
    factor = sum_of(scale, scale_rest, ACC)
    b_seam = sum_of(seam, seam_rest, ACC) * LOG2E

    # As in the forward: held where all keys are one tile, and then its gradient is summed over the groups.
    b_bias = factor
    if HOLD:
        held_key = place_in_window(tl.arange(0, BLOCK_N), KEYS, reach, N)
        b_bias = load_bias(p_bias, bias_steps, head, query, held_key, N, ACC)  # [BLOCK_M, BLOCK_N]
    if DBIAS:
        b_db = tl.zeros((BLOCK_M, BLOCK_N), ACC)

    for step in range(0, tl.minimum(chunk, groups - o_chunk * chunk) if HOLD else 1):
        first = (o_chunk * chunk + step) * N
        q_window, q_live = window_of(query, first, grid, N)
        q_pixel, m_q, q_past = place_in_map(q_window, query, q_live, q_axes, sides, origin)
        q_code = code_of(query, q_past, m_q, NO_QUERY)  # [BLOCK_M]
        b_q, b_g = load_queries_and_gradients(
            p_q, p_g, q_strides, g_strides, q_pixel, head, m_q, D, BLOCK_D, VEC, GVEC
        )  # [BLOCK_M, BLOCK_D]
        o_lse = head_rows(q_pixel, head, heads, q_size)
        b_lse = load_lse(p_lse, o_lse, m_q)

        # sum(g * out) is needed before the first of several tiles of keys.
        b_delta, b_l = tl.zeros((BLOCK_M,), ACC), tl.zeros((BLOCK_M,), ACC)
        if KEY_TILES > 1:
            p_rows = out_addresses(p_out, q_pixel, head, heads, q_size, D, BLOCK_D)
            b_out = tl.load(p_rows, mask=vector_mask(m_q, D, BLOCK_D), other=0.0)
            b_delta = tl.sum(b_out.to(ACC) * b_g.to(ACC), 1)

        b_dq = tl.zeros((BLOCK_M, BLOCK_D), ACC)

        for tile in range(0, runtime_count(KEY_TILES, heads)):
            key = place_in_window(tile * BLOCK_N + tl.arange(0, BLOCK_N), KEYS, reach, N)
            k_window, k_live = window_of(key, first, grid, N)
            k_pixel, m_k, k_past = place_in_map(k_window, key, k_live, k_axes, core, halo)
            k_code = key_code_of(key, k_past, k_live if PAD else m_k, BLOCK_D)  # [BLOCK_N]
            b_k, b_v = load_keys_and_values(
                p_k, p_v, p_pad_k, p_pad_v, k_strides, v_strides, k_pixel, head, m_k, D, BLOCK_D, VEC, PAD
            )  # [BLOCK_N, BLOCK_D]
            b_tile_bias = b_bias
            if BIAS and not HOLD:
                b_tile_bias = load_bias(p_bias, bias_steps, head, query, key, N, ACC)

            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PREC, out_dtype=ACC)  # [BLOCK_M, BLOCK_N]
            b_s = scores(b_s, b_tile_bias, q_code, k_code, factor * LOG2E, b_seam, BIAS, SOFT, AXES)
            b_p = tl.exp2(b_s - b_lse[:, None])
            b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PREC, out_dtype=ACC)  # [BLOCK_M, BLOCK_N]
            b_l += tl.sum(b_p, 1)
            if KEY_TILES == 1:
                b_p = b_p * inverse_of(b_l)[:, None]
                b_delta = tl.sum(b_p * b_dp, 1)  # sum(g * out) without reading out

            b_ds = b_p * (b_dp - b_delta[:, None])
            if DBIAS:
                b_db += b_ds
            b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PREC, out_dtype=ACC)

        b_norm = inverse_of(b_l)
        if KEY_TILES > 1:
            b_dq = b_dq * b_norm[:, None]

        tl.store(p_delta + o_lse, b_delta, mask=m_q)
        tl.store(p_delta + delta_size + o_lse, b_norm, mask=m_q)
        store_vectors(p_dq, dq_strides, q_pixel, head, m_q, b_dq * factor, D, BLOCK_D, VEC)

    if DBIAS:
        store_tile(p_dbias, o_chunk * heads + head, o_tile % TILES, 0, b_db, TILES, 1)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def key_gradient_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_lse, p_g, p_dk, p_dv, p_delta, p_dpad,
    stride_qb, stride_qy, stride_qx, stride_qh, stride_qd, stride_kb, stride_ky, stride_kx, stride_kh, stride_kd,
    stride_vb, stride_vy, stride_vx, stride_vh, stride_vd, stride_gb, stride_gy, stride_gx, stride_gh, stride_gd,
    stride_dkb, stride_dky, stride_dkx, stride_dkh, stride_dkd,
    stride_dvb, stride_dvy, stride_dvx, stride_dvh, stride_dvd,
    bias_start, bias_h, bias_qz, bias_qy, bias_qx, bias_kz, bias_ky, bias_kx,
    size_qz, cycle_qz, shift_qz, seam_qz, size_qy, cycle_qy, shift_qy, seam_qy,
    size_qx, cycle_qx, shift_qx, seam_qx,
    size_kz, cycle_kz, shift_kz, seam_kz, size_ky, cycle_ky, shift_ky, seam_ky,
    size_kx, cycle_kx, shift_kx, seam_kx,
    nz, ny, nx, windows, heads,
    scale, scale_rest, seam, seam_rest, delta_size,
    D: tl.constexpr, BLOCK_D: tl.constexpr, AXES: tl.constexpr,
    WINDOW_Z: tl.constexpr, WINDOW_Y: tl.constexpr, WINDOW_X: tl.constexpr,
    CORE_Z: tl.constexpr, CORE_Y: tl.constexpr, CORE_X: tl.constexpr,
    HALO_Z: tl.constexpr, HALO_Y: tl.constexpr, HALO_X: tl.constexpr,
    BIAS: tl.constexpr, PAD: tl.constexpr, SOFT: tl.constexpr,
    N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    VEC: tl.constexpr, GVEC: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dk, dv of a tile of a key window without its halo, from all query windows that see it: NEAR_ away.

    PAD: keys of a rim of windows outside the grid are seen too; the sum of what falls outside the map goes to p_dpad.
    windows: of the batch, the rim included. Grid: heads * tiles of keys * ceil(windows / N).
    """
    QUERIES: tl.constexpr = WINDOW_Z * WINDOW_Y * WINDOW_X
    KEYS: tl.constexpr = CORE_Z * CORE_Y * CORE_X
    NEAR_Z: tl.constexpr = (HALO_Z + CORE_Z - 1) // CORE_Z
    NEAR_Y: tl.constexpr = (HALO_Y + CORE_Y - 1) // CORE_Y
    NEAR_X: tl.constexpr = (HALO_X + CORE_X - 1) // CORE_X
    # Query windows that see the keys, along each axis.
    DEPTHS: tl.constexpr = 2 * NEAR_Z + 1
    ROWS: tl.constexpr = 2 * NEAR_Y + 1
    COLUMNS: tl.constexpr = 2 * NEAR_X + 1
    RIM_Z: tl.constexpr = NEAR_Z if PAD else 0
    RIM_Y: tl.constexpr = NEAR_Y if PAD else 0
    RIM_X: tl.constexpr = NEAR_X if PAD else 0
    TILES: tl.constexpr = (N * KEYS + BLOCK_N - 1) // BLOCK_N
    QUERY_TILES: tl.constexpr = (N * QUERIES + BLOCK_M - 1) // BLOCK_M

    q_strides = stride_qb, stride_qy, stride_qx, stride_qh, stride_qd
    k_strides = stride_kb, stride_ky, stride_kx, stride_kh, stride_kd
    v_strides = stride_vb, stride_vy, stride_vx, stride_vh, stride_vd
    g_strides = stride_gb, stride_gy, stride_gx, stride_gh, stride_gd
    dk_strides = stride_dkb, stride_dky, stride_dkx, stride_dkh, stride_dkd
    dv_strides = stride_dvb, stride_dvy, stride_dvx, stride_dvh, stride_dvd
    q_axes = axes_of(
        size_qz, cycle_qz, shift_qz, seam_qz, size_qy, cycle_qy, shift_qy, seam_qy,
        size_qx, cycle_qx, shift_qx, seam_qx, AXES,
    )  # fmt: skip
    k_axes = axes_of(
        size_kz, cycle_kz, shift_kz, seam_kz, size_ky, cycle_ky, shift_ky, seam_ky,
        size_kx, cycle_kx, shift_kx, seam_kx, AXES,
    )  # fmt: skip
    bias_steps = bias_start, bias_h, of_axes(bias_qz, bias_qy, bias_qx, AXES), of_axes(bias_kz, bias_ky, bias_kx, AXES)
    rim = of_axes(RIM_Z, RIM_Y, RIM_X, AXES)
    grid = plus(plus(of_axes(nz, ny, nx, AXES), rim), rim), windows
    q_size, origin = rows_and_columns(q_axes), of_axes(0, 0, 0, AXES)
    sides, core = of_axes(WINDOW_Z, WINDOW_Y, WINDOW_X, AXES), of_axes(CORE_Z, CORE_Y, CORE_X, AXES)
    seen, nearest = of_axes(DEPTHS, ROWS, COLUMNS, AXES), of_axes(NEAR_Z, NEAR_Y, NEAR_X, AXES)

    # The keys, once: they stay while the queries pass.
    head, o_tile = tl.program_id(0) % heads, tl.program_id(0) // heads
    first = o_tile // TILES * N
    key = place_in_window(o_tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N), KEYS, core, N)
    k_window, k_live = window_of(key, first, grid, N)
    k_image, k_grid = k_window
    k_window = k_image, minus(k_grid, rim)
    k_pixel, m_k, k_past = place_in_map(k_window, key, k_live, k_axes, core, origin)
    b_k, b_v = load_keys_and_values(
        p_k, p_v, p_pad_k, p_pad_v, k_strides, v_strides, k_pixel, head, m_k, D, BLOCK_D, VEC, PAD
    )  # [BLOCK_N, BLOCK_D]

    k_place, k_slot, _ = key
    factor = sum_of(scale, scale_rest, ACC)
    b_seam = sum_of(seam, seam_rest, ACC) * LOG2E
    b_dk, b_dv = tl.zeros((BLOCK_N, BLOCK_D), ACC), tl.zeros((BLOCK_N, BLOCK_D), ACC)

    for step in range(0, runtime_count(DEPTHS * ROWS * COLUMNS * QUERY_TILES, heads)):
        o_near = step // QUERY_TILES
        # From the keys' window to the queries'.
        near = minus(place_of(o_near // COLUMNS, o_near % COLUMNS, seen), nearest)
        query = place_in_window(step % QUERY_TILES * BLOCK_M + tl.arange(0, BLOCK_M), QUERIES, sides, N)
        q_window, q_live = window_of(query, first, grid, N)
        q_image, q_grid = q_window
        q_window = q_image, plus(minus(q_grid, rim), near)
        # No row of the map lies in a window of the rim: m_q leaves those out.
        q_pixel, m_q, q_past = place_in_map(q_window, query, q_live, q_axes, sides, origin)
        q_code = code_of(query, q_past, m_q, NO_QUERY)  # [BLOCK_M]

        # Where the keys lie in the queries' window and its halo.
        near_ky, m_near = place_near(k_place[AXES - 2], near[AXES - 2], CORE_Y, HALO_Y, k_live if PAD else m_k)
        near_kx, m_near = place_near(k_place[AXES - 1], near[AXES - 1], CORE_X, HALO_X, m_near)
        near_kz = 0
        if AXES == 3:
            near_kz, m_near = place_near(k_place[0], near[0], CORE_Z, HALO_Z, m_near)
        k_code = key_code_of(key, k_past, m_near, BLOCK_D)  # [BLOCK_N]

        # The address of g, loaded when q k^T is done with, is made beside that of q: later it costs a spill.
        m_vectors = vector_mask(m_q, D, BLOCK_D)
        p_queries = vector_addresses(p_q, q_strides, q_pixel, head, BLOCK_D, VEC)
        p_gradients = vector_addresses(p_g, g_strides, q_pixel, head, BLOCK_D, GVEC)
        b_q = tl.load(p_queries, mask=m_vectors, other=0.0)  # [BLOCK_M, BLOCK_D]
        b_bias = factor  # a stand-in without BIAS
        if BIAS:
            near_key = of_axes(near_kz, near_ky, near_kx, AXES), k_slot, m_near
            b_bias = load_bias(p_bias, bias_steps, head, masked(query, m_q), near_key, N, ACC)  # [BLOCK_M, BLOCK_N]

        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PREC, out_dtype=ACC)  # [BLOCK_M, BLOCK_N]
        b_s = scores(b_s, b_bias, q_code, k_code, factor * LOG2E, b_seam, BIAS, SOFT, AXES)
        o_lse = head_rows(q_pixel, head, heads, q_size)
        b_p = tl.exp2(b_s - load_lse(p_lse, o_lse, m_q)[:, None])
        b_p = b_p * tl.load(p_delta + delta_size + o_lse, mask=m_q, other=0.0)[:, None]

        b_g = tl.load(p_gradients, mask=m_vectors, other=0.0)  # [BLOCK_M, BLOCK_D]
        b_dv = tl.dot(tl.trans(b_p.to(b_g.dtype)), b_g, b_dv, input_precision=PREC, out_dtype=ACC)
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PREC, out_dtype=ACC)  # [BLOCK_M, BLOCK_N]
        b_ds = b_p * (b_dp - tl.load(p_delta + o_lse, mask=m_q, other=0.0)[:, None])
        b_dk = tl.dot(tl.trans(b_ds.to(b_q.dtype)), b_q, b_dk, input_precision=PREC, out_dtype=ACC)

    b_dk = b_dk * factor
    m_vectors = vector_mask(m_k, D, BLOCK_D)
    p_dkeys = vector_addresses(p_dk, dk_strides, k_pixel, head, BLOCK_D, VEC)
    p_dvalues = vector_addresses(p_dv, dv_strides, k_pixel, head, BLOCK_D, VEC)
    tl.store(p_dkeys, b_dk.to(p_dk.dtype.element_ty), mask=m_vectors)
    tl.store(p_dvalues, b_dv.to(p_dv.dtype.element_ty), mask=m_vectors)
    if PAD:
        store_pad(p_dpad, o_tile, 0, tl.sum(tl.where(m_k[:, None], 0.0, b_dk), 0), head, heads, D, BLOCK_D)
        store_pad(p_dpad, o_tile, 1, tl.sum(tl.where(m_k[:, None], 0.0, b_dv), 0), head, heads, D, BLOCK_D)
