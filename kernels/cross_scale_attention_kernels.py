"""Kernels of windowed cross-scale attention: what they share, and the forward. Both maps are read in place.

Row u of a rolled map is row u + shift, less the cycle where that is beyond it; window i of the query map is its rolled
rows [i WY, (i + 1) WY), and its keys are rows [i KY - HY, (i + 1) KY + HY) of the rolled key map; so in x.

A tile is BLOCK_M queries x BLOCK_N keys, of N whole windows (their slots) or of a part of one. The code of a token,
4 * slot + 2 * past the seam in y + past it in x, says who sees whom: a query sees the keys of its own code, with SOFT
also those of its slot, at the price of `seam`. NO_QUERY and NO_KEY are seen by nobody.

A backward makes probabilities again from the saved lse and divides them by their sum once more: an lse of 45 in float32
leaves them an error of several eps.

Shapes in comments: m queries and n keys of a tile, d channels of a head.
`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks.
Arguments that kernels share:
    q_b, q_y, q_x, q_h, q_d  strides of q along image, row, column, head and channel; so for k, v, g (the gradient of
        the result), dq, dk, dv
    bias_0, bias_h, bias_ay, bias_ax, bias_cy, bias_cx  where the bias of the lowest query and key lies; steps along
        head, row and column of the query, row and column of the key (halo included): all that a table and a dense bias
        differ in
    size_, cycle_, shift_, seam_  of both axes of the queries' and the keys' map: its size, how many rows are rolled, by
        how many, and the rolled row from which on a token lies past the seam
    ny, nx, windows, heads  windows of an image along y and x, of the whole batch; heads
    chunk, groups  groups of N windows that a program goes through, and how many there are
    scale, scale_rest, seam, seam_rest  a float64 as two float32
    p_dbias (slots, heads, tiles * BLOCK_M, tiles * BLOCK_N), p_dpad (slots, 2, heads, D)  sums over a program's windows
    VEC, GVEC  elements that an access to q, k, v, dq, dk, dv, or to g, may take
    PAD  positions outside the map are keys    ACC, PREC  type of sums, input_precision of products
Scores are in units of log 2 (base 2), so that exp2 serves.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NO_QUERY, NO_KEY = tl.constexpr(-8), tl.constexpr(-4)
EMPTY = tl.constexpr(float("-inf"))

AXES = tuple(f"{name}_{axis}" for axis in ("qy", "qx", "ky", "kx") for name in ("size", "cycle", "shift", "seam"))
BIAS = ("bias_0", "bias_h", "bias_ay", "bias_ax", "bias_cy", "bias_cx")
STRIDES = tuple(f"{tensor}_{axis}" for tensor in ("q", "k", "v", "g", "dq", "dk", "dv") for axis in "byxhd")
SIZES = (*AXES, *BIAS, "ny", "nx", "windows", "heads", "chunk", "groups", "rows", "tile_rows", "tile_columns", "size")
_jit = triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)


@triton.jit
def sum_of(high, rest, ACC: tl.constexpr):
    """A number that comes as two float32."""
    return tl.cast(high, ACC) + tl.cast(rest, ACC)


@triton.jit
def place_in_window(o, S: tl.constexpr, X: tl.constexpr, N: tl.constexpr):
    """Row, column, slot of token o of a tile of N windows of S tokens, X a row; whether it exists."""
    if N == 1:
        return o // X, o % X, 0, o < S
    else:
        return o % S // X, o % X, o // S, o < N * S


@triton.jit
def pairs_of(slot, m_a, key_slot, m_c, N: tl.constexpr):
    """Mask (m, n) of queries and keys of the same window."""
    m_pair = m_a[:, None] & m_c[None, :]
    return m_pair if N == 1 else m_pair & (slot[:, None] == key_slot[None, :])


@triton.jit
def of_batch(m, window, windows, N: tl.constexpr):
    """Mask without the slots past the last window, which only a group of several can have."""
    return m if N == 1 else m & (window < windows)


@triton.jit
def window_of(window, ny, nx):
    """Image, and row and column in its grid of windows."""
    o_grid = window % (ny * nx)
    return window // (ny * nx), o_grid // nx, o_grid % nx


@triton.jit
def place_in_map(u, size, cycle, shift, seam):
    """Row of the map at row u of the rolled map, whether there is one, whether u lies past the seam."""
    o = u + shift
    o = tl.where(o >= cycle, o - cycle, o)
    return o, (u >= 0) & (u < cycle) & (o < size), u >= seam


@triton.jit
def code_of(slot, m_y, m_x, m_live, NOTHING: tl.constexpr):
    """Code of tokens that are past the seam in y or x; NOTHING where not live."""
    return tl.where(m_live, slot * 4 + m_y.to(tl.int32) * 2 + m_x.to(tl.int32), NOTHING)


@triton.jit
def fixed_code(code, BLOCK_D: tl.constexpr):
    """The codes of keys, by way of a reduction: compilers move its result between the layouts of tiles.

    Of plain arithmetic they make copies for each layout, whose intermediate values fill the registers.
    """
    return tl.max(tl.broadcast_to(code[:, None], (code.shape[0], BLOCK_D)), 1)


@triton.jit
def addresses(p, b, head, o_y, o_x, s_b, s_y, s_x, s_h, s_d, BLOCK_D: tl.constexpr, VEC: tl.constexpr):
    """Of the head's vectors at some pixels (tokens, d)."""
    o = b.to(tl.int64) * s_b + head.to(tl.int64) * s_h + o_y.to(tl.int64) * s_y + o_x.to(tl.int64) * s_x
    # A hint, not arithmetic on the strides, which would move them from the constants of a launch into registers.
    o = tl.multiple_of(o, VEC)
    return p + o[:, None] + (tl.arange(0, BLOCK_D).to(tl.int64) * s_d)[None, :]


@triton.jit
def vectors(m, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Mask (tokens, d) of tokens."""
    return m[:, None] if D == BLOCK_D else m[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]


@triton.jit
def padded_with(b_x, m, p_pad, head, D: tl.constexpr, BLOCK_D: tl.constexpr, PAD: tl.constexpr):
    """Vectors (tokens, d), those outside the map replaced by the head's of p_pad (heads, D)."""
    if PAD:
        o_d = tl.arange(0, BLOCK_D)
        b_pad = tl.load(p_pad + head * D + o_d, mask=o_d < D, other=0.0).to(b_x.dtype)
        b_x = tl.where(m[:, None], b_x, b_pad[None, :])
    return b_x


@triton.jit
def load_bias(p_bias, head, a_y, a_x, c_y, c_x, m, bias_0, bias_h, bias_ay, bias_ax, bias_cy, bias_cx,
              ACC: tl.constexpr):  # fmt: skip
    """Bias (m, n) of queries and keys at these places in their windows, in base 2; 0 outside of the mask."""
    p_head = p_bias + head.to(tl.int64) * bias_h + bias_0
    o_bias = (a_y * bias_ay + a_x * bias_ax)[:, None] + (c_y * bias_cy + c_x * bias_cx)[None, :]
    return tl.load(p_head + o_bias, mask=m, other=0.0).to(ACC) * LOG2E


@triton.jit
def turns(COUNT: tl.constexpr, heads):
    """COUNT, in a form that compilers do not know to be constant: they would unroll the loop, and spill."""
    return 1 if COUNT == 1 else COUNT * tl.minimum(heads, 1)


@triton.jit
def scores(b_qk, b_bias, code, key_code, factor, b_seam, BIAS: tl.constexpr, SOFT: tl.constexpr):
    """Scores (m, n) from q k^T, minus infinity where the query does not see the key. factor, b_seam: in base 2, too.

    Every kernel must have the same bits, or lse does not fit what a backward computes again. The fma is written out,
    for the compiler's choice of which product goes into which sum differs from kernel to kernel.
    """
    b_s = tl.fma(b_qk, factor, b_bias if BIAS else tl.zeros_like(b_qk))
    m_same = code[:, None] == key_code[None, :]
    if SOFT:
        b_s = tl.where(m_same, b_s, b_s + b_seam)
        m_same = (code >> 2)[:, None] == (key_code >> 2)[None, :]
    return tl.where(m_same, b_s, EMPTY)


@triton.jit
def load_lse(p_lse, o, m):
    """0 of a query without a key: all of its probabilities are exp2(-inf)."""
    b_lse = tl.load(p_lse + o, mask=m, other=0.0)
    return tl.where(b_lse == EMPTY, 0.0, b_lse)


@triton.jit
def store_pad(p_dpad, slot, part: tl.constexpr, b_sum, head, heads, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """One head's sum, part 0 for keys, 1 for values, of a slot."""
    o_d = tl.arange(0, BLOCK_D)
    tl.store(p_dpad + ((slot.to(tl.int64) * 2 + part) * heads + head) * D + o_d, b_sum, mask=o_d < D)


@triton.jit
def store_tile(p_tiles, slot, o_y, o_x, b_tile, TILES: tl.constexpr, KEY_TILES: tl.constexpr, BLOCK_M: tl.constexpr,
               BLOCK_N: tl.constexpr):  # fmt: skip
    """Tile (o_y, o_x) of a slot's tiles, which are stored whole: neither masks nor places outlive the loop before."""
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    p_tile = p_tiles + slot.to(tl.int64) * (TILES * BLOCK_M * KEY_TILES * BLOCK_N)
    p_tile += o_y * (BLOCK_M * KEY_TILES * BLOCK_N) + o_x * BLOCK_N
    tl.store(p_tile + (o_m * (KEY_TILES * BLOCK_N))[:, None] + o_n[None, :], b_tile)


@triton.jit
def load_tile(p_tiles, tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of whole tiles, one after the other."""
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    return tl.load(p_tiles + tile.to(tl.int64) * (BLOCK_M * BLOCK_N) + (o_m * BLOCK_N)[:, None] + o_n[None, :])


@_jit
def attention_kernel(
    p_q, p_k, p_v, p_bias, p_pad_k, p_pad_v, p_out, p_lse, q_b, q_y, q_x, q_h, q_d, k_b, k_y, k_x, k_h, k_d, v_b, v_y,
    v_x, v_h, v_d, bias_0, bias_h, bias_ay, bias_ax, bias_cy, bias_cx, size_qy, cycle_qy, shift_qy, seam_qy, size_qx,
    cycle_qx, shift_qx, seam_qx, size_ky, cycle_ky, shift_ky, seam_ky, size_kx, cycle_kx, shift_kx, seam_kx, ny, nx,
    windows, heads, chunk, groups, scale, scale_rest, seam, seam_rest,
    D: tl.constexpr, BLOCK_D: tl.constexpr, WY: tl.constexpr, WX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, HY:
    tl.constexpr, HX: tl.constexpr, BIAS: tl.constexpr, PAD: tl.constexpr, SOFT: tl.constexpr, N: tl.constexpr, BLOCK_M:
    tl.constexpr, BLOCK_N: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """out (B, H, W, heads, D), contiguous, and lse (B, heads, H, W) in base 2, minus infinity of a query without a key.

    A tile of queries against all its keys, tile by tile; where they are one tile, for a chunk of groups one after the
    other, so that its bias is read once. Grid: heads * tiles of queries of a group * chunks.
    """
    SQ: tl.constexpr = WY * WX
    RX: tl.constexpr = KX + 2 * HX
    SK: tl.constexpr = (KY + 2 * HY) * RX
    TILES: tl.constexpr = (N * SQ + BLOCK_M - 1) // BLOCK_M
    KEY_TILES: tl.constexpr = (N * SK + BLOCK_N - 1) // BLOCK_N
    HOLD: tl.constexpr = BIAS and KEY_TILES == 1
    head, o_tile = tl.program_id(0) % heads, tl.program_id(0) // heads
    o_group = o_tile // TILES * chunk
    o_m = o_tile % TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    a_y, a_x, slot, m_a = place_in_window(o_m, SQ, WX, N)
    factor, b_seam = sum_of(scale, scale_rest, ACC) * LOG2E, sum_of(seam, seam_rest, ACC) * LOG2E
    b_bias = factor
    if HOLD:
        c_y, c_x, key_slot, m_c = place_in_window(tl.arange(0, BLOCK_N), SK, RX, N)
        b_bias = load_bias(
            p_bias, head, a_y, a_x, c_y, c_x, pairs_of(slot, m_a, key_slot, m_c, N), bias_0, bias_h, bias_ay, bias_ax,
            bias_cy, bias_cx, ACC,
        )  # fmt: skip
    for step in range(0, tl.minimum(chunk, groups - o_group) if HOLD else 1):
        first = (o_group + step) * N
        b, i_y, i_x = window_of(first + slot, ny, nx)
        o_y, m_y, t_y = place_in_map(i_y * WY + a_y, size_qy, cycle_qy, shift_qy, seam_qy)
        o_x, m_x, t_x = place_in_map(i_x * WX + a_x, size_qx, cycle_qx, shift_qx, seam_qx)
        m_q = of_batch(m_a, first + slot, windows, N) & m_y & m_x
        code = code_of(slot, t_y, t_x, m_q, NO_QUERY)
        m_d = vectors(m_q, D, BLOCK_D)
        b_q = tl.load(
            addresses(p_q, b, head, o_y, o_x, q_b, q_y, q_x, q_h, q_d, BLOCK_D, VEC), mask=m_d, other=0.0
        )  # fmt: skip
        b_o, b_l = tl.zeros((BLOCK_M, BLOCK_D), ACC), tl.zeros((BLOCK_M,), ACC)
        b_max = tl.full((BLOCK_M,), EMPTY, ACC)
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
            b_s = scores(b_s, b_here, code, key_code, factor, b_seam, BIAS, SOFT)
            b_new = tl.maximum(b_max, tl.max(b_s, 1))
            b_low = tl.where(b_new == EMPTY, 0.0, b_new)  # no key yet: exp2(-inf - 0) = 0
            b_p, b_shrink = tl.exp2(b_s - b_low[:, None]), tl.exp2(b_max - b_low)
            b_l = b_l * b_shrink + tl.sum(b_p, 1)
            b_o = b_o * b_shrink[:, None]
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o, input_precision=PREC, out_dtype=ACC)
            b_max = b_new
        b_o = b_o / tl.where(b_l == 0.0, 1.0, b_l)[:, None]
        b_lse = b_max + tl.log2(b_l)
        o_lse = ((b.to(tl.int64) * heads + head) * size_qy + o_y) * size_qx + o_x
        tl.store(p_lse + o_lse, b_lse, mask=m_q)
        o_out = ((b.to(tl.int64) * size_qy + o_y) * size_qx + o_x) * heads + head
        tl.store(
            p_out + (o_out * D)[:, None] + tl.arange(0, BLOCK_D)[None, :], b_o.to(p_out.dtype.element_ty), mask=m_d
        )  # fmt: skip
