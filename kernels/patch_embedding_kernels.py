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

Shapes in comments: r rows of the product (2 B T: all of q, then all of k) or pixels, d rows of the weight, j = (p, c)
its columns: positions in a patch times channels. `b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks.
Arguments that kernels share:
    p_mean, p_rstd, p_gamma, p_beta (K)    p_grad (2, B, T, C), contiguous: gradients of q and k
    K, C: constexpr, so that rows of the weight are read wide    P: pixels of a patch's side
    rows, columns: patches down, across    stride_l*: of the logits    stride_w*: of the weight
Sums across programs: one slot a program, added in order by a second kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

# never specialised: a new size runs the code of the old one
SIZES = ("B", "H", "W", "P", "rows", "columns", "slots", "size", "half", "pixels", "steps")


@triton.jit
def _norm(p_mean, p_rstd, p_gamma, p_beta, o_k, m_k, ACC: tl.constexpr):
    """mean, rstd, gamma, beta of some channels; 0 where masked."""
    return (
        tl.load(p_mean + o_k, mask=m_k, other=0.0).to(ACC),
        tl.load(p_rstd + o_k, mask=m_k, other=0.0).to(ACC),
        tl.load(p_gamma + o_k, mask=m_k, other=0.0).to(ACC),
        tl.load(p_beta + o_k, mask=m_k, other=0.0).to(ACC),
    )


@triton.jit
def _columns(p_block, k_block, P, K, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr):
    """Position, channel and validity (j) of a block of the weight's columns: some positions times some channels."""
    i = tl.arange(0, BLOCK_P * BLOCK_K)
    o_p, o_k = p_block * BLOCK_P + i // BLOCK_K, k_block * BLOCK_K + i % BLOCK_K
    return o_p, o_k, (o_p < P * P) & (o_k < K)


@triton.jit
def _patches(p_logits, o_r, o_p, o_k, m_j, B, rows, columns, P, stride_lb, stride_lk, stride_lh, stride_lw):
    """The logits (r, j) of some patches at some positions and channels; 0 where masked."""
    patch, image, window = o_r % (rows * columns), o_r // (rows * columns) % B, o_r // (rows * columns) // B
    o_y, o_x = patch // columns * P + 1 - window, patch % columns * P + 1 - window  # q: 1 pixel in
    o_row = image.to(tl.int64) * stride_lb + o_y.to(tl.int64) * stride_lh + o_x.to(tl.int64) * stride_lw
    o_column = (o_p // P).to(tl.int64) * stride_lh + (o_p % P).to(tl.int64) * stride_lw + o_k.to(tl.int64) * stride_lk
    m_r = o_r < 2 * B * rows * columns
    return tl.load(p_logits + o_row[:, None] + o_column[None, :], mask=m_r[:, None] & m_j[None, :], other=0.0)


@triton.jit
def _weights(p_weight, o_d, o_p, o_k, m_j, C, K, stride_wd, stride_wj):
    """Pointers to a block of the weight (d, j), and its mask."""
    o_j = o_p.to(tl.int64) * K + o_k
    return p_weight + (o_d.to(tl.int64) * stride_wd)[:, None] + (o_j * stride_wj)[None, :], (o_d < C)[:, None] & m_j[
        None, :
    ]


@triton.jit(do_not_specialize=SIZES)
def embed_kernel(
    p_logits,
    p_mean,
    p_rstd,
    p_gamma,
    p_beta,
    p_weight,
    p_parts,
    B,
    P,
    rows,
    columns,
    stride_lb,
    stride_lk,
    stride_lh,
    stride_lw,
    stride_wd,
    stride_wj,
    K: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
):
    """This program's share of the long sum, to p_parts (programs, 2 B T, C).

    Grid: programs that share the columns, tiles of (r, d).
    """
    d_blocks, k_blocks = tl.cdiv(C, BLOCK_D), tl.cdiv(K, BLOCK_K)
    o_r = tl.program_id(1) // d_blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.program_id(1) % d_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    b_out = tl.zeros((BLOCK_R, BLOCK_D), ACC)
    for index in range(tl.program_id(0), tl.cdiv(P * P, BLOCK_P) * k_blocks, tl.num_programs(0)):
        o_p, o_k, m_j = _columns(index // k_blocks, index % k_blocks, P, K, BLOCK_P, BLOCK_K)
        b_x = _patches(p_logits, o_r, o_p, o_k, m_j, B, rows, columns, P, stride_lb, stride_lk, stride_lh, stride_lw)
        p_w, m_w = _weights(p_weight, o_d, o_p, o_k, m_j, C, K, stride_wd, stride_wj)
        b_w = tl.load(p_w, mask=m_w, other=0.0).to(b_x.dtype)
        b_mean, b_rstd, b_gamma, b_beta = _norm(p_mean, p_rstd, p_gamma, p_beta, o_k, m_j, ACC)
        b_y = (b_x.to(ACC) - b_mean[None, :]) * (b_rstd * b_gamma)[None, :] + b_beta[None, :]
        b_out = tl.dot(b_y.to(b_x.dtype), tl.trans(b_w), b_out, input_precision=PREC, out_dtype=ACC)
    total = 2 * B * rows * columns
    o_out = ((tl.program_id(0).to(tl.int64) * total + o_r) * C)[:, None] + o_d[None, :]
    tl.store(p_parts + o_out, b_out, mask=(o_r < total)[:, None] & (o_d < C)[None, :])


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    p_logits,
    p_mean,
    p_rstd,
    p_gamma,
    p_beta,
    p_weight,
    p_grad,
    p_dbias,
    p_dweight,
    p_parts,
    B,
    P,
    rows,
    columns,
    stride_lb,
    stride_lk,
    stride_lh,
    stride_lw,
    stride_wd,
    stride_wj,
    K: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
):
    """dweight, and this program's share of dbeta and dgamma.

    Grid: programs that share the positions, blocks of channels.
    p_dbias (C), p_dweight (C, P P K), contiguous    p_parts (programs, 2, K): dbeta, dgamma    BLOCK_D: power of 2 >= C
    """
    o_d = tl.arange(0, BLOCK_D)
    total = 2 * B * rows * columns
    b_dbias = tl.load(p_dbias + o_d, mask=o_d < C, other=0.0)
    b_dbeta, b_dgamma = tl.zeros((BLOCK_P * BLOCK_K,), ACC), tl.zeros((BLOCK_P * BLOCK_K,), ACC)
    for index in range(tl.program_id(0), tl.cdiv(P * P, BLOCK_P), tl.num_programs(0)):
        o_p, o_k, m_j = _columns(index, tl.program_id(1), P, K, BLOCK_P, BLOCK_K)
        b_mean, b_rstd, b_gamma, b_beta = _norm(p_mean, p_rstd, p_gamma, p_beta, o_k, m_j, ACC)
        b_G = tl.zeros((BLOCK_D, BLOCK_P * BLOCK_K), ACC)
        for start in range(0, total, BLOCK_R):
            o_r = start + tl.arange(0, BLOCK_R)
            b_x = _patches(
                p_logits, o_r, o_p, o_k, m_j, B, rows, columns, P, stride_lb, stride_lk, stride_lh, stride_lw
            )
            m_g = (o_r < total)[:, None] & (o_d < C)[None, :]
            b_g = tl.load(p_grad + (o_r.to(tl.int64) * C)[:, None] + o_d[None, :], mask=m_g, other=0.0).to(b_x.dtype)
            b_z = (b_x.to(ACC) - b_mean[None, :]) * b_rstd[None, :]
            b_G = tl.dot(tl.trans(b_g), b_z.to(b_x.dtype), b_G, input_precision=PREC, out_dtype=ACC)
        p_w, m_w = _weights(p_weight, o_d, o_p, o_k, m_j, C, K, stride_wd, stride_wj)
        b_w = tl.load(p_w, mask=m_w, other=0.0).to(ACC)
        b_dbeta += tl.sum(b_w * b_dbias[:, None], 0)
        b_dgamma += tl.sum(b_w * b_G, 0)
        p_dw, m_w = _weights(p_dweight, o_d, o_p, o_k, m_j, C, K, P * P * K, 1)
        tl.store(
            p_dw, (b_G * b_gamma[None, :] + b_dbias[:, None] * b_beta[None, :]).to(p_dweight.dtype.element_ty), mask=m_w
        )
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    p_parts += tl.program_id(0).to(tl.int64) * 2 * K + o_k
    tl.store(p_parts, tl.sum(tl.reshape(b_dbeta, (BLOCK_P, BLOCK_K)), 0), mask=o_k < K)
    tl.store(p_parts + K, tl.sum(tl.reshape(b_dgamma, (BLOCK_P, BLOCK_K)), 0), mask=o_k < K)


@triton.jit(do_not_specialize=SIZES)
def logits_gradient_kernel(
    p_logits,
    p_mean,
    p_rstd,
    p_gamma,
    p_beta,
    p_dbeta,
    p_dgamma,
    p_weight,
    p_grad,
    p_dlogits,
    p_pixel,
    p_labels,
    p_dloss,
    B,
    P,
    H,
    W,
    rows,
    columns,
    pixels,
    steps,
    stride_lb,
    stride_lk,
    stride_lh,
    stride_lw,
    stride_wd,
    stride_wj,
    stride_gb,
    stride_gk,
    stride_gh,
    stride_gw,
    K: tl.constexpr,
    C: tl.constexpr,
    BATCH_STATS: tl.constexpr,
    CLUSTERING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
):
    """dlogits, each pixel once. Grid: blocks of pixels * positions * blocks of channels, the last fastest.

    A program takes the pixels at one position of the cells of the map's P x P grid: one slice of the weight serves them
    all as pixels of k patches, another as pixels of q patches. stride_g*: of dlogits    pixels: B H W
    steps: blocks of d of q and of k; at run time, lest the loop be unrolled
    CLUSTERING: and the gradient of the mean clustering loss of the same logits, g (softmax - onehot) / (B H W), from
    p_dloss, its g, p_labels (B, H, W), and p_pixel (2, B, H, W), a pixel's largest logit m and its sum of exp(l - m)
    over the other clusters
    """
    k_blocks = tl.cdiv(K, BLOCK_K)
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
    for step in range(0, steps):  # q and k in turn
        window, o_d = step % 2, step // 2 * BLOCK_D + tl.arange(0, BLOCK_D)
        # a pixel lies one up and one left in its q patch: at the cell's edge, that is the cell before
        o_ty, o_tx = o_row - ((y == 0) & (window == 0)).to(tl.int32), o_column - ((x == 0) & (window == 0)).to(tl.int32)
        place = (y + P - 1 + window) % P * P + (x + P - 1 + window) % P
        m_g = m_r & (o_ty >= 0) & (o_ty < rows) & (o_tx >= 0) & (o_tx < columns)
        o_g = (((window * B + o_b).to(tl.int64) * rows + o_ty) * columns + o_tx) * C
        b_g = tl.load(p_grad + o_g[:, None] + o_d[None, :], mask=m_g[:, None] & (o_d < C)[None, :], other=0.0)
        p_w, m_w = _weights(p_weight, o_d, place, o_k, o_k < K, C, K, stride_wd, stride_wj)
        b_w = tl.load(p_w, mask=m_w, other=0.0).to(p_logits.dtype.element_ty)
        b_dy = tl.dot(b_g.to(b_w.dtype), b_w, b_dy, input_precision=PREC, out_dtype=ACC)
    o_image, o_y, o_x = o_b.to(tl.int64), (o_row * P + y).to(tl.int64), (o_column * P + x).to(tl.int64)
    m_x = m_r[:, None] & (o_k < K)[None, :]
    b_mean, b_rstd, b_gamma, _ = _norm(p_mean, p_rstd, p_gamma, p_beta, o_k, o_k < K, ACC)
    if BATCH_STATS or CLUSTERING:
        o_row = o_image * stride_lb + o_y * stride_lh + o_x * stride_lw
        o_l = o_row[:, None] + (o_k.to(tl.int64) * stride_lk)[None, :]
        b_l = tl.load(p_logits + o_l, mask=m_x, other=0.0).to(ACC)
    if BATCH_STATS:
        b_z = (b_l - b_mean[None, :]) * b_rstd[None, :]
        b_dbeta, b_dgamma = (
            tl.load(p_dbeta + o_k, mask=o_k < K, other=0.0),
            tl.load(p_dgamma + o_k, mask=o_k < K, other=0.0),
        )
        b_dy -= (b_dbeta / pixels)[None, :] + b_z * (b_dgamma / pixels)[None, :]
    b_dy *= (b_gamma * b_rstd)[None, :]
    if CLUSTERING:
        o_pixel = (o_image * H + o_y) * W + o_x
        b_max = tl.load(p_pixel + o_pixel, mask=m_r, other=0.0)
        b_others = tl.load(p_pixel + pixels + o_pixel, mask=m_r, other=0.0)
        b_label = tl.load(p_labels + o_pixel, mask=m_r, other=0).to(tl.int32)
        # At the label softmax - 1 is -others / total: no 1 to cancel.
        b_d = tl.where(o_k[None, :] == b_label[:, None], -b_others[:, None], tl.exp(b_l - b_max[:, None]))
        b_dy += b_d * (tl.load(p_dloss).to(ACC) / pixels / (1.0 + b_others))[:, None]
    o_l = (o_image * stride_gb + o_y * stride_gh + o_x * stride_gw)[:, None] + (o_k.to(tl.int64) * stride_gk)[None, :]
    tl.store(p_dlogits + o_l, b_dy.to(p_dlogits.dtype.element_ty), mask=m_x)
