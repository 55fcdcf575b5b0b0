"""Kernels of windowed cross-scale attention, forward and backward. Both maps are read in place.

    S = scale q k^T + bias    P = softmax(S) over the keys that a query sees    out = P v    lse = log of P's divisor
    dP = g v^T    dS = P (dP - sum of P dP over the keys), where sum(P dP) = sum(g out)
    dq = scale dS k    dk = scale dS^T q    dv = P^T g    dbias = sum of dS over the windows

Row u of a rolled map is row u + shift, less the cycle where that is beyond it; window i of the query map is its rolled
rows [i WINDOW_Y, (i + 1) WINDOW_Y), and its keys are rows [i CORE_Y - HALO_Y, (i + 1) CORE_Y + HALO_Y) of the rolled
key map; so in x, and in z, which volumes have besides (AXES 3). A volume comes with depth and height folded into one
axis, for its addresses are those of a map of D * H rows; only where a token lies in its window knows of three axes.

A tile is BLOCK_M queries x BLOCK_N keys, of N whole windows (a group; each has a slot in the tile) or of a part of one.
The code of a token, 4 * slot + 2 * past the seam in y + past it in x (a third bit, 4, of z where there is one, and then
8 * slot), says who sees whom: a query sees the keys of its own code, with SOFT also those of its slot, at the price of
`seam`. NO_QUERY and NO_KEY are seen by nobody.

A backward recomputes probabilities from the saved lse and divides them by their sum once more: an lse of 45 in float32
leaves them an error of several eps. Scores are in units of log 2 (base 2), so that exp2 serves.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share:
    p_q, p_g, p_dq (B, H, W, heads, D)  queries, gradient of the result, gradient of the queries
    p_k, p_v, p_dk, p_dv (B, Hk, Wk, heads, D)  keys, values and their gradients
    p_bias  a table or dense, as the steps of the bias say    p_pad_k, p_pad_v (heads, D)  at positions outside the map
    p_out (B, H, W, heads, D), contiguous    p_lse (B, heads, H, W), in base 2
    p_delta (2, B, heads, H, W)  sum(g * out) of every query, and 1 / the sum of its probabilities
    p_dbias (partials, heads, tiles * BLOCK_M, tiles * BLOCK_N), p_dpad (partials, 2, heads, D)  sums over a program's
        windows
    stride_qb, stride_qy, stride_qx, stride_qh, stride_qd  strides of q along image, row, column, head and channel; so
        for k, v, g, dq, dk, dv
    bias_start, bias_h, bias_qy, bias_qx, bias_ky, bias_kx  where the bias of the lowest query and key lies; steps along
        head, row and column of the query, row and column of the key (halo included): all that a table and a dense bias
        differ in; bias_qz, bias_kz  the steps along z
    size_, cycle_, shift_, seam_  of all axes of the queries' and the keys' map: its size, how many rows are rolled, by
        how many, and the rolled row from which on a token lies past the seam
    nz, ny, nx, windows, heads  windows of an image along z, y and x, of the whole batch; heads
    chunk, groups  groups of N windows that a program goes through, and how many there are
    scale, scale_rest, seam, seam_rest  a float64 as two float32    delta_size  of one half of p_delta
    D, BLOCK_D  channels of a head, and a power of 2 that holds them    WINDOW_, CORE_, HALO_  of all axes: queries of
        a window, its keys, and the keys on each side of them that it sees too
    AXES  2 or 3. With 2 what belongs to z is None or, of the sizes of a window, as of an axis of length one
    BIAS, SOFT  whether there is a bias, a finite seam    PAD  positions outside the map are keys
    VEC, GVEC  elements that an access to q, k, v, dq, dk, dv, or to g, may take
    ACC, PREC  dtype of sums, input_precision of products
Tuples that device functions take:
    place  one number of each axis, ([z,] y, x), as step, halo, near    token (place, slot, mask)  in its window
    window (image, place)  in its grid    grid (place, windows)    strides, axes  as above
    pixel (image, row, column)  in a map, of a volume the folded row    steps (start, of head, of query, of key)
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NO_QUERY, NO_KEY = tl.constexpr(-8), tl.constexpr(-4)
EMPTY = tl.constexpr(float("-inf"))

# Never specialised: a new size runs the code of the old one.
ROLLED = ("size", "cycle", "shift", "seam")
OF_AXES = tuple(f"{name}_{side}{axis}" for side in "qk" for axis in "zyx" for name in ROLLED)
BIAS = ("bias_start", "bias_h", *(f"bias_{side}{axis}" for side in "qk" for axis in "zyx"))
COUNTS = ("nz", "ny", "nx", "windows", "heads", "chunk", "groups", "rows", "tile_rows", "tile_columns", "delta_size")
SIZES = (*OF_AXES, *BIAS, *COUNTS)
# Specialised where they are 1, not on what divides them: VEC says that.
STRIDES = tuple(f"stride_{tensor}{axis}" for tensor in ("q", "k", "v", "g", "dq", "dk", "dv") for axis in "byxhd")


@triton.jit
def sum_of(high, rest, ACC: tl.constexpr):
    """A number that comes as two float32."""
    return tl.cast(high, ACC) + tl.cast(rest, ACC)


@triton.jit
def runtime_count(COUNT: tl.constexpr, heads):
    """COUNT, in a form that compilers do not know to be constant: they would unroll the loop, and spill."""
    return 1 if COUNT == 1 else COUNT * tl.minimum(heads, 1)


@triton.jit
def of_axes(z, y, x, AXES: tl.constexpr):
    """A place, of the axes that there are."""
    return (z, y, x) if AXES == 3 else (y, x)


@triton.jit
def axes_of(
    size_z, cycle_z, shift_z, seam_z, size_y, cycle_y, shift_y, seam_y, size_x, cycle_x, shift_x, seam_x,
    AXES: tl.constexpr,
):  # fmt: skip
    """The axes that there are of a map."""
    y, x = (size_y, cycle_y, shift_y, seam_y), (size_x, cycle_x, shift_x, seam_x)
    return ((size_z, cycle_z, shift_z, seam_z), y, x) if AXES == 3 else (y, x)


@triton.jit
def plus(a, b):
    """The sum of two places."""
    if len(a) == 3:
        return a[0] + b[0], a[1] + b[1], a[2] + b[2]
    else:
        return a[0] + b[0], a[1] + b[1]


@triton.jit
def minus(a, b):
    """The difference of two places."""
    if len(a) == 3:
        return a[0] - b[0], a[1] - b[1], a[2] - b[2]
    else:
        return a[0] - b[0], a[1] - b[1]


@triton.jit
def place_of(row, x, sides):
    """A place from its row, of a volume the folded one, and column. `sides`: of the window or grid it lies in."""
    return (row // sides[1], row % sides[1], x) if len(sides) == 3 else (row, x)


@triton.jit
def place_in_window(o, TOKENS: tl.constexpr, sides, N: tl.constexpr):
    """Tokens o of a tile of N windows of TOKENS tokens, with these sides: place, slot, whether they exist."""
    columns = sides[len(sides) - 1]
    if N == 1:
        return place_of(o // columns, o % columns, sides), 0, o < TOKENS
    else:
        return place_of(o % TOKENS // columns, o % columns, sides), o // TOKENS, o < N * TOKENS


@triton.jit
def masked(token, m):
    """Tokens with another mask."""
    place, slot, _ = token
    return place, slot, m


@triton.jit
def window_of(token, first, grid, N: tl.constexpr):
    """Window of tokens of the group that begins at window `first`, and the mask of those whose window exists."""
    _, slot, m_token = token
    counts, windows = grid
    index, nx = first + slot, counts[len(counts) - 1]
    per_image = counts[0] * counts[1] * nx if len(counts) == 3 else counts[0] * nx

    o_grid = index % per_image
    window = index // per_image, place_of(o_grid // nx, o_grid % nx, counts)

    # Only a group of several windows can reach past the last one.
    m_live = m_token if N == 1 else m_token & (index < windows)
    return window, m_live


@triton.jit
def row_in_map(u, axis):
    """Row of the map at row u of the rolled map, whether there is one, whether u lies past the seam."""
    size, cycle, shift, seam = axis
    o = u + shift
    o = tl.where(o >= cycle, o - cycle, o)
    return o, (u >= 0) & (u < cycle) & (o < size), u >= seam


@triton.jit
def place_in_map(window, token, m_live, axes, step, halo):
    """Pixel of tokens, those of m_live that lie in the map, whether they lie past the seam of each axis.

    step, halo: from one window's rows to the next's; rows of a window before its own
    """
    image, w = window
    place, _, _ = token
    Y: tl.constexpr = len(axes) - 2
    X: tl.constexpr = len(axes) - 1

    o_y, m_y, past_y = row_in_map(w[Y] * step[Y] + place[Y] - halo[Y], axes[Y])
    o_x, m_x, past_x = row_in_map(w[X] * step[X] + place[X] - halo[X], axes[X])
    m_map = m_live & m_y & m_x
    if len(axes) == 3:
        o_z, m_z, past_z = row_in_map(w[0] * step[0] + place[0] - halo[0], axes[0])
        size_y, _, _, _ = axes[Y]
        return (image, o_z * size_y + o_y, o_x), m_map & m_z, (past_z, past_y, past_x)
    else:
        return (image, o_y, o_x), m_map, (past_y, past_x)


@triton.jit
def rows_and_columns(axes):
    """Of a map; of a volume the folded rows."""
    if len(axes) == 3:
        return axes[0][0] * axes[1][0], axes[2][0]
    else:
        return axes[0][0], axes[1][0]


@triton.jit
def code_of(token, past, m, NOTHING: tl.constexpr):
    """Codes of tokens; NOTHING where m is false."""
    _, slot, _ = token
    if len(past) == 3:
        code = slot * 8 + past[0].to(tl.int32) * 4 + past[1].to(tl.int32) * 2 + past[2].to(tl.int32)
    else:
        code = slot * 4 + past[0].to(tl.int32) * 2 + past[1].to(tl.int32)
    return tl.where(m, code, NOTHING * (len(past) - 1))  # of a slot of its own with three bits too


@triton.jit
def key_code_of(token, past, m, BLOCK_D: tl.constexpr):
    """Codes of keys, by way of a reduction: compilers move its result between the layouts of tiles.

    Of plain arithmetic they make copies for each layout, whose intermediate values fill the registers.
    """
    code = code_of(token, past, m, NO_KEY)
    return tl.max(tl.broadcast_to(code[:, None], (code.shape[0], BLOCK_D)), 1)


@triton.jit
def vector_addresses(p, strides, pixel, head, BLOCK_D: tl.constexpr, VEC: tl.constexpr):
    """Of the head's vectors at some pixels [tokens, BLOCK_D]."""
    stride_b, stride_y, stride_x, stride_h, stride_d = strides
    image, o_y, o_x = pixel
    o_head = image.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    o = o_head + o_y.to(tl.int64) * stride_y + o_x.to(tl.int64) * stride_x

    # A hint, not arithmetic on the strides, which would move them from the constants of a launch into registers.
    o = tl.multiple_of(o, VEC)
    return p + o[:, None] + (tl.arange(0, BLOCK_D).to(tl.int64) * stride_d)[None, :]


@triton.jit
def vector_mask(m, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Mask [tokens, BLOCK_D] of tokens."""
    return m[:, None] if D == BLOCK_D else m[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]


@triton.jit
def load_vectors(p, strides, pixel, head, m, D: tl.constexpr, BLOCK_D: tl.constexpr, VEC: tl.constexpr):
    """The head's vectors at some pixels [tokens, BLOCK_D], 0 where m is false."""
    p_vectors = vector_addresses(p, strides, pixel, head, BLOCK_D, VEC)
    return tl.load(p_vectors, mask=vector_mask(m, D, BLOCK_D), other=0.0)


@triton.jit
def store_vectors(p, strides, pixel, head, m, b, D: tl.constexpr, BLOCK_D: tl.constexpr, VEC: tl.constexpr):
    """The head's vectors b [tokens, BLOCK_D] to some pixels, in the dtype there, where m is true."""
    p_vectors = vector_addresses(p, strides, pixel, head, BLOCK_D, VEC)
    tl.store(p_vectors, b.to(p.dtype.element_ty), mask=vector_mask(m, D, BLOCK_D))


@triton.jit
def padded_with(b_x, m, p_pad, head, D: tl.constexpr, BLOCK_D: tl.constexpr, PAD: tl.constexpr):
    """Vectors [BLOCK_N, BLOCK_D], with PAD those outside the map (m) replaced by the head's of p_pad (heads, D)."""
    if PAD:
        o_d = tl.arange(0, BLOCK_D)
        b_pad = tl.load(p_pad + head * D + o_d, mask=o_d < D, other=0.0).to(b_x.dtype)
        b_x = tl.where(m[:, None], b_x, b_pad[None, :])
    return b_x


@triton.jit
def load_keys_and_values(
    p_k, p_v, p_pad_k, p_pad_v, k_strides, v_strides, pixel, head, m,
    D: tl.constexpr, BLOCK_D: tl.constexpr, VEC: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """The head's keys and values at some pixels [BLOCK_N, BLOCK_D], padded where they lie outside the map (m)."""
    # All addresses before the first load: in another order some kernels spill.
    m_vectors = vector_mask(m, D, BLOCK_D)
    p_keys = vector_addresses(p_k, k_strides, pixel, head, BLOCK_D, VEC)
    p_values = vector_addresses(p_v, v_strides, pixel, head, BLOCK_D, VEC)

    b_k = padded_with(tl.load(p_keys, mask=m_vectors, other=0.0), m, p_pad_k, head, D, BLOCK_D, PAD)
    b_v = padded_with(tl.load(p_values, mask=m_vectors, other=0.0), m, p_pad_v, head, D, BLOCK_D, PAD)
    return b_k, b_v


@triton.jit
def load_queries_and_gradients(
    p_q, p_g, q_strides, g_strides, pixel, head, m,
    D: tl.constexpr, BLOCK_D: tl.constexpr, VEC: tl.constexpr, GVEC: tl.constexpr,
):  # fmt: skip
    """The head's queries, and gradients of their results, at some pixels [BLOCK_M, BLOCK_D], 0 where m is false."""
    m_vectors = vector_mask(m, D, BLOCK_D)
    p_queries = vector_addresses(p_q, q_strides, pixel, head, BLOCK_D, VEC)
    p_gradients = vector_addresses(p_g, g_strides, pixel, head, BLOCK_D, GVEC)
    return tl.load(p_queries, mask=m_vectors, other=0.0), tl.load(p_gradients, mask=m_vectors, other=0.0)


@triton.jit
def head_rows(pixel, head, heads, size):
    """Places of queries in a contiguous (B, heads, H, W); size (H, W)."""
    image, o_y, o_x = pixel
    size_y, size_x = size
    return ((image.to(tl.int64) * heads + head) * size_y + o_y) * size_x + o_x


@triton.jit
def out_addresses(p_out, pixel, head, heads, size, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Of the head's vectors [BLOCK_M, BLOCK_D] in the contiguous result (B, H, W, heads, D); size (H, W)."""
    image, o_y, o_x = pixel
    size_y, size_x = size
    o_out = ((image.to(tl.int64) * size_y + o_y) * size_x + o_x) * heads + head
    return p_out + (o_out * D)[:, None] + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_bias(p_bias, steps, head, query, key, N: tl.constexpr, ACC: tl.constexpr):
    """Bias [BLOCK_M, BLOCK_N] of queries and keys (tokens), in base 2; 0 where they are not of the same window."""
    start, step_h, step_q, step_k = steps
    q, q_slot, m_q = query
    k, k_slot, m_k = key
    m_pair = m_q[:, None] & m_k[None, :]
    if N > 1:
        m_pair = m_pair & (q_slot[:, None] == k_slot[None, :])

    p_head = p_bias + head.to(tl.int64) * step_h + start
    o_bias = offset_of(q, step_q)[:, None] + offset_of(k, step_k)[None, :]
    return tl.load(p_head + o_bias, mask=m_pair, other=0.0).to(ACC) * LOG2E


@triton.jit
def offset_of(place, step):
    """Of places in what has these steps along its axes."""
    Y: tl.constexpr = len(step) - 2
    o = place[Y] * step[Y] + place[Y + 1] * step[Y + 1]
    return o + place[0] * step[0] if len(step) == 3 else o


@triton.jit
def scores(b_qk, b_bias, q_code, k_code, factor, b_seam, BIAS: tl.constexpr, SOFT: tl.constexpr, AXES: tl.constexpr):
    """Scores [BLOCK_M, BLOCK_N] from q k^T, minus infinity where the query does not see the key.

    Every kernel must have the same bits, or lse does not fit what a backward recomputes. The fma is written out, for
    the compiler's choice of which product goes into which sum differs from kernel to kernel.

    factor, b_seam: of the products; of keys past the seam; in base 2, too
    """
    b_s = tl.fma(b_qk, factor, b_bias if BIAS else tl.zeros_like(b_qk))

    m_same = q_code[:, None] == k_code[None, :]
    if SOFT:
        b_s = tl.where(m_same, b_s, b_s + b_seam)
        m_same = (q_code >> AXES)[:, None] == (k_code >> AXES)[None, :]  # the slots

    return tl.where(m_same, b_s, EMPTY)


@triton.jit
def load_lse(p_lse, o, m):
    """0 of a query without a key: all of its probabilities are exp2(-inf)."""
    b_lse = tl.load(p_lse + o, mask=m, other=0.0)
    return tl.where(b_lse == EMPTY, 0.0, b_lse)


@triton.jit
def inverse_of(b_l):
    """1 / sums of probabilities; 1 of a query without a key."""
    return 1.0 / tl.where(b_l == 0.0, 1.0, b_l)


@triton.jit
def store_pad(p_dpad, program, PART: tl.constexpr, b_sum, head, heads, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A program's sum [BLOCK_D] of one head over what lies outside the map; PART 0 is of keys, 1 of values."""
    o_d = tl.arange(0, BLOCK_D)
    tl.store(p_dpad + ((program.to(tl.int64) * 2 + PART) * heads + head) * D + o_d, b_sum, mask=o_d < D)


@triton.jit
def store_tile(p_tiles, index, o_y, o_x, b_tile, TILES: tl.constexpr, KEY_TILES: tl.constexpr):
    """Tile (o_y, o_x) of matrix `index` of TILES x KEY_TILES tiles, which are stored whole: neither masks nor places
    outlive the loop before.
    """
    BLOCK_M: tl.constexpr = b_tile.shape[0]
    BLOCK_N: tl.constexpr = b_tile.shape[1]
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)

    p_tile = p_tiles + index.to(tl.int64) * (TILES * BLOCK_M * KEY_TILES * BLOCK_N)
    p_tile += o_y * (BLOCK_M * KEY_TILES * BLOCK_N) + o_x * BLOCK_N
    tl.store(p_tile + (o_m * (KEY_TILES * BLOCK_N))[:, None] + o_n[None, :], b_tile)


@triton.jit
def load_tile(p_tiles, index, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tile `index` [BLOCK_M, BLOCK_N] of whole tiles, one after the other."""
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    return tl.load(p_tiles + index.to(tl.int64) * (BLOCK_M * BLOCK_N) + (o_m * BLOCK_N)[:, None] + o_n[None, :])


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
def place_near(place, near, CORE: tl.constexpr, HALO: tl.constexpr, m):
    """Where keys lie on an axis of a window that is `near` windows away, halo included; those of m that it sees."""
    o = place - near * CORE + HALO
    return o, m & (o >= 0) & (o < CORE + 2 * HALO)


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
