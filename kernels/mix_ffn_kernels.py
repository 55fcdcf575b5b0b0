"""Kernels of mix_ffn: the math that they all follow, what they share, and the forward.

    z = LayerNorm_C(t)    u = z w1^T + bias1    v = u + depthwise3x3(u) + bias_conv
    n = (v - mean) rstd over D    h = n inner_gamma + inner_beta    a = GELU(h)    y = t + a w2^T + bias2

Every norm, skip, residual, bias and affine parameter may be absent: a pointer is None, or a flag is off. Without the
inner norm h = v. The skip is one more on the middle tap. Backward, from dy:

    da = dy w2    dh = da GELU'(h)    dn = dh inner_gamma
    dv = (dn - c1 - n c2) rstd,  c1, c2 = means of dn, dn n over D
    du = dv + depthwise3x3^T(dv)    dz = du w1    dt = dy + LayerNorm_C's backward of dz
    dw2 = dy^T a    dconv[k] = sum over pixels p of u[p + k] dv[p]    dw1 = du^T z    vectors: sums over pixels

Two passes forward: t -> u, which goes to memory once, and (u, t) -> y. The second can gather mean and variance of every
channel of y on the way, for a batch norm that follows.

The instructions that these kernels issue bind them more than the bytes that they move, and a convolution issues most.
So a norm over D, which needs all of v before any of n, keeps v of its tile in a scratch memory of the program's own,
small enough for the card's cache, instead of convolving twice. Inner tiles, whose pixels' neighbours are all in the
image, have code of their own without masks.

Feature maps are channels last and contiguous: t, y, dy, dt (B, H, W, C). The hidden activations u and their gradient dv
(B, R, W, D) are row buffers: row y of an image lies at y % R, so that a strip of rows can be worked on with little
memory. Where a buffer holds all H rows R is None, and nothing is computed modulo R.

A program takes tiles of TILE_H x TILE_W pixels. Sums over channels (norms, products over D) stay in a program that
walks along the channels of its tiles; sums over pixels (gradients of weights) in one that owns BLOCK_D channels and
walks along tiles. Sums across programs are stored as partial sums, which a last kernel adds in order.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. P = TILE_H TILE_W in the shapes of comments.
Arguments that kernels share:
    p_t, p_y, p_dy, p_dt, p_u, p_dv: the feature maps above    p_inner (2, B, H, W): mean and rstd of the inner norm
    p_w1 (D, C), p_w2 (C, D), p_conv (D, 9), contiguous: in the dtype of products, which u and dv have too
    p_vectors (12, PAD_D): what there is of each hidden channel, see ``store_vectors``; made by ``expand_kernel``
    p_scratch (programs, P, D in whole blocks): of the inner norm, in the dtype of products; None without it
    p_bias1, p_bias_conv (D), p_bias2 (C): biases    p_gamma, p_beta (C): the op's norm
    p_inner_gamma, p_inner_beta (D): its inner norm; every vector is None if absent
    row_begin, row_end: rows of every image to compute    H, W: of an image    R: rows of a row buffer, None for H
    tiles_y, tiles_x: tiles that cover those rows, and the columns    tiles: of all images    pixels: B H W
    is_first_strip: 1 where partial sums hold nothing yet (the first strip), else 0    eps: of the norms
    c_end: C at run time: with a constant bound the compiler unrolls the loop over a product's pieces, and spills
    C, D: channels, hidden channels; constexpr, so that rows are read wide    PAD_D: power of 2 >= D
    BLOCK_C: power of 2 >= C    BLOCK_D: hidden channels at a time (o_d)
    BLOCK_K: channels of a product over C at a time (o_k)
    TILE_H, TILE_W: rows and columns of a tile    NORM, INNER_NORM, INNER_SKIP, RESIDUAL: which of them there are
    PREC: input_precision of float32 products    ACC: dtype of sums
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.batch_statistics import add_block, load_moments, store_moments
from msformer_fast.kernels.blocks import add_dot, load_block, load_vector

# never specialised: a new size runs the code of the old one
SIZES = (
    *("row_begin", "row_end", "H", "W", "R", "tiles_y", "tiles_x", "tiles", "pixels", "is_first_strip", "c_end"),
    *("product_programs", "hidden_programs", "token_programs"),
)
_jit = triton.jit(do_not_specialize=SIZES)

# Rows of the hidden channels' vectors behind the nine taps.
BIAS_CONV: tl.constexpr = tl.constexpr(9)
INNER_GAMMA: tl.constexpr = tl.constexpr(10)
INNER_BETA: tl.constexpr = tl.constexpr(11)


@triton.jit
def place_of(index, tiles_y, tiles_x):
    """A tile's image, and its row and column among the tiles of the image."""
    row = index // tiles_x
    return row // tiles_y, row % tiles_y, index % tiles_x


@triton.jit
def moved(place, step, tiles_y, tiles_x):
    """The place ``step`` tiles further on, itself the place of that number, without a division."""
    image, y, x = place[0] + step[0], place[1] + step[1], place[2] + step[2]
    y, x = tl.where(x >= tiles_x, y + 1, y), tl.where(x >= tiles_x, x - tiles_x, x)
    return tl.where(y >= tiles_y, image + 1, image), tl.where(y >= tiles_y, y - tiles_y, y), x


@triton.jit
def tile_at(place, row_begin, row_end, H, W, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """A tile of TILE_H x TILE_W pixels: image (int64), its first row and column, rows, columns and mask [P] of its
    pixels, and whether it is an inner one."""
    i = tl.arange(0, TILE_H * TILE_W)
    image, y, x = place[0].to(tl.int64), row_begin + place[1] * TILE_H, place[2] * TILE_W
    o_y, o_x = y + i // TILE_W, x + i % TILE_W
    inner = (y > 0) & (x > 0) & (y + TILE_H <= row_end) & (y + TILE_H < H) & (x + TILE_W < W)
    return image, y, x, o_y, o_x, (o_y < row_end) & (o_x < W), inner


@triton.jit
def tile_of(index, row_begin, row_end, H, W, tiles_y, tiles_x, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """A tile by its number, see ``tile_at``."""
    return tile_at(place_of(index, tiles_y, tiles_x), row_begin, row_end, H, W, TILE_H, TILE_W)


@triton.jit
def mask_of(tile):
    """Mask [P] of a tile's pixels that lie in the image and in the rows to compute."""
    return tile[5]


@triton.jit
def is_inner(tile):
    """Whether all pixels of a tile are in the rows to compute, and all their neighbours in the image."""
    return tile[6]


@triton.jit
def pixels_of(tile, H, W):
    """Offsets [P] of a tile's pixels in a feature map, in pixels."""
    image, _, _, o_y, o_x, _, _ = tile
    return (image * H + o_y) * W + o_x


@triton.jit
def hidden_of(p_map, tile, o_d, H, R, W, D: tl.constexpr):
    """Pointers [P, BLOCK_D] to channels o_d of a tile's pixels in a row buffer.

    From the tile's first pixel on offsets of 32 bits are enough, which take half the registers.
    """
    image, y, x, o_y, o_x, _, _ = tile
    if R is None:
        row, o_row = image * H + y, o_y - y
    else:
        row, o_row = image * R + y % R, o_y % R - y % R
    p_tile = p_map + (row * W + x) * D
    return p_tile + ((o_row * W + (o_x - x)) * D)[:, None] + o_d[None, :]


@triton.jit
def load_channels(p_map, o_first, m_p, o_c, N: tl.constexpr):
    """Channels o_c of N of some pixels [P, channels], 0 outside. o_first: offsets in elements of their channels 0."""
    return load_block(p_map, o_first, o_c, m_p, o_c < N)


@triton.jit
def load_weight(
    p, o_row, o_col,
    stride_row: tl.constexpr, stride_col: tl.constexpr, N_ROW: tl.constexpr, N_COL: tl.constexpr,
):  # fmt: skip
    """A block [rows, columns] of a weight of N_ROW x N_COL, 0 outside; its transpose by its strides."""
    m_w = (o_row < N_ROW)[:, None] & (o_col < N_COL)[None, :]
    return tl.load(p + o_row[:, None] * stride_row + o_col[None, :] * stride_col, mask=m_w, other=0.0)


@triton.jit
def load_scale(p, o, N: tl.constexpr, ACC: tl.constexpr):
    """Some of the N entries of a norm's weight; 1 if it is absent, but 0 beyond N always, as sums over padded channels
    need it (``load_vector`` would give 1 there)."""
    b = tl.where(o < N, 1.0, 0.0).to(ACC)
    if p is not None:
        b = tl.load(p + o, mask=o < N, other=0.0).to(ACC)
    return b


@triton.jit
def token_statistics(p_t, o_t, m_p, eps, C: tl.constexpr, BLOCK_C: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr):
    """Mean and 1 / standard deviation [P] of each token, two passes in registers; 0 and 1 without the norm."""
    b_mean, b_rstd = tl.zeros((o_t.shape[0],), ACC), tl.zeros((o_t.shape[0],), ACC) + 1.0
    if NORM:
        o_c = tl.arange(0, BLOCK_C)
        b_t = load_channels(p_t, o_t, m_p, o_c, C).to(ACC)  # [P, BLOCK_C]

        b_mean = tl.sum(b_t, 1) / C
        b_t = tl.where((o_c < C)[None, :], b_t - b_mean[:, None], 0.0)
        b_rstd = 1.0 / tl.sqrt(tl.sum(b_t * b_t, 1) / C + eps)

    return b_mean, b_rstd


@triton.jit
def normed_tokens(
    p_t, p_gamma, p_beta, o_t, m_p, o_c, b_mean, b_rstd,
    C: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Some channels of z [P, channels], 0 beyond C."""
    b_z = load_channels(p_t, o_t, m_p, o_c, C).to(ACC)
    if NORM:
        b_z = (b_z - b_mean[:, None]) * (b_rstd[:, None] * load_scale(p_gamma, o_c, C, ACC)[None, :])
        b_z += load_vector(p_beta, o_c, C, 0.0, ACC)[None, :]
    return b_z


@triton.jit
def store_vectors(
    p_vectors, p_conv, p_bias_conv, p_inner_gamma, p_inner_beta,
    D: tl.constexpr, PAD_D: tl.constexpr, BLOCK_D: tl.constexpr, INNER_SKIP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Vectors of the hidden channels in the dtype of sums, 0 beyond D, so that every tile reads them wide and unmasked:
    the nine taps of the convolution, the skip included, its bias, weight and bias of the inner norm."""
    for d in range(0, PAD_D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        for k in range(9):
            b_w = tl.load(p_conv + o_d * 9 + k, mask=o_d < D, other=0.0).to(ACC)
            if INNER_SKIP:
                b_w += tl.where((k == 4) & (o_d < D), 1.0, 0.0)
            tl.store(p_vectors + k * PAD_D + o_d, b_w)
        tl.store(p_vectors + BIAS_CONV * PAD_D + o_d, load_vector(p_bias_conv, o_d, D, 0.0, ACC))
        tl.store(p_vectors + INNER_GAMMA * PAD_D + o_d, load_scale(p_inner_gamma, o_d, D, ACC))
        tl.store(p_vectors + INNER_BETA * PAD_D + o_d, load_vector(p_inner_beta, o_d, D, 0.0, ACC))


@triton.jit
def load_hidden(p_vectors, row, o_d, PAD_D: tl.constexpr):
    """A vector of the hidden channels [1, BLOCK_D]: a tap by its number, or one of the rows above."""
    return tl.load(p_vectors + row * PAD_D + o_d)[None, :]


@triton.jit
def taps_of(tile, H, W, R):
    """What the taps of a tile share: bits, and offsets of the rows above and below in a row buffer, in rows [P].

    Bit k is set where the neighbour (o_y + k // 3 - 1, o_x + k % 3 - 1) lies in the image.
    """
    _, _, _, o_y, o_x, m_p, _ = tile
    b_row = (o_x > 0).to(tl.int32) | 2 | ((o_x < W - 1).to(tl.int32) << 2)
    b_bits = tl.where(o_y > 0, b_row, 0) | (b_row << 3) | (tl.where(o_y < H - 1, b_row, 0) << 6)
    b_bits = tl.where(m_p, b_bits, 0)

    o_above, o_below = tl.full(o_y.shape, -1, tl.int32), tl.full(o_y.shape, 1, tl.int32)
    if R is not None:  # the buffer's last row lies above its first
        o_above = tl.where(o_y % R == 0, R - 1, -1)
        o_below = tl.where(o_y % R == R - 1, 1 - R, 1)
    return b_bits, o_above, o_below


@triton.jit
def tap(
    p_block, taps, o_d, k, W, R,
    D: tl.constexpr, INNER: tl.constexpr, WHOLE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Tap k of some pixels [P, BLOCK_D]; 0 outside the image. p_block: pointers to the pixels themselves.

    INNER: of an inner tile, see ``is_inner``    WHOLE: all channels o_d exist
    """
    b_bits, o_above, o_below = taps
    if R is None:
        p_tap = (p_block + (k // 3 - 1) * W * D) + (k % 3 - 1) * D  # a pointer a row; columns are part of the load
    else:
        o_row = tl.where(k < 3, o_above, tl.where(k < 6, 0, o_below))
        p_tap = p_block + ((o_row * W + (k % 3 - 1)) * D)[:, None]
    if INNER:
        b_tap = tl.load(p_tap) if WHOLE else tl.load(p_tap, mask=(o_d < D)[None, :], other=0.0)
    else:
        m_tap = ((b_bits >> k) & 1) != 0
        b_tap = tl.load(p_tap, mask=m_tap[:, None] & (o_d < D)[None, :], other=0.0)
    return b_tap.to(ACC)


@triton.jit
def stencil(
    p_map, p_vectors, tile, o_d, H, W, R,
    D: tl.constexpr, PAD_D: tl.constexpr, FLIP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The depthwise convolution with the skip [P, BLOCK_D], without its bias; FLIP: its transpose."""
    taps, p_block = taps_of(tile, H, W, R), hidden_of(p_map, tile, o_d, H, R, W, D)
    b_sum = tl.zeros(p_block.shape, ACC)
    BLOCK_D: tl.constexpr = o_d.shape[0]
    WHOLE: tl.constexpr = D // BLOCK_D * BLOCK_D == D

    # Most tiles are inner ones, whose taps need no mask and no zeros. The loop of the others is not unrolled, for else
    # the compiler would convert every tap, not their sum, to the layout of a product.
    if is_inner(tile):
        for k in tl.static_range(9):
            b_w = load_hidden(p_vectors, (8 - k) if FLIP else k, o_d, PAD_D)
            b_sum += tap(p_block, taps, o_d, k, W, R, D, True, WHOLE, ACC) * b_w
    else:
        for k in range(9):
            b_w = load_hidden(p_vectors, (8 - k) if FLIP else k, o_d, PAD_D)
            b_sum += tap(p_block, taps, o_d, k, W, R, D, False, WHOLE, ACC) * b_w

    return b_sum


@triton.jit
def convolved(p_u, p_vectors, tile, o_d, H, W, R, D: tl.constexpr, PAD_D: tl.constexpr, ACC: tl.constexpr):
    """v [P, BLOCK_D] from u."""
    b_v = stencil(p_u, p_vectors, tile, o_d, H, W, R, D, PAD_D, FLIP=False, ACC=ACC)
    return b_v + load_hidden(p_vectors, BIAS_CONV, o_d, PAD_D)


@triton.jit
def inner_norm(b_v, b_mean, b_rstd, p_vectors, o_d, PAD_D: tl.constexpr, INNER_NORM: tl.constexpr):
    """n and h [P, BLOCK_D] from v; both are v without the norm."""
    b_n, b_h = b_v, b_v
    if INNER_NORM:
        b_n = (b_v - b_mean[:, None]) * b_rstd[:, None]
        b_h = b_n * load_hidden(p_vectors, INNER_GAMMA, o_d, PAD_D) + load_hidden(p_vectors, INNER_BETA, o_d, PAD_D)
    return b_n, b_h


@triton.jit
def normal_cdf(b_h):
    """Of the standard normal distribution: GELU(h) = h cdf(h).

    In float32 cdf(-x) = 2^-G(x) for x >= 0, G a polynomial of degree 8 fitted to -log2 cdf(-x) on [0, 6] so that the
    largest absolute error of the cdf is least, and 1 at 0: 8e-9, and 4e-8 with the rounding of float32. Its leading
    coefficient is positive, so that the cdf goes to 0 beyond. Half of the instructions of an erf.
    """
    if b_h.dtype == tl.float64:
        return 0.5 + 0.5 * tl.erf(b_h * 0.7071067811865476)
    b_x = tl.abs(b_h)
    b_g = 2.8349129485251423e-06 * b_x - 3.9377686890355344e-05
    b_g = b_g * b_x + 0.00018618019727415443
    b_g = b_g * b_x + 0.00013693651882167138
    b_g = b_g * b_x - 0.007063420362912466
    b_g = b_g * b_x + 0.05249617852789774
    b_g = b_g * b_x + 0.45920819659962897
    b_g = b_g * b_x + 1.1511052053099222
    b_tail = tl.exp2(-1.0 - b_g * b_x)  # cdf(-|h|)
    return tl.where(b_h < 0.0, b_tail, 1.0 - b_tail)


@triton.jit
def scratch_of(p_scratch, o_d, P: tl.constexpr, D: tl.constexpr):
    """Pointers [P, BLOCK_D] to channels o_d of a tile in this program's part of the scratch memory."""
    BLOCK_D: tl.constexpr = o_d.shape[0]
    ROW: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D * BLOCK_D
    p_tile = p_scratch + tl.program_id(0).to(tl.int64) * (P * ROW)
    return p_tile + (tl.arange(0, P) * ROW)[:, None] + o_d[None, :]


@_jit
def expand_kernel(
    p_t, p_gamma, p_beta, p_w1, p_bias1, p_conv, p_bias_conv, p_inner_gamma, p_inner_beta, p_u, p_vectors,
    row_begin, row_end, H, W, R, tiles_y, tiles_x, c_end, eps,
    C: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, NORM: tl.constexpr, INNER_SKIP: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """u: t read once, u written once; and the hidden channels' vectors, by the first program. Grid: tiles.

    p_vectors: None where they are there already
    """
    tile = tile_of(tl.program_id(0), row_begin, row_end, H, W, tiles_y, tiles_x, TILE_H, TILE_W)
    m_p = mask_of(tile)
    o_t = pixels_of(tile, H, W) * C
    b_mean, b_rstd = token_statistics(p_t, o_t, m_p, eps, C, BLOCK_C, NORM, ACC)

    # Where a product takes all channels at once, the tokens stay in registers; else they are read again in pieces.
    if BLOCK_K >= C:
        o_c = tl.arange(0, BLOCK_K)
        b_z = normed_tokens(p_t, p_gamma, p_beta, o_t, m_p, o_c, b_mean, b_rstd, C, NORM, ACC)  # [P, BLOCK_K]
        b_z = b_z.to(p_u.dtype.element_ty)

    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        b_u = tl.zeros((TILE_H * TILE_W, BLOCK_D), ACC) + load_vector(p_bias1, o_d, D, 0.0, ACC)[None, :]

        if BLOCK_K >= C:
            b_w = load_weight(p_w1, o_c, o_d, stride_row=1, stride_col=C, N_ROW=C, N_COL=D)  # [BLOCK_K, BLOCK_D]
            b_u = add_dot(b_z, b_w, b_u, PREC, ACC)
        else:
            for c in range(0, c_end, BLOCK_K):
                o_k = c + tl.arange(0, BLOCK_K)
                b_z_piece = normed_tokens(p_t, p_gamma, p_beta, o_t, m_p, o_k, b_mean, b_rstd, C, NORM, ACC)
                b_w = load_weight(p_w1, o_k, o_d, stride_row=1, stride_col=C, N_ROW=C, N_COL=D)
                b_u = add_dot(b_z_piece.to(p_u.dtype.element_ty), b_w, b_u, PREC, ACC)

        m_u = m_p[:, None] & (o_d < D)[None, :]
        tl.store(hidden_of(p_u, tile, o_d, H, R, W, D), b_u.to(p_u.dtype.element_ty), mask=m_u)

    # Last: at the beginning some cards' compilers spill.
    if p_vectors is not None:
        is_first = tl.program_id(0) == 0
        if is_first:
            store_vectors(
                p_vectors, p_conv, p_bias_conv, p_inner_gamma, p_inner_beta, D, PAD_D, BLOCK_D, INNER_SKIP, ACC
            )


@_jit
def contract_kernel(
    p_t, p_u, p_vectors, p_w2, p_bias2, p_y, p_inner, p_scratch, p_moments,
    row_begin, row_end, H, W, R, tiles_y, tiles_x, tiles, pixels, is_first_strip, eps,
    C: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, INNER_NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y, the inner norm's statistics for the backward, and the moments of y. Grid: programs that share the tiles.

    With the inner norm there are two sweeps over the hidden channels of a tile: the first convolves and gathers the
    norm's statistics, merging blocks without cancellation; the second reads v back.
    p_moments None or (programs, 4, C): moments of this program's pixels, see ``batch_statistics``; the shift is the
    mean of its first tile
    """
    o_c = tl.arange(0, BLOCK_C)

    # Moments of the strips before, of the first one zeros.
    n = tl.zeros((), ACC)
    b_shift, b_mean_y, b_m2_y = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    if p_moments is not None:
        n, b_shift, b_mean_y, b_m2_y = load_moments(p_moments, o_c, o_c < C * (1 - is_first_strip), C)

    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        tile = tile_of(index, row_begin, row_end, H, W, tiles_y, tiles_x, TILE_H, TILE_W)
        o_p, m_p = pixels_of(tile, H, W), mask_of(tile)

        # First sweep: mean and variance of v over D, from sums of v less the mean of its first block and of the square
        # of that: the variance loses no more than D / BLOCK_D times a rounding. The sums stay [P, BLOCK_D] until the
        # end: nothing is reduced across threads inside the loop.
        b_mean, b_rstd = tl.zeros((TILE_H * TILE_W,), ACC), tl.zeros((TILE_H * TILE_W,), ACC)  # unread without the norm
        if INNER_NORM:
            b_first = b_mean
            b_sum, b_squares = tl.zeros((TILE_H * TILE_W, BLOCK_D), ACC), tl.zeros((TILE_H * TILE_W, BLOCK_D), ACC)
            for d in range(0, D, BLOCK_D):
                o_d = d + tl.arange(0, BLOCK_D)
                b_v = convolved(p_u, p_vectors, tile, o_d, H, W, R, D, PAD_D, ACC)  # [P, BLOCK_D]
                tl.store(scratch_of(p_scratch, o_d, TILE_H * TILE_W, D), b_v.to(p_u.dtype.element_ty))

                if d == 0:
                    b_first = tl.sum(b_v, 1) / min(D, BLOCK_D)
                b_v -= b_first[:, None]
                if D % BLOCK_D != 0:
                    b_v = tl.where((o_d < D)[None, :], b_v, 0.0)
                b_sum += b_v
                b_squares += b_v * b_v

            b_mean = tl.sum(b_sum, 1) / D
            b_rstd = 1.0 / tl.sqrt(tl.sum(b_squares, 1) / D - b_mean * b_mean + eps)
            b_mean += b_first
            tl.store(p_inner + o_p, b_mean, mask=m_p)
            tl.store(p_inner + pixels.to(tl.int64) + o_p, b_rstd, mask=m_p)
            tl.debug_barrier()  # what a thread reads back another may have stored

        # Second sweep: norm, GELU and the product over D.
        b_y = tl.zeros((TILE_H * TILE_W, BLOCK_C), ACC)
        for d in range(0, D, BLOCK_D):
            o_d = d + tl.arange(0, BLOCK_D)
            if INNER_NORM:
                b_v = tl.load(scratch_of(p_scratch, o_d, TILE_H * TILE_W, D)).to(ACC)
            else:
                b_v = convolved(p_u, p_vectors, tile, o_d, H, W, R, D, PAD_D, ACC)

            _, b_h = inner_norm(b_v, b_mean, b_rstd, p_vectors, o_d, PAD_D, INNER_NORM)
            b_a = (b_h * normal_cdf(b_h)).to(p_w2.dtype.element_ty)  # [P, BLOCK_D]
            b_w = load_weight(p_w2, o_d, o_c, stride_row=1, stride_col=D, N_ROW=D, N_COL=C)  # [BLOCK_D, BLOCK_C]
            b_y = add_dot(b_a, b_w, b_y, PREC, ACC)

        if INNER_NORM:
            tl.debug_barrier()  # all have read before the next tile's v is stored

        b_y += load_vector(p_bias2, o_c, C, 0.0, ACC)[None, :]
        if RESIDUAL:
            b_y += load_channels(p_t, o_p * C, m_p, o_c, C).to(ACC)

        b_out, m_y = b_y.to(p_y.dtype.element_ty), m_p[:, None] & (o_c < C)[None, :]
        tl.store(p_y + (o_p * C)[:, None] + o_c[None, :], b_out, mask=m_y)

        # Of y as it is stored.
        if p_moments is not None:
            b_out = tl.where(m_y, b_out.to(ACC), 0.0)
            more = tl.sum(m_p.to(ACC), 0)
            b_shift = tl.where(n > 0, b_shift, tl.sum(b_out, 0) / more)
            b_mean_y, b_m2_y = add_block(n, b_shift, b_mean_y, b_m2_y, b_out, m_y, more)
            n += more

    if p_moments is not None:
        store_moments(p_moments, o_c, C, n, b_shift, b_mean_y, b_m2_y, BLOCK_C, ACC)
