"""What the kernels of windowed cross-scale attention load, make and store of a tile: vectors, biases, scores.

Scores are in units of log 2 (base 2), so that exp2 serves. Tuples besides those of ``cross_scale_attention_windows``:
    strides  along image, row, column, head and channel    steps (start, of head, of query, of key)  of a bias
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
EMPTY = tl.constexpr(float("-inf"))


@triton.jit
def sum_of(high, rest, ACC: tl.constexpr):
    """A number that comes as two float32."""
    return tl.cast(high, ACC) + tl.cast(rest, ACC)


@triton.jit
def runtime_count(COUNT: tl.constexpr, heads):
    """COUNT, in a form that compilers do not know to be constant: they would unroll the loop, and spill."""
    return 1 if COUNT == 1 else COUNT * tl.minimum(heads, 1)


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
