"""Parts that the kernels of mix_ffn share, and the maths that they all follow.

    z = LayerNorm_C(t)    u = z w1^T + bias1    v = u + depthwise3x3(u) + bias_dw
    n = (v - mean) rstd over D    h = n gamma2 + beta2    a = GELU(h)    y = t + a w2^T + bias2

Every norm, skip, residual, bias and affine parameter may be absent: a pointer is None, or a flag is off. Without the
inner norm h = v. The skip is one more on the middle tap. Backward, from dy:

    da = dy w2    dh = da GELU'(h)    dn = dh gamma2    dv = (dn - c1 - n c2) rstd,  c1, c2 = means of dn, dn n over D
    du = dv + depthwise3x3^T(dv)    dz = du w1    dt = dy + LayerNorm_C's backward of dz
    dw2 = dy^T a    ddw[k] = sum over pixels p of u[p + k] dv[p]    dw1 = du^T z    vectors: sums over pixels

Maps are channels last and contiguous: t, y, dy, dt (B, H, W, C); the wide maps u, dv (B, R, W, D) are rings of rows.
Row y of an image lies in slot y % R, so that a strip of rows can be worked on with little memory; R = H holds all.

A program takes tiles of TH x TW pixels. Sums over channels (norms, products over D) stay in a program that walks along
the channels of its tiles; sums over pixels (gradients of weights) in one that owns BD channels and walks along tiles.
Sums across programs go to one slot a program, which a last kernel adds in order.

Shapes in comments: p pixels of a tile, c narrow and d wide channels. `b_` value of a block, `p_` pointer, `o_` offsets,
`m_` masks. Arguments that kernels share:
    row_begin, row_end: rows of every image to compute    H, W: of an image    R: slots of a ring
    tiles_y, tiles_x: tiles that cover those rows, and the columns    tiles: of all images
    first: 1 where slots hold nothing yet (the first strip), else 0    eps: LayerNorm's
    c_end: C at run time; a loop with a constant bound is unrolled, and spills
    p_w1 (D, C), p_w2 (C, D), p_dw (D, 9), contiguous: in the dtype of products, which u and dv have too
    p_inner (2, B, H, W): mean and rstd of the inner norm    pixels: B H W
    C, D: constexpr, so that rows are read wide    BC: power of 2 >= C    BK: step of sums over C
    PREC: input_precision of float32 products    ACC: dtype of sums
"""

from __future__ import annotations

import triton
import triton.language as tl

# never specialised: a new size runs the code of the old one
SIZES = (
    *("row_begin", "row_end", "H", "W", "R", "tiles_y", "tiles_x", "tiles", "pixels", "first", "c_end"),
    *("product_slots", "wide_slots", "token_slots", "slots"),
)


@triton.jit
def tile_of(index, row_begin, row_end, W, tiles_y, tiles_x, TH: tl.constexpr, TW: tl.constexpr):
    """Image (int64), rows, columns and validity (p) of a tile's pixels."""
    i = tl.arange(0, TH * TW)
    in_image = index % (tiles_y * tiles_x)
    o_y = row_begin + in_image // tiles_x * TH + i // TW
    o_x = in_image % tiles_x * TW + i % TW
    return (index // (tiles_y * tiles_x)).to(tl.int64), o_y, o_x, (o_y < row_end) & (o_x < W)


@triton.jit
def vector(p, o, N: tl.constexpr, ACC: tl.constexpr):
    """Some entries of a bias; 0 beyond N, and everywhere if it is absent."""
    b = tl.zeros((o.shape[0],), ACC)
    if p is not None:
        b = tl.load(p + o, mask=o < N, other=0.0).to(ACC)
    return b


@triton.jit
def factor(p, o, N: tl.constexpr, ACC: tl.constexpr):
    """Some entries of a norm's weight; 0 beyond N, and 1 below if it is absent."""
    b = tl.where(o < N, 1.0, 0.0).to(ACC)
    if p is not None:
        b = tl.load(p + o, mask=o < N, other=0.0).to(ACC)
    return b


@triton.jit
def rows_of(p, o_p, m_p, o_c, N: tl.constexpr):
    """Some channels of some pixels (p, c), 0 outside."""
    return tl.load(p + o_p[:, None] + o_c[None, :], mask=m_p[:, None] & (o_c < N)[None, :], other=0.0)


@triton.jit
def matrix(
    p,
    o_row,
    o_col,
    stride_row: tl.constexpr,
    stride_col: tl.constexpr,
    N_ROW: tl.constexpr,
    N_COL: tl.constexpr,
):
    """A block of a weight (rows, columns), 0 outside."""
    return tl.load(
        p + o_row[:, None] * stride_row + o_col[None, :] * stride_col,
        mask=(o_row < N_ROW)[:, None] & (o_col < N_COL)[None, :],
        other=0.0,
    )


@triton.jit
def token_statistics(p_t, o_t, m_p, eps, C: tl.constexpr, BC: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr):
    """Mean and 1 / standard deviation of each token (p), two passes in registers; 0 and 1 without the norm."""
    b_mean, b_rstd = tl.zeros((o_t.shape[0],), ACC), tl.zeros((o_t.shape[0],), ACC) + 1.0
    if NORM:
        o_c = tl.arange(0, BC)
        b_t = rows_of(p_t, o_t, m_p, o_c, C).to(ACC)
        b_mean = tl.sum(b_t, 1) / C
        b_t = tl.where((o_c < C)[None, :], b_t - b_mean[:, None], 0.0)
        b_rstd = 1.0 / tl.sqrt(tl.sum(b_t * b_t, 1) / C + eps)
    return b_mean, b_rstd


@triton.jit
def normed_tokens(
    p_t, p_gamma1, p_beta1, o_t, m_p, o_c, b_mean, b_rstd, C: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr
):
    """z (p, c), 0 beyond C."""
    b_z = rows_of(p_t, o_t, m_p, o_c, C).to(ACC)
    if NORM:
        b_z = (b_z - b_mean[:, None]) * (b_rstd[:, None] * factor(p_gamma1, o_c, C, ACC)[None, :])
        b_z += vector(p_beta1, o_c, C, ACC)[None, :]
    return b_z


@triton.jit
def tap_weight(p_dw, o_d, k, D: tl.constexpr, INNER_SKIP: tl.constexpr, ACC: tl.constexpr):
    """Tap k of the depthwise convolution, the skip included (d)."""
    b_w = tl.load(p_dw + o_d * 9 + k, mask=o_d < D, other=0.0).to(ACC)
    if INNER_SKIP:
        b_w += tl.where(k == 4, 1.0, 0.0)
    return b_w


@triton.jit
def tap(p_map, image, o_y, o_x, m_p, o_d, k, H, W, R, D: tl.constexpr, ACC: tl.constexpr):
    """The neighbours (o_y + k // 3 - 1, o_x + k % 3 - 1) of some pixels (p, d); 0 outside the image."""
    o_row, o_column = o_y + (k // 3 - 1), o_x + (k % 3 - 1)
    m_tap = m_p & (o_row >= 0) & (o_row < H) & (o_column >= 0) & (o_column < W)
    o_tap = ((image * R + (o_row + R) % R) * W + o_column) * D
    m_tap = m_tap[:, None] & (o_d < D)[None, :]
    return tl.load(p_map + o_tap[:, None] + o_d[None, :], mask=m_tap, other=0.0).to(ACC)


@triton.jit
def stencil(
    p_map,
    p_dw,
    image,
    o_y,
    o_x,
    m_p,
    o_d,
    H,
    W,
    R,
    D: tl.constexpr,
    FLIP: tl.constexpr,
    INNER_SKIP: tl.constexpr,
    ACC: tl.constexpr,
):
    """The depthwise convolution with the skip (p, d), without its bias; FLIP: its transpose."""
    b_sum = tl.zeros((o_y.shape[0], o_d.shape[0]), ACC)
    # Not unrolled here: the compiler would convert every tap, not their sum, to the layout of a product.
    for k in range(9):
        b_w = tap_weight(p_dw, o_d, (8 - k) if FLIP else k, D, INNER_SKIP, ACC)
        b_sum += tap(p_map, image, o_y, o_x, m_p, o_d, k, H, W, R, D, ACC) * b_w[None, :]
    return b_sum


@triton.jit
def inner_norm(
    b_v, b_mean, b_rstd, p_gamma2, p_beta2, o_d, D: tl.constexpr, INNER_NORM: tl.constexpr, ACC: tl.constexpr
):
    """n and h (p, d) from v; both are v without the norm."""
    b_n, b_h = b_v, b_v
    if INNER_NORM:
        b_n = (b_v - b_mean[:, None]) * b_rstd[:, None]
        b_h = b_n * factor(p_gamma2, o_d, D, ACC)[None, :] + vector(p_beta2, o_d, D, ACC)[None, :]
    return b_n, b_h


@triton.jit
def normal_cdf(b_h):
    """Of the standard normal distribution: GELU(h) = h cdf(h)."""
    return 0.5 + 0.5 * tl.erf(b_h * 0.7071067811865476)


@triton.jit
def gelu_slope(b_h):
    """GELU'(h)."""
    return normal_cdf(b_h) + b_h * tl.exp(-0.5 * b_h * b_h) * 0.3989422804014327


@triton.jit
def add_to_slot(p, m, b_sum, first):
    """Add to sums in a program's own slot, or begin them. Each launch writes a slot's entry once."""
    m_old = m & (tl.zeros(m.shape, tl.int32) + first == 0)
    b_old = tl.load(p, mask=m_old, other=0.0)

    # Several warps may hold a copy of the block, of which one stores: none may load after that.
    tl.debug_barrier()
    tl.store(p, b_sum + b_old, mask=m)
