"""Forward kernels of efficient attention, its LayerNorm and residual, and what the backward shares with them.

    n = LN(x)    p = softmax over the tokens of n Wk^T    q = softmax over a head's channels of n Wq^T + bq
    G = p^T n    context_h = G_h Wv_h^T + bv_h    M_h = context_h Wr_h^T    y = x + sum_h q_h M_h + br

Nothing of N x C is written but y: keys and queries are recomputed in every pass, a block of tokens at a time. A program
stores its partial sums over tokens, and another kernel adds those in order. The keys' bias has no part: it cancels.

With a batch norm, x is read through it: the first pass writes the normed x, which is what every later kernel reads.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share; gamma, beta and biases may
be None:
    p_x, p_y (B, N, C)    p_gamma, p_beta, p_br (C)    p_wk, p_wq (CK, C)    p_bq (CK)    p_wv (CV, C)    p_bv (CV)
    p_wr (C, CV)    p_max, p_sum (B, CK): maximum and sum of the softmax over tokens    p_G, p_M (B, CK, C)
    p_partial_max, p_partial_sum (B * programs, CK), p_partial_G (B * programs, CK, C): of one program's tokens
    N: tokens of an image    programs: that share an image's tokens
    CK, CV: key and value channels    DK, DV: those of a head
    C: channels, constexpr, so that rows are read wide    c_end: C at run time, so that loops over it are not unrolled
    eps: LayerNorm's    NORM: whether there is a LayerNorm    BLOCK_N, BLOCK_D: tokens, key channels of a block
    BLOCK_C: power of 2 >= C    BLOCK_S: programs, or value channels, at a time
    BLOCK_K: products over channels take so many at a time and read x again; BLOCK_C: all at once, x read once
    ACC: dtype of sums, statistics and softmax    DOT: dtype of the products' operands    PREC: their input_precision
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.blocks import add_dot, load_vector, store_block

# Never specialised: a new size runs the code of the old one.
PROGRAMS = ("programs", "query_programs", "key_programs", "token_programs", "bn_programs")
TOKENS = ("N", "blocks", "rows", "images", *PROGRAMS)
SIZES = (*TOKENS, "c_end", "heads", "CK", "CV", "DK", "DV")


@triton.jit
def load_rows(p, o_row, o_col, n_row, n_col, stride, RELOAD: tl.constexpr = False):
    """Elements o_row, o_col of a matrix (n_row, n_col) as a block [rows, columns], 0 outside; stride: between rows.

    RELOAD: read now, not kept in registers since an equal load, from which another eviction policy tells it.
    """
    o = (o_row.to(tl.int64) * stride)[:, None] + o_col[None, :]  # [rows, columns]
    m = (o_row < n_row)[:, None] & (o_col < n_col)[None, :]
    return tl.load(p + o, mask=m, other=0.0, eviction_policy="evict_first" if RELOAD else "")


@triton.jit
def affine(b_xhat, p_gamma, p_beta, o_c, C: tl.constexpr):
    """xhat gamma + beta of channels o_c [rows, channels]."""
    b_gamma = load_vector(p_gamma, o_c, C, 1.0, b_xhat.dtype)  # [channels]
    b_beta = load_vector(p_beta, o_c, C, 0.0, b_xhat.dtype)

    return b_xhat * b_gamma[None, :] + b_beta[None, :]


@triton.jit
def layer_norm(
    b_x, p_gamma, p_beta, o_n, N, eps,
    C: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """n [BLOCK_N, BLOCK_C] of x, in DOT, and norm: its tokens' mean and 1/std [BLOCK_N]; 0 and 1 without one."""
    o_c = tl.arange(0, b_x.shape[1])

    if NORM:
        b_mean = tl.sum(b_x, 1) / C  # [BLOCK_N]
        b_xhat = tl.where((o_c < C)[None, :], b_x - b_mean[:, None], 0.0)  # columns from C on stay 0

        b_var = tl.where(o_n < N, tl.sum(b_xhat * b_xhat, 1) / C, 1.0)  # from N on 1: no division by 0 if eps is 0
        b_rstd = 1.0 / tl.sqrt(b_var + eps)
        b_xhat = b_xhat * b_rstd[:, None]
    else:
        b_mean, b_rstd = tl.zeros(o_n.shape, ACC), tl.full(o_n.shape, 1.0, ACC)
        b_xhat = b_x

    return affine(b_xhat, p_gamma, p_beta, o_c, C).to(DOT), (b_mean, b_rstd)


@triton.jit
def reload_normed(p_x, p_gamma, p_beta, norm, o_n, o_k, N, C: tl.constexpr, DOT: tl.constexpr):
    """Channels o_k of n [BLOCK_N, channels], in DOT, from x read again and norm, which ``layer_norm`` found."""
    b_mean, b_rstd = norm
    b_x = load_rows(p_x, o_n, o_k, N, C, C).to(b_mean.dtype)

    return affine((b_x - b_mean[:, None]) * b_rstd[:, None], p_gamma, p_beta, o_k, C).to(DOT)


@triton.jit
def batch_norm(b_x, p_bn_mean, p_bn_var, p_bn_weight, p_bn_bias, bn_eps, o_c, C: tl.constexpr, ACC: tl.constexpr):
    """Channels o_c of x through its batch norm, in x's dtype, as later kernels read them; x itself without one."""
    if p_bn_mean is not None:
        b_var = tl.load(p_bn_var + o_c, mask=o_c < C, other=1.0).to(ACC)  # [channels]
        b_scale = load_vector(p_bn_weight, o_c, C, 1.0, ACC) / tl.sqrt(b_var + bn_eps)

        b_normed = (b_x.to(ACC) - load_vector(p_bn_mean, o_c, C, 0.0, ACC)[None, :]) * b_scale[None, :]
        b_x = (b_normed + load_vector(p_bn_bias, o_c, C, 0.0, ACC)[None, :]).to(b_x.dtype)

    return b_x


@triton.jit
def add_product(
    b_out, b_a, p_w, o_d, o_k, n_d,
    C: tl.constexpr, TRANSPOSE: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """out + a w^T [BLOCK_N, BLOCK_D], or out + w a^T [BLOCK_D, BLOCK_N] if TRANSPOSE.

    w: rows o_d and columns o_k of a matrix (n_d, C), in the dtype of a
    """
    b_w = load_rows(p_w, o_d, o_k, n_d, C, C).to(b_a.dtype)  # [BLOCK_D, columns]

    if TRANSPOSE:
        b_out = add_dot(b_w, tl.trans(b_a), b_out, PREC, ACC)
    else:
        b_out = add_dot(b_a, tl.trans(b_w), b_out, PREC, ACC)
    return b_out


@triton.jit
def project(
    b_n, p_x, p_gamma, p_beta, p_w, norm, o_n, o_d, N, n_d, c_end,
    C: tl.constexpr, BLOCK_K: tl.constexpr, TRANSPOSE: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """n w^T [BLOCK_N, BLOCK_D], or w n^T [BLOCK_D, BLOCK_N] if TRANSPOSE; w: rows o_d of a matrix (n_d, C).

    n and norm: of ``layer_norm``. n [BLOCK_N, BLOCK_C] is taken as it is, or in pieces from x read again if
    BLOCK_K < BLOCK_C
    """
    b_out = tl.zeros((o_d.shape[0], o_n.shape[0]) if TRANSPOSE else (o_n.shape[0], o_d.shape[0]), ACC)

    if b_n.shape[1] == BLOCK_K:
        b_out = add_product(b_out, b_n, p_w, o_d, tl.arange(0, BLOCK_K), n_d, C, TRANSPOSE, ACC, PREC)
    else:
        for start in range(0, c_end, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            b_n_k = reload_normed(p_x, p_gamma, p_beta, norm, o_n, o_k, N, C, b_n.dtype)  # [BLOCK_N, BLOCK_K]
            b_out = add_product(b_out, b_n_k, p_w, o_d, o_k, n_d, C, TRANSPOSE, ACC, PREC)
    return b_out


@triton.jit(do_not_specialize=SIZES)
def context_kernel(
    p_x, p_bn_mean, p_bn_var, p_bn_weight, p_bn_bias, p_normed, p_gamma, p_beta, p_wk,
    p_partial_max, p_partial_sum, p_partial_G,
    N, programs, CK, c_end, eps, bn_eps,
    C: tl.constexpr, NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Pass 1: maximum of the keys, sum of e = exp(keys - maximum) and e^T n, of this program's tokens.

    Grid: images * programs, blocks of key channels.
    p_bn_mean, p_bn_var, p_bn_weight, p_bn_bias (C), bn_eps: batch norm of x, or None
    p_normed (B, N, C): x through its batch norm, which the first block of key channels writes; or None
    """
    LOGITS: tl.constexpr = "ieee" if PREC == "tf32x3" else PREC  # the backward makes them again, with the same bits
    program = tl.program_id(0).to(tl.int64)
    o_image = program // programs * N * C
    o_c = tl.arange(0, BLOCK_C)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    p_x += o_image

    b_max, b_sum = tl.full((BLOCK_D,), float("-inf"), ACC), tl.zeros((BLOCK_D,), ACC)
    b_G = tl.zeros((BLOCK_D, BLOCK_C), ACC)

    for start in range(tl.program_id(0) % programs * BLOCK_N, N, programs * BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        b_x = load_rows(p_x, o_n, o_c, N, C, C)  # [BLOCK_N, BLOCK_C]
        b_x = batch_norm(b_x, p_bn_mean, p_bn_var, p_bn_weight, p_bn_bias, bn_eps, o_c, C, ACC)

        # Programs for other key channels read the same tokens: the first stores them.
        if p_normed is not None:
            m_n = o_n < tl.where(tl.program_id(1) == 0, N, 0)
            store_block(p_normed + o_image, o_n.to(tl.int64) * C, o_c, m_n, o_c < C, b_x)

        b_n, norm = layer_norm(b_x.to(ACC), p_gamma, p_beta, o_n, N, eps, C, NORM, ACC, DOT)
        b_mean, b_rstd = norm

        # Keys, transposed: the maximum and the sum then run along rows. As in project, but through the batch norm.
        b_k = tl.zeros((BLOCK_D, BLOCK_N), ACC)
        if BLOCK_K == BLOCK_C:
            b_k = add_product(b_k, b_n, p_wk, o_d, o_c, CK, C, TRANSPOSE=True, ACC=ACC, PREC=LOGITS)
        else:
            for c in range(0, c_end, BLOCK_K):
                o_k = c + tl.arange(0, BLOCK_K)
                b_x_k = load_rows(p_x, o_n, o_k, N, C, C)  # [BLOCK_N, BLOCK_K]
                b_x_k = batch_norm(b_x_k, p_bn_mean, p_bn_var, p_bn_weight, p_bn_bias, bn_eps, o_k, C, ACC).to(ACC)
                b_n_k = affine((b_x_k - b_mean[:, None]) * b_rstd[:, None], p_gamma, p_beta, o_k, C).to(DOT)
                b_k = add_product(b_k, b_n_k, p_wk, o_d, o_k, CK, C, TRANSPOSE=True, ACC=ACC, PREC=LOGITS)

        # Online softmax over the tokens: rescale what was summed so far to the new maximum.
        b_k = tl.where((o_n < N)[None, :], b_k, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_k, 1))  # [BLOCK_D]
        b_scale, b_e = tl.exp(b_max - b_new), tl.exp(b_k - b_new[:, None])
        b_sum = b_sum * b_scale + tl.sum(b_e, 1)
        b_G = add_dot(b_e.to(DOT), b_n, b_G * b_scale[:, None], PREC, ACC)
        b_max = b_new

    tl.store(p_partial_max + program * CK + o_d, b_max, mask=o_d < CK)
    tl.store(p_partial_sum + program * CK + o_d, b_sum, mask=o_d < CK)
    m_G = (o_d < CK)[:, None] & (o_c < C)[None, :]
    tl.store(p_partial_G + program * CK * C + o_d[:, None] * C + o_c[None, :], b_G, mask=m_G)


@triton.jit(do_not_specialize=SIZES)
def merge_kernel(
    p_partial_max, p_partial_sum, p_partial_G, p_wv, p_bv, p_wr,
    p_max, p_sum, p_G, p_M, p_context,
    programs, CK, CV, DK, DV,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Between the passes: merges the partial sums of one key channel in order; its rows of context and M.

    Grid: images * CK.
    p_context (B, CK, DV): of each key channel's own head
    """
    row = tl.program_id(0).to(tl.int64)
    d, o_partial = row % CK, row // CK * programs
    o_c, o_s = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    p_partial_max += o_partial * CK + d
    p_partial_sum += o_partial * CK + d
    p_partial_G += (o_partial * CK + d) * C

    b_max = tl.full((BLOCK_S,), float("-inf"), ACC)
    for start in range(0, programs, BLOCK_S):
        b_max = tl.maximum(
            b_max, tl.load(p_partial_max + (start + o_s) * CK, mask=start + o_s < programs, other=float("-inf"))
        )
    b_max = tl.max(b_max, 0)

    # Every program's sums, rescaled to the common maximum.
    b_sum, b_G = tl.zeros((BLOCK_S,), ACC), tl.zeros((BLOCK_C,), ACC)
    for start in range(0, programs, BLOCK_S):
        m_s = start + o_s < programs
        b_scale = tl.exp(tl.load(p_partial_max + (start + o_s) * CK, mask=m_s, other=float("-inf")) - b_max)
        b_sum += b_scale * tl.load(p_partial_sum + (start + o_s) * CK, mask=m_s, other=0.0)
        b_partial = load_rows(p_partial_G, start + o_s, o_c, programs, C, CK * C)  # [BLOCK_S, BLOCK_C]
        b_G += tl.sum(b_scale[:, None] * b_partial, 0)

    b_sum = tl.sum(b_sum, 0)
    b_G = b_G / b_sum

    # The key channel's row of context, and through it that of M, over the value channels of its head.
    b_M = tl.zeros((BLOCK_C,), ACC)
    o_head = d // DK * DV  # the first of them
    for start in range(0, DV, BLOCK_S):
        o_v, m_v = o_head + start + o_s, start + o_s < DV
        b_wv = load_rows(p_wv, o_v, o_c, o_head + DV, C, C).to(ACC)  # [BLOCK_S, BLOCK_C]
        b_context = tl.sum(b_wv * b_G[None, :], 1) + load_vector(p_bv, o_v, o_head + DV, 0.0, ACC)
        tl.store(p_context + row * DV + start + o_s, b_context.to(p_context.dtype.element_ty), mask=m_v)

        b_wr = load_rows(p_wr, o_c, o_v, C, o_head + DV, CV).to(ACC)  # [BLOCK_C, BLOCK_S]
        b_M += tl.sum(b_wr * tl.where(m_v, b_context, 0.0)[None, :], 1)

    tl.store(p_max + row, b_max)
    tl.store(p_sum + row, b_sum)
    tl.store(p_G + row * C + o_c, b_G, mask=o_c < C)
    tl.store(p_M + row * C + o_c, b_M, mask=o_c < C)


@triton.jit(do_not_specialize=SIZES)
def attend_kernel(
    p_x, p_gamma, p_beta, p_wq, p_bq, p_M, p_br, p_y,
    N, blocks, CK, DK, c_end, eps,
    C: tl.constexpr, HEADS: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Pass 2: y = x + sum_h softmax(n Wq_h^T + bq_h) M_h + br, the softmax online over blocks of a head's channels.

    Grid: images * blocks of tokens.
    blocks: of an image    HEADS: constexpr, as one head needs one sum fewer    RESIDUAL: whether x is added
    """
    image = tl.program_id(0).to(tl.int64) // blocks
    o_n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    o_c = tl.arange(0, BLOCK_C)
    p_x += image * N * C
    p_y += image * N * C
    p_M += image * CK * C

    b_x = load_rows(p_x, o_n, o_c, N, C, C).to(ACC)  # [BLOCK_N, BLOCK_C]
    b_n, norm = layer_norm(b_x, p_gamma, p_beta, o_n, N, eps, C, NORM, ACC, DOT)
    b_y = tl.zeros((BLOCK_N, BLOCK_C), ACC)

    for head in range(HEADS):
        end = (head + 1) * DK
        b_max, b_sum = tl.full((BLOCK_N,), float("-inf"), ACC), tl.zeros((BLOCK_N,), ACC)
        b_head = tl.zeros((BLOCK_N, BLOCK_C), ACC)

        for start in range(head * DK, end, BLOCK_D):
            o_d = start + tl.arange(0, BLOCK_D)
            b_q = project(
                b_n, p_x, p_gamma, p_beta, p_wq, norm, o_n, o_d, N, end, c_end, C, BLOCK_K,
                TRANSPOSE=False, ACC=ACC, PREC=PREC,
            )  # fmt: skip
            b_q += load_vector(p_bq, o_d, end, 0.0, ACC)[None, :]  # [BLOCK_N, BLOCK_D]
            b_q = tl.where((o_d < end)[None, :], b_q, float("-inf"))

            # Online softmax over the head's channels, as above.
            b_new = tl.maximum(b_max, tl.max(b_q, 1))  # [BLOCK_N]
            b_scale, b_q = tl.exp(b_max - b_new), tl.exp(b_q - b_new[:, None])
            b_sum = b_sum * b_scale + tl.sum(b_q, 1)
            b_M = load_rows(p_M, o_d, o_c, end, C, C).to(DOT)  # [BLOCK_D, BLOCK_C]
            b_head = add_dot(b_q.to(DOT), b_M, b_head * b_scale[:, None], PREC, ACC)
            b_max = b_new

        b_y += b_head / b_sum[:, None]

    b_y += load_vector(p_br, o_c, C, 0.0, ACC)[None, :]
    if RESIDUAL:
        b_y += load_rows(p_x, o_n, o_c, N, C, C, RELOAD=True).to(ACC)

    store_block(p_y, o_n.to(tl.int64) * C, o_c, o_n < N, o_c < C, b_y)
