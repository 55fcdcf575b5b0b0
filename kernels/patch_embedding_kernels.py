"""Kernels of the patch embedding: BatchNorm2d of the logits, two grids of patches, one Linear for both.

    y = (logits - mean) rstd gamma + beta        logits (B, K, H, W), any strides; mean, rstd, gamma, beta (K)
    q_t, k_t = weight x_t + bias                 weight (C, P P K), bias (C); x_t: y of a patch, as (p1, p2, c)

Patch (ty, tx) covers P x P pixels from (ty P + 1, tx P + 1) for q and from (ty P, tx P) for k: the grids of the map
without its first, or its last, row and column. Both have (H-1)//P x (W-1)//P patches. The patches are read in place,
the norm is applied where they are read, and q and k are rows of one product, so that the weight is read once for both.

Backward, with z = (logits - mean) rstd and g the gradients of q and k as rows of one matrix:
    G = g^T z    dweight = gamma G + beta dbias
    dgamma_c = sum over (d, p) weight G    dbeta_c = sum over (d, p) weight dbias_d
    dlogits = gamma rstd (dy - dbeta / n - z dgamma / n), n = B H W;  gamma rstd dy for constant statistics
The sums that BatchNorm's backward needs thus come from the pass that makes dweight, before dy itself exists.

Rows of the product are 2 B T patches: all of q, then all of k. Its columns are (p, c), a position in a patch and a
channel; a block of BLOCK_J of them is BLOCK_P positions times BLOCK_K channels.
`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share:
    p_logits, p_mean, p_rstd, p_gamma, p_beta, p_weight: as above    p_dbias (C), p_dbeta, p_dgamma (K)
    p_grad (2, B, T, C), contiguous: g    stride_l*: of the logits    stride_w*: of the weight, along rows, columns
    B, H, W: images, rows and columns of the logits    rows, columns: patches down, across    P: pixels of their sides
    K, C: channels of the logits, of q and k; constexpr, so that rows of the weight are read with wide accesses
    BLOCK_R: rows of the product, or pixels    BLOCK_D: rows of the weight
    ACC: dtype of sums    PREC: input_precision of products
Sums across programs: partial sums of each program, added in order by a second kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.blocks import add_dot, load_block, store_block
from msformer_fast.kernels.clustering_loss import logits_gradient

# never specialised: a new size runs the code of the old one
SIZES = ("B", "H", "W", "P", "rows", "columns", "pixels", "steps")


@triton.jit
def _load_norm(norm, o_k, m_k, ACC: tl.constexpr):
    """mean, rstd, gamma, beta of some channels; 0 where masked. norm: their pointers."""
    p_mean, p_rstd, p_gamma, p_beta = norm
    return (
        tl.load(p_mean + o_k, mask=m_k, other=0.0).to(ACC),
        tl.load(p_rstd + o_k, mask=m_k, other=0.0).to(ACC),
        tl.load(p_gamma + o_k, mask=m_k, other=0.0).to(ACC),
        tl.load(p_beta + o_k, mask=m_k, other=0.0).to(ACC),
    )


@triton.jit
def _columns_of(p_block, k_block, P, K, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr):
    """A block of columns: position, channel and validity of each [BLOCK_J]."""
    i = tl.arange(0, BLOCK_P * BLOCK_K)
    o_p, o_k = p_block * BLOCK_P + i // BLOCK_K, k_block * BLOCK_K + i % BLOCK_K
    return o_p, o_k, (o_p < P * P) & (o_k < K)


@triton.jit
def _load_patches(p_logits, o_r, column, grid, P, strides):
    """The logits [BLOCK_R, BLOCK_J] of some patches at a block of columns; 0 where masked. grid: B, rows, columns."""
    o_p, o_k, m_j = column
    B, rows, columns = grid
    stride_lb, stride_lk, stride_lh, stride_lw = strides

    # Window 0 are the patches of q, which begin 1 pixel in; window 1 those of k.
    patch, image, window = o_r % (rows * columns), o_r // (rows * columns) % B, o_r // (rows * columns) // B
    o_y, o_x = patch // columns * P + 1 - window, patch % columns * P + 1 - window

    o_row = image.to(tl.int64) * stride_lb + o_y.to(tl.int64) * stride_lh + o_x.to(tl.int64) * stride_lw
    o_column = (o_p // P).to(tl.int64) * stride_lh + (o_p % P).to(tl.int64) * stride_lw + o_k.to(tl.int64) * stride_lk
    return load_block(p_logits, o_row, o_column, o_r < 2 * B * rows * columns, m_j)


@triton.jit
def _load_weight(p_weight, o_d, column, K, C, stride_wd, stride_wj):
    """Some rows of the weight at a block of columns [BLOCK_D, BLOCK_J]; 0 where masked."""
    o_p, o_k, m_j = column
    o_j = o_p.to(tl.int64) * K + o_k
    return load_block(p_weight, o_d.to(tl.int64) * stride_wd, o_j * stride_wj, o_d < C, m_j)


@triton.jit
def _offsets_of(pixel, o_k, strides):
    """Offsets [BLOCK_R, BLOCK_K] of some channels of some pixels: image, row, column, in int64."""
    o_b, o_y, o_x = pixel
    stride_b, stride_k, stride_h, stride_w = strides
    return (o_b * stride_b + o_y * stride_h + o_x * stride_w)[:, None] + (o_k.to(tl.int64) * stride_k)[None, :]


@triton.jit(do_not_specialize=SIZES)
def embed_kernel(
    p_logits, p_mean, p_rstd, p_gamma, p_beta, p_weight, p_partials,
    B, P, rows, columns, stride_lb, stride_lk, stride_lh, stride_lw, stride_wd, stride_wj,
    K: tl.constexpr, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """This program's partial sums of q and k, without the bias, to p_partials (programs, 2 B T, C).

    Grid: programs that share the columns, blocks of rows * blocks of BLOCK_D channels.
    """
    grid, norm = (B, rows, columns), (p_mean, p_rstd, p_gamma, p_beta)
    strides = (stride_lb, stride_lk, stride_lh, stride_lw)
    d_blocks, k_blocks = tl.cdiv(C, BLOCK_D), tl.cdiv(K, BLOCK_K)
    o_r = tl.program_id(1) // d_blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.program_id(1) % d_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    b_out = tl.zeros((BLOCK_R, BLOCK_D), ACC)

    for index in range(tl.program_id(0), tl.cdiv(P * P, BLOCK_P) * k_blocks, tl.num_programs(0)):
        column = _columns_of(index // k_blocks, index % k_blocks, P, K, BLOCK_P, BLOCK_K)
        _, o_k, m_j = column
        b_x = _load_patches(p_logits, o_r, column, grid, P, strides)  # [BLOCK_R, BLOCK_J]
        b_w = _load_weight(p_weight, o_d, column, K, C, stride_wd, stride_wj).to(b_x.dtype)  # [BLOCK_D, BLOCK_J]
        b_mean, b_rstd, b_gamma, b_beta = _load_norm(norm, o_k, m_j, ACC)  # [BLOCK_J]

        b_y = (b_x.to(ACC) - b_mean[None, :]) * (b_rstd * b_gamma)[None, :] + b_beta[None, :]
        b_out = add_dot(b_y.to(b_x.dtype), tl.trans(b_w), b_out, PREC, ACC)

    total = 2 * B * rows * columns
    o_out = ((tl.program_id(0).to(tl.int64) * total + o_r) * C)[:, None] + o_d[None, :]  # [BLOCK_R, BLOCK_D]
    tl.store(p_partials + o_out, b_out, mask=(o_r < total)[:, None] & (o_d < C)[None, :])


@triton.jit(do_not_specialize=SIZES)
def stack_gradients_kernel(
    p_dq, p_dk, p_grad, p_dbias,
    B, rows, columns,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """g from the gradients of q and k, and its sum over all rows in their order, dbias. Grid: blocks of channels.

    p_dq, p_dk (B, T, C), contiguous    BLOCK_R, BLOCK_C: rows and channels at a time
    """
    o_c, total = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), B * rows * columns
    b_sum = tl.zeros((BLOCK_C,), ACC)

    for start in range(0, 2 * total, BLOCK_R):
        o_r = start + tl.arange(0, BLOCK_R)
        o_dq, m_c = o_r.to(tl.int64) * C, o_c < C
        b_g = load_block(p_dq, o_dq, o_c, o_r < total, m_c)  # [BLOCK_R, BLOCK_C], 0 in the rows of k
        b_g += load_block(p_dk, o_dq - total.to(tl.int64) * C, o_c, (o_r >= total) & (o_r < 2 * total), m_c)

        store_block(p_grad, o_dq, o_c, o_r < 2 * total, m_c, b_g)
        b_sum += tl.sum(b_g.to(ACC), 0)

    tl.store(p_dbias + o_c, b_sum, mask=o_c < C)


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    p_logits, p_mean, p_rstd, p_gamma, p_beta, p_weight, p_grad, p_dbias, p_dweight, p_partials,
    B, P, rows, columns, stride_lb, stride_lk, stride_lh, stride_lw, stride_wd, stride_wj,
    K: tl.constexpr, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dweight (C, P P K), contiguous, and this program's partial sums of dbeta and dgamma.

    Grid: programs that share the positions, blocks of channels.
    p_partials (programs, 2, K): dbeta, dgamma    BLOCK_D: power of 2 >= C
    """
    BLOCK_J: tl.constexpr = BLOCK_P * BLOCK_K
    grid, norm = (B, rows, columns), (p_mean, p_rstd, p_gamma, p_beta)
    strides = (stride_lb, stride_lk, stride_lh, stride_lw)
    o_d = tl.arange(0, BLOCK_D)
    total = 2 * B * rows * columns

    b_dbias = tl.load(p_dbias + o_d, mask=o_d < C, other=0.0)
    b_dbeta, b_dgamma = tl.zeros((BLOCK_J,), ACC), tl.zeros((BLOCK_J,), ACC)

    for index in range(tl.program_id(0), tl.cdiv(P * P, BLOCK_P), tl.num_programs(0)):
        column = _columns_of(index, tl.program_id(1), P, K, BLOCK_P, BLOCK_K)
        o_p, o_k, m_j = column
        b_mean, b_rstd, b_gamma, b_beta = _load_norm(norm, o_k, m_j, ACC)  # [BLOCK_J]
        b_G = tl.zeros((BLOCK_D, BLOCK_J), ACC)

        for start in range(0, total, BLOCK_R):
            o_r = start + tl.arange(0, BLOCK_R)
            b_x = _load_patches(p_logits, o_r, column, grid, P, strides)  # [BLOCK_R, BLOCK_J]
            b_g = load_block(p_grad, o_r.to(tl.int64) * C, o_d, o_r < total, o_d < C).to(b_x.dtype)

            b_z = (b_x.to(ACC) - b_mean[None, :]) * b_rstd[None, :]
            b_G = add_dot(tl.trans(b_g), b_z.to(b_x.dtype), b_G, PREC, ACC)

        b_w = _load_weight(p_weight, o_d, column, K, C, stride_wd, stride_wj).to(ACC)  # [BLOCK_D, BLOCK_J]
        b_dbeta += tl.sum(b_w * b_dbias[:, None], 0)
        b_dgamma += tl.sum(b_w * b_G, 0)

        o_j = o_p.to(tl.int64) * K + o_k
        b_dw = b_G * b_gamma[None, :] + b_dbias[:, None] * b_beta[None, :]
        store_block(p_dweight, o_d.to(tl.int64) * (P * P * K), o_j, o_d < C, m_j, b_dw)

    # Sums over the positions that share a channel.
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    p_partials += tl.program_id(0).to(tl.int64) * 2 * K + o_k
    tl.store(p_partials, tl.sum(tl.reshape(b_dbeta, (BLOCK_P, BLOCK_K)), 0), mask=o_k < K)
    tl.store(p_partials + K, tl.sum(tl.reshape(b_dgamma, (BLOCK_P, BLOCK_K)), 0), mask=o_k < K)


@triton.jit(do_not_specialize=SIZES)
def logits_gradient_kernel(
    p_logits, p_mean, p_rstd, p_gamma, p_beta, p_dbeta, p_dgamma, p_weight, p_grad, p_dlogits,
    p_pixel, p_labels, p_dloss,
    B, P, H, W, rows, columns, pixels, steps,
    stride_lb, stride_lk, stride_lh, stride_lw, stride_wd, stride_wj, stride_gb, stride_gk, stride_gh, stride_gw,
    K: tl.constexpr, C: tl.constexpr, BATCH_STATS: tl.constexpr, CLUSTERING: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dlogits, each pixel once. Grid: blocks of pixels * positions * blocks of channels, the last fastest.

    A program takes the pixels at one position of the cells of the map's P x P grid: one slice of the weight serves them
    all as pixels of k patches, another as pixels of q patches.
    stride_g*: of dlogits    pixels: B H W    BLOCK_R: pixels of a program
    steps: blocks of d of q and of k; at run time, so that the loop is not unrolled
    BATCH_STATS: the statistics are those of these logits
    CLUSTERING: and the gradient of the mean clustering loss of the same logits, g (softmax - onehot) / (B H W), from
    p_dloss, its g, p_labels (B, H, W), and p_pixel (2, B, H, W), a pixel's largest logit m and its sum of exp(l - m)
    over the other clusters
    """
    norm, k_blocks = (p_mean, p_rstd, p_gamma, p_beta), tl.cdiv(K, BLOCK_K)
    position = tl.program_id(0) // k_blocks % (P * P)
    o_k = tl.program_id(0) % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    y, x = position // P, position % P
    cells_x = tl.cdiv(W - x, P)
    cells = tl.cdiv(H - y, P) * cells_x  # of an image, those that have this position inside the map
    first = tl.program_id(0) // (k_blocks * P * P) * BLOCK_R
    if first >= B * cells:
        return

    o_r = first + tl.arange(0, BLOCK_R)
    o_b, o_row, o_column = o_r // cells, o_r % cells // cells_x, o_r % cells % cells_x
    m_r = o_b < B
    b_dy = tl.zeros((BLOCK_R, BLOCK_K), ACC)

    # Gradients of y, as pixels of q patches (window 0) and of k patches in turn.
    for step in range(0, steps):
        window, o_d = step % 2, step // 2 * BLOCK_D + tl.arange(0, BLOCK_D)

        # A pixel lies one up and one left in its q patch: at the cell's edge, that is the cell before.
        o_ty, o_tx = o_row - ((y == 0) & (window == 0)).to(tl.int32), o_column - ((x == 0) & (window == 0)).to(tl.int32)
        place = (y + P - 1 + window) % P * P + (x + P - 1 + window) % P
        m_g = m_r & (o_ty >= 0) & (o_ty < rows) & (o_tx >= 0) & (o_tx < columns)
        o_g = (((window * B + o_b).to(tl.int64) * rows + o_ty) * columns + o_tx) * C
        b_g = load_block(p_grad, o_g, o_d, m_g, o_d < C)  # [BLOCK_R, BLOCK_D]
        b_w = _load_weight(p_weight, o_d, (place, o_k, o_k < K), K, C, stride_wd, stride_wj)  # [BLOCK_D, BLOCK_K]

        b_w = b_w.to(p_logits.dtype.element_ty)
        b_dy = add_dot(b_g.to(b_w.dtype), b_w, b_dy, PREC, ACC)

    # Through the batch norm.
    o_image, o_y, o_x = o_b.to(tl.int64), (o_row * P + y).to(tl.int64), (o_column * P + x).to(tl.int64)
    pixel = (o_image, o_y, o_x)
    m_x = m_r[:, None] & (o_k < K)[None, :]
    b_mean, b_rstd, b_gamma, _ = _load_norm(norm, o_k, o_k < K, ACC)  # [BLOCK_K]
    if BATCH_STATS or CLUSTERING:
        o_l = _offsets_of(pixel, o_k, (stride_lb, stride_lk, stride_lh, stride_lw))
        b_l = tl.load(p_logits + o_l, mask=m_x, other=0.0).to(ACC)  # [BLOCK_R, BLOCK_K]
    if BATCH_STATS:
        b_z = (b_l - b_mean[None, :]) * b_rstd[None, :]
        b_dbeta = tl.load(p_dbeta + o_k, mask=o_k < K, other=0.0)
        b_dgamma = tl.load(p_dgamma + o_k, mask=o_k < K, other=0.0)
        b_dy -= (b_dbeta / pixels)[None, :] + b_z * (b_dgamma / pixels)[None, :]
    b_dy *= (b_gamma * b_rstd)[None, :]

    if CLUSTERING:
        o_pixel = (o_image * H + o_y) * W + o_x
        b_max = tl.load(p_pixel + o_pixel, mask=m_r, other=0.0)
        b_others = tl.load(p_pixel + pixels + o_pixel, mask=m_r, other=0.0)
        b_label = tl.load(p_labels + o_pixel, mask=m_r, other=0).to(tl.int32)
        b_dloss = tl.load(p_dloss).to(ACC) / pixels
        b_dy += logits_gradient(tl.exp(b_l - b_max[:, None]), o_k, b_label, b_others, b_dloss)

    o_out = _offsets_of(pixel, o_k, (stride_gb, stride_gk, stride_gh, stride_gw))
    tl.store(p_dlogits + o_out, b_dy.to(p_dlogits.dtype.element_ty), mask=m_x)
