"""The bias of windowed cross-scale attention: laid out for a tile, its gradient by itself, and that of a table.

    dbias = sum over the windows of dS, the gradient of the scores (``cross_scale_attention_gradient_kernels``)

Arguments are those of that file and of ``cross_scale_attention_kernels``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.cross_scale_attention_tiles import (
    LOG2E,
    head_rows,
    load_bias,
    load_lse,
    padded_with,
    scores,
    store_tile,
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
    of_axes,
    place_in_map,
    place_in_window,
    place_of,
    rows_and_columns,
    window_of,
)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def expand_bias_kernel(
    p_bias, p_tiles,
    bias_start, bias_h, bias_qz, bias_qy, bias_qx, bias_kz, bias_ky, bias_kx,
    AXES: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    WINDOW_Z: tl.constexpr, WINDOW_Y: tl.constexpr, WINDOW_X: tl.constexpr,
    CORE_Z: tl.constexpr, CORE_Y: tl.constexpr, CORE_X: tl.constexpr,
    N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Biases of the tiles of N windows without a halo, as scores take them: accesses of many elements, no gather, and
    no registers that hold them from window to window. Grid: heads.

    p_tiles (heads, BLOCK_M, BLOCK_N)    QUERIES, KEYS: of a window
    """
    head = tl.program_id(0)
    bias_steps = bias_start, bias_h, of_axes(bias_qz, bias_qy, bias_qx, AXES), of_axes(bias_kz, bias_ky, bias_kx, AXES)
    sides, core = of_axes(WINDOW_Z, WINDOW_Y, WINDOW_X, AXES), of_axes(CORE_Z, CORE_Y, CORE_X, AXES)
    query = place_in_window(tl.arange(0, BLOCK_M), QUERIES, sides, N)
    key = place_in_window(tl.arange(0, BLOCK_N), KEYS, core, N)

    b_bias = load_bias(p_bias, bias_steps, head, query, key, N, p_tiles.dtype.element_ty)  # [BLOCK_M, BLOCK_N]

    store_tile(p_tiles, head, 0, 0, b_bias, 1, 1)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def bias_gradient_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_lse, p_g, p_delta, p_dbias,
    stride_qb, stride_qy, stride_qx, stride_qh, stride_qd, stride_kb, stride_ky, stride_kx, stride_kh, stride_kd,
    stride_vb, stride_vy, stride_vx, stride_vh, stride_vd, stride_gb, stride_gy, stride_gx, stride_gh, stride_gd,
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
    PAD: tl.constexpr, SOFT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    VEC: tl.constexpr, GVEC: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The sum of the scores' gradients over a chunk of windows, for one tile of their queries and keys.

    Grid: heads * tiles of keys * tiles of queries * chunks. A group is one window.
    """
    QUERIES: tl.constexpr = WINDOW_Z * WINDOW_Y * WINDOW_X
    REACH_Z: tl.constexpr = CORE_Z + 2 * HALO_Z
    REACH_Y: tl.constexpr = CORE_Y + 2 * HALO_Y
    REACH_X: tl.constexpr = CORE_X + 2 * HALO_X
    KEYS: tl.constexpr = REACH_Z * REACH_Y * REACH_X
    TILES: tl.constexpr = (QUERIES + BLOCK_M - 1) // BLOCK_M
    KEY_TILES: tl.constexpr = (KEYS + BLOCK_N - 1) // BLOCK_N

    q_strides = stride_qb, stride_qy, stride_qx, stride_qh, stride_qd
    k_strides = stride_kb, stride_ky, stride_kx, stride_kh, stride_kd
    v_strides = stride_vb, stride_vy, stride_vx, stride_vh, stride_vd
    g_strides = stride_gb, stride_gy, stride_gx, stride_gh, stride_gd
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
    o_chunk, o_row, o_column = o_tile // (KEY_TILES * TILES), o_tile // KEY_TILES % TILES, o_tile % KEY_TILES
    query = place_in_window(o_row * BLOCK_M + tl.arange(0, BLOCK_M), QUERIES, sides, 1)
    key = place_in_window(o_column * BLOCK_N + tl.arange(0, BLOCK_N), KEYS, reach, 1)
    factor = sum_of(scale, scale_rest, ACC) * LOG2E
    b_seam = sum_of(seam, seam_rest, ACC) * LOG2E

    b_bias = load_bias(p_bias, bias_steps, head, query, key, 1, ACC)  # [BLOCK_M, BLOCK_N]
    b_db = tl.zeros((BLOCK_M, BLOCK_N), ACC)

    for first in range(o_chunk * chunk, tl.minimum(o_chunk * chunk + chunk, groups)):
        q_window, q_live = window_of(query, first, grid, 1)
        q_pixel, m_q, q_past = place_in_map(q_window, query, q_live, q_axes, sides, origin)
        q_code = code_of(query, q_past, m_q, NO_QUERY)  # [BLOCK_M]
        k_window, k_live = window_of(key, first, grid, 1)
        k_pixel, m_k, k_past = place_in_map(k_window, key, k_live, k_axes, core, halo)
        k_code = key_code_of(key, k_past, k_live if PAD else m_k, BLOCK_D)  # [BLOCK_N]

        # Both addresses before the first load, here and below: in another order some kernels spill.
        m_queries, m_keys = vector_mask(m_q, D, BLOCK_D), vector_mask(m_k, D, BLOCK_D)
        p_queries = vector_addresses(p_q, q_strides, q_pixel, head, BLOCK_D, VEC)
        p_keys = vector_addresses(p_k, k_strides, k_pixel, head, BLOCK_D, VEC)
        b_k = padded_with(tl.load(p_keys, mask=m_keys, other=0.0), m_k, p_pad_k, head, D, BLOCK_D, PAD)
        b_q = tl.load(p_queries, mask=m_queries, other=0.0)  # [BLOCK_M, BLOCK_D]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PREC, out_dtype=ACC)  # [BLOCK_M, BLOCK_N]
        b_s = scores(b_s, b_bias, q_code, k_code, factor, b_seam, True, SOFT, AXES)

        o_lse = head_rows(q_pixel, head, heads, q_size)
        b_p = tl.exp2(b_s - load_lse(p_lse, o_lse, m_q)[:, None])
        b_p = b_p * tl.load(p_delta + delta_size + o_lse, mask=m_q, other=0.0)[:, None]

        # Loaded when q and k are done with: registers for two of the four are enough.
        p_gradients = vector_addresses(p_g, g_strides, q_pixel, head, BLOCK_D, GVEC)
        p_values = vector_addresses(p_v, v_strides, k_pixel, head, BLOCK_D, VEC)
        b_v = padded_with(tl.load(p_values, mask=m_keys, other=0.0), m_k, p_pad_v, head, D, BLOCK_D, PAD)
        b_g = tl.load(p_gradients, mask=m_queries, other=0.0)  # [BLOCK_M, BLOCK_D]
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PREC, out_dtype=ACC)  # [BLOCK_M, BLOCK_N]
        b_db += b_p * (b_dp - tl.load(p_delta + o_lse, mask=m_q, other=0.0)[:, None])

    store_tile(p_dbias, o_chunk * heads + head, o_row, o_column, b_db, TILES, KEY_TILES)


@triton.jit
def key_of_pair(query, entry, P: tl.constexpr, Q: tl.constexpr, REACH: tl.constexpr):
    """On one axis, the key with which a query makes a pair of a table's entry, and whether there is one."""
    k = (query * P + (REACH - 1) * Q)[None, :] - entry[:, None]  # times Q
    return k // Q, (k >= 0) & (k % Q == 0) & (k < REACH * Q)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def table_gradient_kernel(
    p_tiles, p_dtable,
    tile_rows, tile_columns, heads, rows,
    AXES: tl.constexpr, WINDOW_Z: tl.constexpr, WINDOW_Y: tl.constexpr, WINDOW_X: tl.constexpr,
    REACH_Z: tl.constexpr, REACH_Y: tl.constexpr, REACH_X: tl.constexpr,
    P_Z: tl.constexpr, P_Y: tl.constexpr, P_X: tl.constexpr, Q_Z: tl.constexpr, Q_Y: tl.constexpr, Q_X: tl.constexpr,
    N: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each entry of a table (rows, heads) gathers its pairs in the gradient of the scores of N windows' tiles.

    p_tiles (heads, tile_rows, tile_columns)    p_dtable (rows, heads)    REACH_: keys of a window, halo included
    P_ / Q_: keys / queries of an axis    BLOCK, BLOCK_A: entries; queries that are gathered at a time
    Grid: blocks of entries, heads.
    """
    QUERIES: tl.constexpr = WINDOW_Z * WINDOW_Y * WINDOW_X
    KEYS: tl.constexpr = REACH_Z * REACH_Y * REACH_X
    # Entries of an axis.
    ROWS: tl.constexpr = (WINDOW_Y - 1) * P_Y + (REACH_Y - 1) * Q_Y + 1
    COLUMNS: tl.constexpr = (WINDOW_X - 1) * P_X + (REACH_X - 1) * Q_X + 1
    sides, entries = of_axes(WINDOW_Z, WINDOW_Y, WINDOW_X, AXES), of_axes(1, ROWS, COLUMNS, AXES)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    p_head = p_tiles + head.to(tl.int64) * tile_rows * tile_columns
    entry = place_of(o // COLUMNS, o % COLUMNS, entries)
    b_sum = tl.zeros((BLOCK,), p_tiles.dtype.element_ty)

    for start in range(0, N * QUERIES, BLOCK_A):
        o_m = start + tl.arange(0, BLOCK_A)
        o_q = o_m % QUERIES
        query = place_of(o_q // WINDOW_X, o_q % WINDOW_X, sides)

        # The row and column of the key that makes the pair, if there is one [BLOCK, BLOCK_A].
        k_y, m_y = key_of_pair(query[AXES - 2], entry[AXES - 2], P_Y, Q_Y, REACH_Y)
        k_x, m_x = key_of_pair(query[AXES - 1], entry[AXES - 1], P_X, Q_X, REACH_X)
        m_pair = m_y & m_x & (o_m < N * QUERIES)[None, :] & (o < rows)[:, None]
        o_row = o_m * tile_columns + o_m // QUERIES * KEYS  # first key of the query's window
        if AXES == 3:
            k_z, m_z = key_of_pair(query[0], entry[0], P_Z, Q_Z, REACH_Z)
            m_pair = m_pair & m_z
            o_pair = o_row[None, :] + (k_z * REACH_Y + k_y) * REACH_X + k_x
        else:
            o_pair = o_row[None, :] + k_y * REACH_X + k_x

        b_sum += tl.sum(tl.load(p_head + o_pair, mask=m_pair, other=0.0), 1)

    tl.store(p_dtable + o * heads + head, b_sum.to(p_dtable.dtype.element_ty), mask=o < rows)
