"""Backward kernels of efficient attention (the maths and the arguments: ``efficient_attention_kernels``).

With g the gradient of y, and per head:
    dM = q^T g    dq = g M^T    queries: dz = q (dq - delta), delta = sum over a head's channels of q dq
    dcontext += dM Wr    dWr = dM^T context    dG = dcontext Wv    dWv = dcontext^T G    dbv: sums of dcontext
    dp = n dG^T    keys: dk = p (dp - r), r = sum over c of G dG, known without a pass; no gradient for their bias
    dn = dz Wq + dk Wk + p dG    dWq = dz^T n    dWk = dk^T n    dx = g + LayerNorm's gradient of dn
The keys' softmax is p = e / s, with e = exp(k - maximum) and s its sum over the tokens. float16 may hold neither p, of
size 1 / N, nor dG, of size N g: s divides dG and r once, before the passes that read them, which need e alone:
    dk = e (n (dG / s)^T - r / s)    p dG = e (dG / s)
Thanks to maximum and sum of the queries' softmax and delta, which the first kernel writes for every token and head, the
third takes any block of key channels by itself. (Not to their logsumexp, whose rounding shows where queries are large.)
With a batch norm in front, dx is the gradient of the normed map until the last kernel takes out the means over all
tokens, whose sums come with dx.

Further arguments that kernels share:
    p_dy (B, N, C): g    p_stats (B, heads, 3, N): maximum, sum, delta
    p_dG (B, CK, C): dG / s    p_balance (B, CK): r / s
    BLOCK_J: channels that products with g take at a time, or columns of a sum    BLOCK_S: slots at once
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.efficient_attention_kernels import (
    SIZES,
    affine,
    load_rows,
    load_vector,
    normalise,
    product,
    project,
)


@triton.jit
def project_gradient(
    b_dy,
    p_dy,
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
    DOT: tl.constexpr,
    PREC: tl.constexpr,
):
    """g w^T (n, d), or w g^T (d, n) if TURN, with g (n, c) as it is, or read in pieces if BLOCK_K < BLOCK_C."""
    b_out = tl.zeros((o_d.shape[0], o_n.shape[0]) if TURN else (o_n.shape[0], o_d.shape[0]), ACC)
    if BLOCK_K == BLOCK_C:
        b_w = load_rows(p_w, o_d, tl.arange(0, BLOCK_C), n_d, C, C).to(DOT)
        b_out = product(b_dy, b_w, b_out, TURN, ACC, PREC)
    else:
        for start in range(0, width, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            b_k = load_rows(p_dy, o_n, o_k, N, C, C).to(DOT)
            b_w = load_rows(p_w, o_d, o_k, n_d, C, C).to(DOT)
            b_out = product(b_k, b_w, b_out, TURN, ACC, PREC)
    return b_out


@triton.jit(do_not_specialize=SIZES)
def query_gradients_kernel(
    p_x,
    p_gamma,
    p_beta,
    p_wq,
    p_bq,
    p_folded,
    p_dy,
    p_stats,
    p_dfoldeds,
    p_dwqs,
    p_vectors,
    N,
    programs,
    heads,
    CK,
    DK,
    width,
    eps,
    C: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PREC: tl.constexpr,
):
    """Backward 1: this program's share of dM, dWq, dbq and dbr; of every token and head its statistics.

    Grid: images * programs, heads * blocks of columns of the two sums. BLOCK_D >= DK
    p_dfoldeds, p_dwqs (slots, CK, C)    p_vectors (slots, CK + C): dbq, then dbr
    """
    slot = tl.program_id(0).to(tl.int64)
    image, head = slot // programs, tl.program_id(1) % heads
    first, end = tl.program_id(1) // heads * BLOCK_J, (head + 1) * DK
    o_c, o_d, o_j = tl.arange(0, BLOCK_C), head * DK + tl.arange(0, BLOCK_D), first + tl.arange(0, BLOCK_J)
    p_x, p_dy, p_folded = p_x + image * N * C, p_dy + image * N * C, p_folded + image * CK * C
    p_stats += (image * heads + head) * 3 * N
    b_dM, b_dwq = tl.zeros((BLOCK_D, BLOCK_J), ACC), tl.zeros((BLOCK_D, BLOCK_J), ACC)
    b_dbq, b_dbr, b_bq = tl.zeros((BLOCK_D,), ACC), tl.zeros((BLOCK_J,), ACC), load_vector(p_bq, o_d, end, 0.0, ACC)
    for start in range(tl.program_id(0) % programs * BLOCK_N, N, programs * BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        b_x = load_rows(p_x, o_n, o_c, N, C, C).to(ACC)
        b_mean, b_rstd, b_xhat = normalise(b_x, o_n, N, eps, C, BLOCK_C, NORM, ACC)
        b_n = affine(b_xhat, p_gamma, p_beta, o_c, C, ACC).to(DOT)
        b_q = project(
            b_n, p_x, None, None, None, None, 0.0, b_mean, b_rstd, p_gamma, p_beta, o_n, N,
            p_wq, o_d, end, width, True, C, BLOCK_C, BLOCK_K, ACC, PREC,
        )  # fmt: skip
        b_q = tl.where((o_d < end)[:, None], b_q + b_bq[:, None], float("-inf"))
        b_top = tl.max(b_q, 0)
        b_q = tl.exp(b_q - b_top[None, :])
        b_total = tl.sum(b_q, 0)
        b_q = b_q / b_total[None, :]
        b_dy = load_rows(p_dy, o_n, o_c, N, C, C).to(DOT)
        b_dq = project_gradient(
            b_dy, p_dy, o_n, N, p_folded, o_d, end, width, True, C, BLOCK_C, BLOCK_K, ACC, DOT, PREC
        )
        if BLOCK_J < BLOCK_C:
            b_xj = load_rows(p_x, o_n, o_j, N, C, C).to(ACC)
            b_n = affine((b_xj - b_mean[:, None]) * b_rstd[:, None], p_gamma, p_beta, o_j, C, ACC).to(DOT)
            b_dy = load_rows(p_dy, o_n, o_j, N, C, C)
        b_dbr += tl.sum(b_dy.to(ACC), 0)
        b_dM = tl.dot(b_q.to(DOT), b_dy.to(DOT), b_dM, input_precision=PREC, out_dtype=ACC)
        b_delta = tl.sum(b_q * b_dq, 0)
        b_dq = b_q * (b_dq - b_delta[None, :])
        b_dbq += tl.sum(b_dq, 1)
        b_dwq = tl.dot(b_dq.to(DOT), b_n, b_dwq, input_precision=PREC, out_dtype=ACC)
        n_stat = tl.where(first == 0, N, 0)
        tl.store(p_stats + o_n, b_top, mask=o_n < n_stat)
        tl.store(p_stats + N + o_n, b_total, mask=o_n < n_stat)
        tl.store(p_stats + 2 * N + o_n, b_delta, mask=o_n < n_stat)
    o_sum, m_sum = slot * CK * C + o_d[:, None] * C + o_j[None, :], (o_d < end)[:, None] & (o_j < C)[None, :]
    tl.store(p_dfoldeds + o_sum, b_dM, mask=m_sum)
    tl.store(p_dwqs + o_sum, b_dwq, mask=m_sum)
    p_vectors += slot * (CK + C)
    tl.store(p_vectors + o_d, b_dbq, mask=o_d < tl.where(first == 0, end, 0))
    tl.store(p_vectors + CK + o_j, b_dbr, mask=o_j < tl.where(head == 0, C, 0))


@triton.jit(do_not_specialize=SIZES)
def token_gradients_kernel(
    p_x,
    p_gamma,
    p_beta,
    p_wk,
    p_wq,
    p_bq,
    p_max,
    p_folded,
    p_dG,
    p_balance,
    p_stats,
    p_dy,
    p_raw,
    p_bn_mean,
    p_bn_var,
    p_dx,
    p_parts,
    N,
    programs,
    heads,
    CK,
    DK,
    width,
    eps,
    bn_eps,
    C: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PREC: tl.constexpr,
):
    """Backward 2: dx, and this program's share of dgamma, dbeta and of the batch norm's two sums.

    Grid: images * programs. p_parts (slots, 4, C): dgamma, dbeta, sums of dx and of dx (raw - mean) / std
    p_raw (B, N, C), p_bn_mean, p_bn_var (C): x before its batch norm, and the statistics; or None
    """
    slot = tl.program_id(0).to(tl.int64)
    image = slot // programs
    o_image = image * N * C
    p_x, p_dy, p_dx = p_x + o_image, p_dy + o_image, p_dx + o_image
    p_folded, p_dG = p_folded + image * CK * C, p_dG + image * CK * C
    p_max, p_balance = p_max + image * CK, p_balance + image * CK
    o_c, o_d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    b_dgamma, b_dbeta = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    b_first, b_second = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    for first in range(tl.program_id(0) % programs * BLOCK_N, N, programs * BLOCK_N):
        o_n = first + tl.arange(0, BLOCK_N)
        b_x = load_rows(p_x, o_n, o_c, N, C, C).to(ACC)
        b_mean, b_rstd, b_xhat = normalise(b_x, o_n, N, eps, C, BLOCK_C, NORM, ACC)
        b_n = affine(b_xhat, p_gamma, p_beta, o_c, C, ACC).to(DOT)
        b_dn = tl.zeros((BLOCK_N, BLOCK_C), ACC)
        for start in range(0, CK, BLOCK_D):
            o_r = start + o_d
            b_k = project(
                b_n, p_x, None, None, None, None, 0.0, b_mean, b_rstd, p_gamma, p_beta, o_n, N,
                p_wk, o_r, CK, width, False, C, BLOCK_C, BLOCK_K, ACC, PREC,
            )  # fmt: skip
            b_e = tl.exp(b_k - load_vector(p_max, o_r, CK, 0.0, ACC)[None, :])
            b_dk = project(
                b_n, p_x, None, None, None, None, 0.0, b_mean, b_rstd, p_gamma, p_beta, o_n, N,
                p_dG, o_r, CK, width, False, C, BLOCK_C, BLOCK_K, ACC, PREC,
            )  # fmt: skip
            b_dk = (b_e * (b_dk - load_vector(p_balance, o_r, CK, 0.0, ACC)[None, :])).to(DOT)
            b_w = load_rows(p_dG, o_r, o_c, CK, C, C).to(DOT)
            b_dn = tl.dot(b_e.to(DOT), b_w, b_dn, input_precision=PREC, out_dtype=ACC)
            b_w = load_rows(p_wk, o_r, o_c, CK, C, C).to(DOT)
            b_dn = tl.dot(b_dk, b_w, b_dn, input_precision=PREC, out_dtype=ACC)
        b_dy = load_rows(p_dy, o_n, o_c, N, C, C).to(DOT)
        for head in range(0, heads):
            p_stat, end = p_stats + (image * heads + head) * 3 * N + o_n, (head + 1) * DK
            b_top = tl.load(p_stat, mask=o_n < N, other=0.0)
            b_total = tl.load(p_stat + N, mask=o_n < N, other=1.0)
            b_delta = tl.load(p_stat + 2 * N, mask=o_n < N, other=0.0)
            for start in range(head * DK, end, BLOCK_D):
                o_r = start + o_d
                b_q = project(
                    b_n, p_x, None, None, None, None, 0.0, b_mean, b_rstd, p_gamma, p_beta, o_n, N,
                    p_wq, o_r, end, width, False, C, BLOCK_C, BLOCK_K, ACC, PREC,
                )  # fmt: skip
                b_q = tl.exp(b_q + load_vector(p_bq, o_r, end, 0.0, ACC)[None, :] - b_top[:, None])
                b_dq = project_gradient(
                    b_dy, p_dy, o_n, N, p_folded, o_r, end, width, False, C, BLOCK_C, BLOCK_J, ACC, DOT, PREC
                )
                b_q = tl.where((o_r < end)[None, :], b_q / b_total[:, None] * (b_dq - b_delta[:, None]), 0.0).to(DOT)
                b_w = load_rows(p_wq, o_r, o_c, end, C, C).to(DOT)
                b_dn = tl.dot(b_q, b_w, b_dn, input_precision=PREC, out_dtype=ACC)
        b_dn = tl.where((o_n < N)[:, None], b_dn, 0.0)
        b_dx = b_dn
        if NORM:
            b_x = load_rows(p_x, o_n, o_c, N, C, C, AGAIN=True).to(ACC)
            b_xhat = tl.where((o_c < C)[None, :], (b_x - b_mean[:, None]) * b_rstd[:, None], 0.0)
            b_dgamma += tl.sum(b_dn * b_xhat, 0)
            b_dbeta += tl.sum(b_dn, 0)
            b_dn = b_dn * load_vector(p_gamma, o_c, C, 1.0, ACC)[None, :]
            b_mean = tl.sum(b_dn * b_xhat, 1) / C
            b_dx = (b_dn - (tl.sum(b_dn, 1) / C)[:, None] - b_xhat * b_mean[:, None]) * b_rstd[:, None]
        if RESIDUAL:
            b_dx += load_rows(p_dy, o_n, o_c, N, C, C, AGAIN=True).to(ACC)
        if p_raw is not None:
            b_x = load_rows(p_raw + o_image, o_n, o_c, N, C, C).to(ACC)
            b_std = tl.sqrt(tl.load(p_bn_var + o_c, mask=o_c < C, other=1.0).to(ACC) + bn_eps)
            b_xhat = (b_x - load_vector(p_bn_mean, o_c, C, 0.0, ACC)[None, :]) / b_std[None, :]
            b_first += tl.sum(b_dx, 0)
            b_second += tl.sum(b_dx * b_xhat, 0)
        m_x = (o_n < N)[:, None] & (o_c < C)[None, :]
        tl.store(p_dx + (o_n.to(tl.int64) * C)[:, None] + o_c[None, :], b_dx.to(p_dx.dtype.element_ty), mask=m_x)
    p_parts += slot * 4 * C + o_c
    if NORM:
        tl.store(p_parts, b_dgamma, mask=o_c < C)
        tl.store(p_parts + C, b_dbeta, mask=o_c < C)
    if p_raw is not None:
        tl.store(p_parts + 2 * C, b_first, mask=o_c < C)
        tl.store(p_parts + 3 * C, b_second, mask=o_c < C)


@triton.jit(do_not_specialize=SIZES)
def key_gradients_kernel(
    p_x,
    p_gamma,
    p_beta,
    p_wk,
    p_max,
    p_dG,
    p_balance,
    p_dwks,
    N,
    programs,
    CK,
    width,
    eps,
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
    """Backward 3: this program's share of dWk. Grid: images * programs, blocks of key channels.

    p_dwks (slots, CK, C)
    """
    slot = tl.program_id(0).to(tl.int64)
    image = slot // programs
    o_c, o_d = tl.arange(0, BLOCK_C), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    p_x, p_dG = p_x + image * N * C, p_dG + image * CK * C
    b_max = load_vector(p_max + image * CK, o_d, CK, 0.0, ACC)
    b_balance = load_vector(p_balance + image * CK, o_d, CK, 0.0, ACC)
    b_dwk = tl.zeros((BLOCK_D, BLOCK_C), ACC)
    for start in range(tl.program_id(0) % programs * BLOCK_N, N, programs * BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        b_x = load_rows(p_x, o_n, o_c, N, C, C).to(ACC)
        b_mean, b_rstd, b_xhat = normalise(b_x, o_n, N, eps, C, BLOCK_C, NORM, ACC)
        b_n = affine(b_xhat, p_gamma, p_beta, o_c, C, ACC).to(DOT)
        b_k = project(
            b_n, p_x, None, None, None, None, 0.0, b_mean, b_rstd, p_gamma, p_beta, o_n, N,
            p_wk, o_d, CK, width, True, C, BLOCK_C, BLOCK_K, ACC, PREC,
        )  # fmt: skip
        b_dp = project(
            b_n, p_x, None, None, None, None, 0.0, b_mean, b_rstd, p_gamma, p_beta, o_n, N,
            p_dG, o_d, CK, width, True, C, BLOCK_C, BLOCK_K, ACC, PREC,
        )  # fmt: skip
        b_dk = tl.exp(b_k - b_max[:, None]) * (b_dp - b_balance[:, None])
        b_dk = tl.where((o_n < N)[None, :], b_dk, 0.0)
        b_dwk = tl.dot(b_dk.to(DOT), b_n, b_dwk, input_precision=PREC, out_dtype=ACC)
    m_w = (o_d < CK)[:, None] & (o_c < C)[None, :]
    tl.store(p_dwks + slot * CK * C + o_d[:, None] * C + o_c[None, :], b_dwk, mask=m_w)
