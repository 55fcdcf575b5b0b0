"""Forward kernels of efficient attention, its LayerNorm and residual, and what the backward shares with them.

    n = LN(x)    p = softmax over the tokens of n Wk^T    q = softmax over a head's channels of n Wq^T + bq
    G = p^T n    context_h = G_h Wv_h^T + bv_h    M_h = context_h Wr_h^T    y = x + sum_h q_h M_h + br

Nothing of N x C is written but y: keys and queries are made a block of tokens at a time, in every pass anew. Sums over
tokens go to one slot a program and are added in order by another kernel. The keys' bias has no part: it cancels.

With a batch norm, x is read through it: the first pass writes the normed x, which is what every later kernel reads.

Shapes in comments: n tokens of a block, c channels of x, d key channels. `b_` value of a block, `p_` pointer, `o_`
offsets, `m_` masks. Arguments that kernels share:
    p_x (B, N, C)    p_gamma, p_beta (C)    p_wk, p_wq (CK, C)    p_bq (CK)    p_wv (CV, C)    p_bv (CV)
    p_wr (C, CV)    p_br (C): as the op takes them; gamma, beta and biases may be None
    p_max, p_sum (B, CK): maximum and sum of the softmax over tokens    p_gathered, p_folded (B, CK, C): G, M
    N: tokens of an image    programs: that share an image's tokens    heads    CK, CV: key and value channels
    DK, DV: those of a head    width: C at run time, lest loops over channels be unrolled    eps: LayerNorm's
    C: constexpr, so that rows are read wide    NORM: whether there is a LayerNorm
    BLOCK_N, BLOCK_D: tokens, key channels of a block    BLOCK_C: power of 2 >= C
    BLOCK_K: products over channels take so many at a time and read x again; BLOCK_C: all at once, x read once
    ACC: dtype of sums, statistics and softmax    DOT: dtype of the products' operands    PREC: their input_precision
"""

from __future__ import annotations

import triton
import triton.language as tl

# never specialised: a new size runs the code of the old one
TOKENS = ("N", "programs", "blocks", "rows", "images", "query_slots", "key_slots", "token_slots")
SIZES = (*TOKENS, "width", "heads", "CK", "CV", "DK", "DV")


@triton.jit
def load_rows(p, o_row, o_col, n_row, n_col, stride, AGAIN: tl.constexpr = False):
    """Block [o_row, o_col] of a row-major matrix, 0 outside. AGAIN: read now, not kept in registers since an equal
    load, from which another eviction policy tells it."""
    o = (o_row.to(tl.int64) * stride)[:, None] + o_col[None, :]
    m = (o_row < n_row)[:, None] & (o_col < n_col)[None, :]
    return tl.load(p + o, mask=m, other=0.0, eviction_policy="evict_first" if AGAIN else "")


@triton.jit
def load_vector(p, o, n, absent: tl.constexpr, ACC: tl.constexpr):
    """Elements o of a vector, 0 outside; without a vector, the value `absent` everywhere."""
    b = tl.full(o.shape, absent, ACC)
    if p is not None:
        b = tl.load(p + o, mask=o < n, other=0.0).to(ACC)
    return b


@triton.jit
def normalise(b_x, o_n, N, eps, C: tl.constexpr, BLOCK_C: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr):
    """Mean and 1/std (n) of x (n, c), and x without them; columns from C on stay 0."""
    if NORM:
        b_mean = tl.sum(b_x, 1) / C
        b_xhat = tl.where((tl.arange(0, BLOCK_C) < C)[None, :], b_x - b_mean[:, None], 0.0)
        b_var = tl.where(o_n < N, tl.sum(b_xhat * b_xhat, 1) / C, 1.0)
        b_rstd = 1.0 / tl.sqrt(b_var + eps)
        b_xhat = b_xhat * b_rstd[:, None]
    else:
        b_mean, b_rstd = tl.zeros(o_n.shape, ACC), tl.full(o_n.shape, 1.0, ACC)
        b_xhat = b_x
    return b_mean, b_rstd, b_xhat


@triton.jit
def affine(b_xhat, p_gamma, p_beta, o_c, C: tl.constexpr, ACC: tl.constexpr):
    """xhat gamma + beta (n, c)."""
    b_gamma, b_beta = load_vector(p_gamma, o_c, C, 1.0, ACC), load_vector(p_beta, o_c, C, 0.0, ACC)
    return b_xhat * b_gamma[None, :] + b_beta[None, :]


@triton.jit
def batch_normed(b_x, p_mean, p_var, p_weight, p_bias, eps, o_c, C: tl.constexpr, ACC: tl.constexpr):
    """A block of x through its batch norm, in x's dtype, as the later kernels read it; x itself without one."""
    if p_mean is not None:
        b_var = tl.load(p_var + o_c, mask=o_c < C, other=1.0).to(ACC)
        b_scale = load_vector(p_weight, o_c, C, 1.0, ACC) / tl.sqrt(b_var + eps)
        b_normed = (b_x.to(ACC) - load_vector(p_mean, o_c, C, 0.0, ACC)[None, :]) * b_scale[None, :]
        b_x = (b_normed + load_vector(p_bias, o_c, C, 0.0, ACC)[None, :]).to(b_x.dtype)
    return b_x


@triton.jit
def product(b_a, b_w, b_out, TURN: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr):
    """out + a w^T (n, d), or out + w a^T (d, n) if TURN."""
    if TURN:
        b_out = tl.dot(b_w, tl.trans(b_a), b_out, input_precision=PREC, out_dtype=ACC)
    else:
        b_out = tl.dot(b_a, tl.trans(b_w), b_out, input_precision=PREC, out_dtype=ACC)
    return b_out


@triton.jit
def project(
    b_n,
    p_x,
    p_bn_mean,
    p_bn_var,
    p_bn_weight,
    p_bn_bias,
    bn_eps,
    b_mean,
    b_rstd,
    p_gamma,
    p_beta,
    o_n,
    N,
    p_w,
    o_d,
    n_d,
    width,
    TURN: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
):
    """n w^T (n, d), or w n^T (d, n) if TURN, with n (n, c) as it is, or read again in pieces if BLOCK_K < BLOCK_C."""
    b_out = tl.zeros((o_d.shape[0], o_n.shape[0]) if TURN else (o_n.shape[0], o_d.shape[0]), ACC)
    if BLOCK_K == BLOCK_C:
        b_w = load_rows(p_w, o_d, tl.arange(0, BLOCK_C), n_d, C, C).to(b_n.dtype)
        b_out = product(b_n, b_w, b_out, TURN, ACC, PREC)
    else:
        for start in range(0, width, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            b_x = load_rows(p_x, o_n, o_k, N, C, C)
            b_x = batch_normed(b_x, p_bn_mean, p_bn_var, p_bn_weight, p_bn_bias, bn_eps, o_k, C, ACC).to(ACC)
            b_k = affine((b_x - b_mean[:, None]) * b_rstd[:, None], p_gamma, p_beta, o_k, C, ACC).to(b_n.dtype)
            b_w = load_rows(p_w, o_d, o_k, n_d, C, C).to(b_n.dtype)
            b_out = product(b_k, b_w, b_out, TURN, ACC, PREC)
    return b_out


@triton.jit(do_not_specialize=SIZES)
def context_kernel(
    p_x,
    p_bn_mean,
    p_bn_var,
    p_bn_weight,
    p_bn_bias,
    p_normed,
    p_gamma,
    p_beta,
    p_wk,
    p_maxes,
    p_sums,
    p_gathereds,
    N,
    programs,
    CK,
    width,
    eps,
    bn_eps,
    C: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PREC: tl.constexpr,
):
    """Pass 1: running maximum, sum and exp(keys - max)^T n of this program's tokens, to its slot.

    Grid: images * programs, blocks of key channels. p_maxes, p_sums (slots, CK)    p_gathereds (slots, CK, C)
    p_bn_* (C), p_normed (B, N, C): batch norm of x, and x through it, which the first block of channels writes; or None
    """
    slot = tl.program_id(0).to(tl.int64)
    o_c, o_d = tl.arange(0, BLOCK_C), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    o_image = slot // programs * N * C
    p_x += o_image
    b_max, b_sum = tl.full((BLOCK_D,), float("-inf"), ACC), tl.zeros((BLOCK_D,), ACC)
    b_G = tl.zeros((BLOCK_D, BLOCK_C), ACC)
    for start in range(tl.program_id(0) % programs * BLOCK_N, N, programs * BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        b_x = load_rows(p_x, o_n, o_c, N, C, C)
        b_x = batch_normed(b_x, p_bn_mean, p_bn_var, p_bn_weight, p_bn_bias, bn_eps, o_c, C, ACC)
        if p_normed is not None:
            m_x = (o_n < tl.where(tl.program_id(1) == 0, N, 0))[:, None] & (o_c < C)[None, :]
            tl.store(p_normed + o_image + (o_n.to(tl.int64) * C)[:, None] + o_c[None, :], b_x, mask=m_x)
        b_mean, b_rstd, b_xhat = normalise(b_x.to(ACC), o_n, N, eps, C, BLOCK_C, NORM, ACC)
        b_n = affine(b_xhat, p_gamma, p_beta, o_c, C, ACC).to(DOT)
        b_k = project(
            b_n, p_x, p_bn_mean, p_bn_var, p_bn_weight, p_bn_bias, bn_eps, b_mean, b_rstd, p_gamma, p_beta, o_n, N,
            p_wk, o_d, CK, width, True, C, BLOCK_C, BLOCK_K, ACC, PREC,
        )  # fmt: skip
        b_k = tl.where((o_n < N)[None, :], b_k, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_k, 1))
        b_scale, b_p = tl.exp(b_max - b_new), tl.exp(b_k - b_new[:, None])
        b_sum = b_sum * b_scale + tl.sum(b_p, 1)
        b_G = tl.dot(b_p.to(DOT), b_n, b_G * b_scale[:, None], input_precision=PREC, out_dtype=ACC)
        b_max = b_new
    tl.store(p_maxes + slot * CK + o_d, b_max, mask=o_d < CK)
    tl.store(p_sums + slot * CK + o_d, b_sum, mask=o_d < CK)
    m_G = (o_d < CK)[:, None] & (o_c < C)[None, :]
    tl.store(p_gathereds + slot * CK * C + o_d[:, None] * C + o_c[None, :], b_G, mask=m_G)


@triton.jit(do_not_specialize=SIZES)
def attend_kernel(
    p_x,
    p_gamma,
    p_beta,
    p_wq,
    p_bq,
    p_folded,
    p_br,
    p_y,
    N,
    blocks,
    CK,
    DK,
    width,
    eps,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PREC: tl.constexpr,
):
    """Pass 2: y = x + sum_h softmax(n Wq_h^T + bq_h) M_h + br, the softmax online over blocks of a head's channels.

    Grid: images * blocks of tokens. HEADS: constexpr, as one head needs one sum fewer
    """
    image = tl.program_id(0).to(tl.int64) // blocks
    p_x, p_y, p_folded = p_x + image * N * C, p_y + image * N * C, p_folded + image * CK * C
    o_c, o_d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    o_n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    b_x = load_rows(p_x, o_n, o_c, N, C, C).to(ACC)
    b_mean, b_rstd, b_xhat = normalise(b_x, o_n, N, eps, C, BLOCK_C, NORM, ACC)
    b_n = affine(b_xhat, p_gamma, p_beta, o_c, C, ACC).to(DOT)
    b_y = tl.zeros((BLOCK_N, BLOCK_C), ACC)
    for head in range(HEADS):
        b_max, b_sum = tl.full((BLOCK_N,), float("-inf"), ACC), tl.zeros((BLOCK_N,), ACC)
        b_acc = tl.zeros((BLOCK_N, BLOCK_C), ACC)
        end = (head + 1) * DK
        for start in range(head * DK, end, BLOCK_D):
            b_q = project(
                b_n, p_x, None, None, None, None, 0.0, b_mean, b_rstd, p_gamma, p_beta, o_n, N,
                p_wq, start + o_d, end, width, False, C, BLOCK_C, BLOCK_K, ACC, PREC,
            )  # fmt: skip
            b_q += load_vector(p_bq, start + o_d, end, 0.0, ACC)[None, :]
            b_q = tl.where((start + o_d < end)[None, :], b_q, float("-inf"))
            b_new = tl.maximum(b_max, tl.max(b_q, 1))
            b_scale, b_q = tl.exp(b_max - b_new), tl.exp(b_q - b_new[:, None])
            b_sum = b_sum * b_scale + tl.sum(b_q, 1)
            b_M = load_rows(p_folded, start + o_d, o_c, end, C, C).to(DOT)
            b_acc = tl.dot(b_q.to(DOT), b_M, b_acc * b_scale[:, None], input_precision=PREC, out_dtype=ACC)
            b_max = b_new
        b_y += b_acc / b_sum[:, None]
    b_y += load_vector(p_br, o_c, C, 0.0, ACC)[None, :]
    if RESIDUAL:
        b_y += load_rows(p_x, o_n, o_c, N, C, C, AGAIN=True).to(ACC)
    m_y = (o_n < N)[:, None] & (o_c < C)[None, :]
    tl.store(p_y + (o_n.to(tl.int64) * C)[:, None] + o_c[None, :], b_y.to(p_y.dtype.element_ty), mask=m_y)
