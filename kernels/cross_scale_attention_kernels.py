"""The forward kernel of windowed cross-scale attention, which reads both maps in place.

    S = scale q k^T + bias    P = softmax(S) over the keys that a query sees    out = P v    lse = log of P's divisor

Windows and who sees whom: ``cross_scale_attention_windows``; what is done to a tile: ``cross_scale_attention_tiles``;
gradients: ``cross_scale_attention_gradient_kernels``, of the bias ``cross_scale_attention_bias_kernels``.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that the kernels of all these files share:
    p_q (B, H, W, heads, D)  queries    p_k, p_v (B, Hk, Wk, heads, D)  keys and values
    p_bias  a table or dense, as the steps of the bias say    p_pad_k, p_pad_v (heads, D)  at positions outside the map
    p_out (B, H, W, heads, D), contiguous    p_lse (B, heads, H, W), in base 2
    stride_qb, stride_qy, stride_qx, stride_qh, stride_qd  strides of q along image, row, column, head and channel; so
        for k, v, g, dq, dk, dv
    bias_start, bias_h, bias_qy, bias_qx, bias_ky, bias_kx  where the bias of the lowest query and key lies; steps along
        head, row and column of the query, row and column of the key (halo included): all that a table and a dense bias
        differ in; bias_qz, bias_kz  the steps along z
    size_, cycle_, shift_, seam_  of all axes of the queries' and the keys' map: its size, how many rows are rolled, by
        how many, and the rolled row from which on a token lies past the seam
    nz, ny, nx, windows, heads  windows of an image along z, y and x, of the whole batch; heads
    chunk, groups  groups of N windows that a program goes through, and how many there are
    scale, scale_rest, seam, seam_rest  a float64 as two float32
    D, BLOCK_D  channels of a head, and a power of 2 that holds them    WINDOW_, CORE_, HALO_  of all axes: queries of
        a window, its keys, and the keys on each side of them that it sees too
    AXES  2 or 3. With 2 what belongs to z is None or, of the sizes of a window, as of an axis of length one
    BIAS, SOFT  whether there is a bias, a finite seam    PAD  positions outside the map are keys
    VEC  elements that an access to q, k, v, dq, dk, dv may take
    ACC, PREC  dtype of sums, input_precision of products
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.cross_scale_attention_tiles import (
    EMPTY,
    LOG2E,
    head_rows,
    load_bias,
    load_keys_and_values,
    load_vectors,
    out_addresses,
    runtime_count,
    scores,
    sum_of,
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
    rows_and_columns,
    window_of,
)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def attention_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_out, p_lse,
    stride_qb, stride_qy, stride_qx, stride_qh, stride_qd, stride_kb, stride_ky, stride_kx, stride_kh, stride_kd,
    stride_vb, stride_vy, stride_vx, stride_vh, stride_vd,
    bias_start, bias_h, bias_qz, bias_qy, bias_qx, bias_kz, bias_ky, bias_kx,
    size_qz, cycle_qz, shift_qz, seam_qz, size_qy, cycle_qy, shift_qy, seam_qy,
    size_qx, cycle_qx, shift_qx, seam_qx,
    size_kz, cycle_kz, shift_kz, seam_kz, size_ky, cycle_ky, shift_ky, seam_ky,
    size_kx, cycle_kx, shift_kx, seam_kx,
    nz, ny, nx, windows, heads, chunk, groups,
    scale, scale_rest, seam, seam_rest,
    D: tl.constexpr, BLOCK_D: tl.constexpr, AXES: tl.constexpr,
    WINDOW_Z: tl.constexpr, WINDOW_Y: tl.constexpr, WINDOW_X: tl.constexpr,
    CORE_Z: tl.constexpr, CORE_Y: tl.constexpr, CORE_X: tl.constexpr,
    HALO_Z: tl.constexpr, HALO_Y: tl.constexpr, HALO_X: tl.constexpr,
    BIAS: tl.constexpr, PAD: tl.constexpr, SOFT: tl.constexpr,
    N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    VEC: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """out, and lse, minus infinity of a query without a key.

    A tile of queries against all its keys, tile by tile; where they are one tile, for a chunk of groups one after the
    other, so that its bias is read once. Grid: heads * tiles of queries of a group * chunks.
    """
    QUERIES: tl.constexpr = WINDOW_Z * WINDOW_Y * WINDOW_X
    REACH_Z: tl.constexpr = CORE_Z + 2 * HALO_Z
    REACH_Y: tl.constexpr = CORE_Y + 2 * HALO_Y
    REACH_X: tl.constexpr = CORE_X + 2 * HALO_X
    KEYS: tl.constexpr = REACH_Z * REACH_Y * REACH_X
    TILES: tl.constexpr = (N * QUERIES + BLOCK_M - 1) // BLOCK_M
    KEY_TILES: tl.constexpr = (N * KEYS + BLOCK_N - 1) // BLOCK_N
    HOLD: tl.constexpr = BIAS and KEY_TILES == 1

    q_strides = stride_qb, stride_qy, stride_qx, stride_qh, stride_qd
    k_strides = stride_kb, stride_ky, stride_kx, stride_kh, stride_kd
    v_strides = stride_vb, stride_vy, stride_vx, stride_vh, stride_vd
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
    o_group = o_tile // TILES * chunk
    query = place_in_window(o_tile % TILES * BLOCK_M + tl.arange(0, BLOCK_M), QUERIES, sides, N)
    factor = sum_of(scale, scale_rest, ACC) * LOG2E
    b_seam = sum_of(seam, seam_rest, ACC) * LOG2E

    # Every group has the same bias: held, where all keys are one tile. Otherwise a stand-in.
    b_bias = factor
    if HOLD:
        held_key = place_in_window(tl.arange(0, BLOCK_N), KEYS, reach, N)
        b_bias = load_bias(p_bias, bias_steps, head, query, held_key, N, ACC)  # [BLOCK_M, BLOCK_N]

    for step in range(0, tl.minimum(chunk, groups - o_group) if HOLD else 1):
        first = (o_group + step) * N
        q_window, q_live = window_of(query, first, grid, N)
        q_pixel, m_q, q_past = place_in_map(q_window, query, q_live, q_axes, sides, origin)
        q_code = code_of(query, q_past, m_q, NO_QUERY)  # [BLOCK_M]
        b_q = load_vectors(p_q, q_strides, q_pixel, head, m_q, D, BLOCK_D, VEC)  # [BLOCK_M, BLOCK_D]

        b_o, b_l = tl.zeros((BLOCK_M, BLOCK_D), ACC), tl.zeros((BLOCK_M,), ACC)
        b_max = tl.full((BLOCK_M,), EMPTY, ACC)

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
            b_s = scores(b_s, b_tile_bias, q_code, k_code, factor, b_seam, BIAS, SOFT, AXES)

            # Online softmax: rescale what was summed so far to the new maximum.
            b_new = tl.maximum(b_max, tl.max(b_s, 1))
            b_low = tl.where(b_new == EMPTY, 0.0, b_new)  # no key yet: exp2(-inf - 0) = 0
            b_p, b_shrink = tl.exp2(b_s - b_low[:, None]), tl.exp2(b_max - b_low)
            b_l = b_l * b_shrink + tl.sum(b_p, 1)
            b_o = b_o * b_shrink[:, None]
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o, input_precision=PREC, out_dtype=ACC)
            b_max = b_new

        b_o = b_o / tl.where(b_l == 0.0, 1.0, b_l)[:, None]
        b_lse = b_max + tl.log2(b_l)

        tl.store(p_lse + head_rows(q_pixel, head, heads, q_size), b_lse, mask=m_q)
        p_rows = out_addresses(p_out, q_pixel, head, heads, q_size, D, BLOCK_D)
        tl.store(p_rows, b_o.to(p_out.dtype.element_ty), mask=vector_mask(m_q, D, BLOCK_D))
