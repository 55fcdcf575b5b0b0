"""Backward kernels of efficient attention (the forward's mathematics: ``efficient_attention_kernels``).

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
tokens, whose sums come with dx. Each of its programs adds the partial sums up for itself, a hundred kilobytes from the
card's cache, and then has many rows of dx: a kernel in between would cost as much as that.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share; gamma, beta and biases may
be None:
    p_x, p_grad_y, p_dx (B, N, C): x as the LayerNorm reads it, g, dx    p_gamma, p_beta (C)    p_wk, p_wq (CK, C)
    p_bq (CK)    p_wv (CV, C)    p_bv (CV)    p_wr (C, CV)
    p_max, p_sum (B, CK), p_G, p_M (B, CK, C): of the forward    p_query_stats (B, heads, 3, N): maximum, sum, delta
    p_dM, p_dG (B, CK, C): dM, dG / s    p_dcontext (B, CK, DV): of each key channel's own head
    p_key_delta (B, CK): r / s    p_partial_dM, p_partial_dwq, p_partial_dwk (B * programs, CK, C)
    p_partial_biases (B * programs, CK + C): dbq, then dbr
    p_partial_norms (B * programs, 4, C): dgamma, dbeta, and the batch norm's two sums: of dx, of dx (raw - mean) / std
    p_raw (B, N, C): x before its batch norm    p_bn_mean, p_bn_var, p_bn_weight (C), bn_eps: the batch norm's
    N: tokens of an image    programs: that share an image's tokens    heads: their number
    CK, CV: key and value channels    DK, DV: those of a head
    C: channels, constexpr, so that rows are read wide    c_end: C at run time, so that loops over it are not unrolled
    eps: LayerNorm's    NORM: whether there is a LayerNorm    RESIDUAL: whether x is added to y
    BLOCK_N, BLOCK_D: tokens, key channels of a block    BLOCK_C: power of 2 >= C    BLOCK_S: partial sums at a time
    BLOCK_K: products over channels take so many at a time and read x again; BLOCK_C: all at once, x read once
    BLOCK_J: channels that products with g take at a time, or columns of a sum
    ACC: dtype of sums, statistics and softmax    DOT: dtype of the products' operands    PREC: their input_precision
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.blocks import add_dot, load_vector, store_block
from msformer_fast.kernels.efficient_attention_kernels import (
    SIZES,
    add_product,
    layer_norm,
    load_rows,
    project,
    reload_normed,
)
from msformer_fast.kernels.partial_sums import store_gradient, sum_of_partials


@triton.jit
def project_gradient(
    b_g, p_grad_y, p_w, o_n, o_d, N, n_d, c_end,
    C: tl.constexpr, BLOCK_K: tl.constexpr, TRANSPOSE: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """g w^T [BLOCK_N, BLOCK_D], or w g^T [BLOCK_D, BLOCK_N] if TRANSPOSE; w: rows o_d of a matrix (n_d, C).

    g [BLOCK_N, BLOCK_C] as it is, or read in pieces if BLOCK_K < BLOCK_C
    """
    b_out = tl.zeros((o_d.shape[0], o_n.shape[0]) if TRANSPOSE else (o_n.shape[0], o_d.shape[0]), ACC)

    if b_g.shape[1] == BLOCK_K:
        b_out = add_product(b_out, b_g, p_w, o_d, tl.arange(0, BLOCK_K), n_d, C, TRANSPOSE, ACC, PREC)
    else:
        for start in range(0, c_end, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            b_g_k = load_rows(p_grad_y, o_n, o_k, N, C, C).to(b_g.dtype)  # [BLOCK_N, BLOCK_K]
            b_out = add_product(b_out, b_g_k, p_w, o_d, o_k, n_d, C, TRANSPOSE, ACC, PREC)
    return b_out


@triton.jit(do_not_specialize=SIZES)
def query_gradients_kernel(
    p_x, p_gamma, p_beta, p_wq, p_bq, p_M, p_grad_y,
    p_query_stats, p_partial_dM, p_partial_dwq, p_partial_biases,
    N, programs, heads, CK, DK, c_end, eps,
    C: tl.constexpr, NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_K: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Backward 1: partial sums of dM, dWq, dbq and dbr over this program's tokens; every token's and head's statistics.

    Grid: images * programs, heads * blocks of columns of dM and dWq. BLOCK_D >= DK
    """
    program = tl.program_id(0).to(tl.int64)
    image, head = program // programs, tl.program_id(1) % heads
    column, end = tl.program_id(1) // heads * BLOCK_J, (head + 1) * DK
    o_c, o_d, o_j = tl.arange(0, BLOCK_C), head * DK + tl.arange(0, BLOCK_D), column + tl.arange(0, BLOCK_J)
    p_x += image * N * C
    p_grad_y += image * N * C
    p_M += image * CK * C
    p_query_stats += (image * heads + head) * 3 * N

    b_dM, b_dwq = tl.zeros((BLOCK_D, BLOCK_J), ACC), tl.zeros((BLOCK_D, BLOCK_J), ACC)
    b_dbq, b_dbr = tl.zeros((BLOCK_D,), ACC), tl.zeros((BLOCK_J,), ACC)
    b_bq = load_vector(p_bq, o_d, end, 0.0, ACC)

    for start in range(tl.program_id(0) % programs * BLOCK_N, N, programs * BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        b_x = load_rows(p_x, o_n, o_c, N, C, C).to(ACC)  # [BLOCK_N, BLOCK_C]
        b_n, norm = layer_norm(b_x, p_gamma, p_beta, o_n, N, eps, C, NORM, ACC, DOT)

        # Softmax over the channels of the head, all of which are here, transposed.
        # The pass over tokens multiplies otherwise under tf32x3: nothing adds dz over channels, so 0 need not come out.
        b_q = project(
            b_n, p_x, p_gamma, p_beta, p_wq, norm, o_n, o_d, N, end, c_end, C, BLOCK_K,
            TRANSPOSE=True, ACC=ACC, PREC=PREC,
        )  # fmt: skip
        b_q = tl.where((o_d < end)[:, None], b_q + b_bq[:, None], float("-inf"))  # [BLOCK_D, BLOCK_N]
        b_max_q = tl.max(b_q, 0)
        b_q = tl.exp(b_q - b_max_q[None, :])
        b_sum_q = tl.sum(b_q, 0)  # [BLOCK_N]
        b_q = b_q / b_sum_q[None, :]

        b_g = load_rows(p_grad_y, o_n, o_c, N, C, C).to(DOT)  # [BLOCK_N, BLOCK_C]
        b_dq = project_gradient(
            b_g, p_grad_y, p_M, o_n, o_d, N, end, c_end, C, BLOCK_K,
            TRANSPOSE=True, ACC=ACC, PREC=PREC,
        )  # fmt: skip

        # This program's columns of n and g [BLOCK_N, BLOCK_J].
        if BLOCK_J < BLOCK_C:
            b_n = reload_normed(p_x, p_gamma, p_beta, norm, o_n, o_j, N, C, DOT)
            b_g = load_rows(p_grad_y, o_n, o_j, N, C, C)

        b_dbr += tl.sum(b_g.to(ACC), 0)
        b_dM = add_dot(b_q.to(DOT), b_g.to(DOT), b_dM, PREC, ACC)

        b_delta = tl.sum(b_q * b_dq, 0)
        b_dz = b_q * (b_dq - b_delta[None, :])  # [BLOCK_D, BLOCK_N]
        b_dbq += tl.sum(b_dz, 1)
        b_dwq = add_dot(b_dz.to(DOT), b_n, b_dwq, PREC, ACC)

        # Programs for other columns find the same statistics: the first stores them.
        m_n = o_n < tl.where(column == 0, N, 0)
        tl.store(p_query_stats + o_n, b_max_q, mask=m_n)
        tl.store(p_query_stats + N + o_n, b_sum_q, mask=m_n)
        tl.store(p_query_stats + 2 * N + o_n, b_delta, mask=m_n)

    o_sum = program * CK * C + o_d[:, None] * C + o_j[None, :]  # [BLOCK_D, BLOCK_J]
    m_sum = (o_d < end)[:, None] & (o_j < C)[None, :]
    tl.store(p_partial_dM + o_sum, b_dM, mask=m_sum)
    tl.store(p_partial_dwq + o_sum, b_dwq, mask=m_sum)

    p_partial_biases += program * (CK + C)
    tl.store(p_partial_biases + o_d, b_dbq, mask=o_d < tl.where(column == 0, end, 0))
    tl.store(p_partial_biases + CK + o_j, b_dbr, mask=o_j < tl.where(head == 0, C, 0))


@triton.jit(do_not_specialize=SIZES)
def merge_gradients_kernel(
    p_partial_dM, p_grad_context, p_wv, p_wr, p_sum, p_G,
    p_dM, p_dcontext, p_dG, p_key_delta,
    programs, CK, CV, DK, DV,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Between the passes: dM of one key channel, its partial sums added in order; its rows of dcontext, dG / s, r / s.

    Grid: images * CK.
    p_grad_context (B, CK, DV): gradient of the context that arrives, or None; dcontext also has what came through M
    """
    row = tl.program_id(0).to(tl.int64)
    d, o_c, o_s = row % CK, tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    p_partial_dM += (row // CK * programs * CK + d) * C

    b_dM = tl.zeros((BLOCK_C,), ACC)
    for start in range(0, programs, BLOCK_S):
        b_dM += tl.sum(load_rows(p_partial_dM, start + o_s, o_c, programs, C, CK * C), 0)

    # Over the value channels of the key channel's head.
    b_dG = tl.zeros((BLOCK_C,), ACC)
    o_head = d // DK * DV  # the first of them
    for start in range(0, DV, BLOCK_S):
        o_v, m_v = o_head + start + o_s, start + o_s < DV
        b_wr = load_rows(p_wr, o_c, o_v, C, o_head + DV, CV).to(ACC)  # [BLOCK_C, BLOCK_S]
        b_dcontext = tl.sum(b_wr * b_dM[:, None], 0)  # [BLOCK_S]
        if p_grad_context is not None:
            b_dcontext += tl.load(p_grad_context + row * DV + start + o_s, mask=m_v, other=0.0).to(ACC)
        tl.store(p_dcontext + row * DV + start + o_s, b_dcontext, mask=m_v)

        b_wv = load_rows(p_wv, o_v, o_c, o_head + DV, C, C).to(ACC)  # [BLOCK_S, BLOCK_C]
        b_dG += tl.sum(b_wv * b_dcontext[:, None], 0)

    tl.store(p_dM + row * C + o_c, b_dM, mask=o_c < C)

    # The sum of the keys' softmax divides here, once for all passes.
    b_dG = b_dG / tl.load(p_sum + row)
    tl.store(p_dG + row * C + o_c, b_dG, mask=o_c < C)
    tl.store(p_key_delta + row, tl.sum(load_vector(p_G + row * C, o_c, C, 0.0, ACC) * b_dG, 0))


@triton.jit(do_not_specialize=SIZES)
def token_gradients_kernel(
    p_x, p_gamma, p_beta, p_wk, p_wq, p_bq, p_max, p_M, p_dG, p_key_delta, p_query_stats, p_grad_y,
    p_raw, p_bn_mean, p_bn_var, p_dx, p_partial_norms,
    N, programs, heads, CK, DK, c_end, eps, bn_eps,
    C: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_K: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Backward 2: dx, and over this program's tokens the sums behind dgamma, dbeta and the batch norm's gradient.

    Grid: images * programs.
    p_raw, p_bn_mean, p_bn_var: None without a batch norm
    """
    program = tl.program_id(0).to(tl.int64)
    image = program // programs
    o_image = image * N * C
    p_x += o_image
    p_grad_y += o_image
    p_dx += o_image
    p_M += image * CK * C
    p_dG += image * CK * C
    p_max += image * CK
    p_key_delta += image * CK
    o_c, o_d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)

    b_dgamma, b_dbeta = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    b_bn_sum, b_bn_sum_xhat = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)

    for start in range(tl.program_id(0) % programs * BLOCK_N, N, programs * BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        b_x = load_rows(p_x, o_n, o_c, N, C, C).to(ACC)  # [BLOCK_N, BLOCK_C]
        b_n, norm = layer_norm(b_x, p_gamma, p_beta, o_n, N, eps, C, NORM, ACC, DOT)
        b_dn = tl.zeros((BLOCK_N, BLOCK_C), ACC)

        # Keys: dn += p dG + dk Wk, with e for p, as dG and r are divided by the softmax's sum already.
        for start in range(0, CK, BLOCK_D):
            o_r = start + o_d
            b_k = project(
                b_n, p_x, p_gamma, p_beta, p_wk, norm, o_n, o_r, N, CK, c_end, C, BLOCK_K,
                TRANSPOSE=False, ACC=ACC, PREC=PREC,
            )  # fmt: skip
            b_e = tl.exp(b_k - load_vector(p_max, o_r, CK, 0.0, ACC)[None, :])  # [BLOCK_N, BLOCK_D]

            b_dp = project(
                b_n, p_x, p_gamma, p_beta, p_dG, norm, o_n, o_r, N, CK, c_end, C, BLOCK_K,
                TRANSPOSE=False, ACC=ACC, PREC=PREC,
            )  # fmt: skip
            b_dk = (b_e * (b_dp - load_vector(p_key_delta, o_r, CK, 0.0, ACC)[None, :])).to(DOT)

            b_dG = load_rows(p_dG, o_r, o_c, CK, C, C).to(DOT)  # [BLOCK_D, BLOCK_C]
            b_dn = add_dot(b_e.to(DOT), b_dG, b_dn, PREC, ACC)
            b_wk = load_rows(p_wk, o_r, o_c, CK, C, C).to(DOT)
            b_dn = add_dot(b_dk, b_wk, b_dn, PREC, ACC)

        # Queries, head by head: dn += dz Wq, the softmax from its statistics.
        b_g = load_rows(p_grad_y, o_n, o_c, N, C, C).to(DOT)
        for head in range(0, heads):
            end = (head + 1) * DK
            p_stat = p_query_stats + (image * heads + head) * 3 * N + o_n
            b_max_q = tl.load(p_stat, mask=o_n < N, other=0.0)
            b_sum_q = tl.load(p_stat + N, mask=o_n < N, other=1.0)
            b_delta = tl.load(p_stat + 2 * N, mask=o_n < N, other=0.0)

            for start in range(head * DK, end, BLOCK_D):
                o_r = start + o_d
                b_q = project(
                    b_n, p_x, p_gamma, p_beta, p_wq, norm, o_n, o_r, N, end, c_end, C, BLOCK_K,
                    TRANSPOSE=False, ACC=ACC, PREC=PREC,
                )  # fmt: skip
                b_e = tl.exp(b_q + load_vector(p_bq, o_r, end, 0.0, ACC)[None, :] - b_max_q[:, None])
                b_dq = project_gradient(
                    b_g, p_grad_y, p_M, o_n, o_r, N, end, c_end, C, BLOCK_J,
                    TRANSPOSE=False, ACC=ACC, PREC=PREC,
                )  # fmt: skip

                b_dz = b_e / b_sum_q[:, None] * (b_dq - b_delta[:, None])  # [BLOCK_N, BLOCK_D]
                b_dz = tl.where((o_r < end)[None, :], b_dz, 0.0).to(DOT)
                b_wq = load_rows(p_wq, o_r, o_c, end, C, C).to(DOT)
                b_dn = add_dot(b_dz, b_wq, b_dn, PREC, ACC)

        # LayerNorm's gradient, and g past it.
        b_dn = tl.where((o_n < N)[:, None], b_dn, 0.0)
        b_dx = b_dn
        if NORM:
            b_mean, b_rstd = norm
            b_x = load_rows(p_x, o_n, o_c, N, C, C, RELOAD=True).to(ACC)
            b_xhat = tl.where((o_c < C)[None, :], (b_x - b_mean[:, None]) * b_rstd[:, None], 0.0)
            b_dgamma += tl.sum(b_dn * b_xhat, 0)
            b_dbeta += tl.sum(b_dn, 0)

            b_dn = b_dn * load_vector(p_gamma, o_c, C, 1.0, ACC)[None, :]
            b_slope = tl.sum(b_dn * b_xhat, 1) / C  # of dn against xhat
            b_dx = (b_dn - (tl.sum(b_dn, 1) / C)[:, None] - b_xhat * b_slope[:, None]) * b_rstd[:, None]
        if RESIDUAL:
            b_dx += load_rows(p_grad_y, o_n, o_c, N, C, C, RELOAD=True).to(ACC)

        # What the batch norm's gradient takes out again needs the sums over all tokens.
        if p_raw is not None:
            b_raw = load_rows(p_raw + o_image, o_n, o_c, N, C, C).to(ACC)
            b_std = tl.sqrt(tl.load(p_bn_var + o_c, mask=o_c < C, other=1.0).to(ACC) + bn_eps)
            b_xhat = (b_raw - load_vector(p_bn_mean, o_c, C, 0.0, ACC)[None, :]) / b_std[None, :]
            b_bn_sum += tl.sum(b_dx, 0)
            b_bn_sum_xhat += tl.sum(b_dx * b_xhat, 0)

        store_block(p_dx, o_n.to(tl.int64) * C, o_c, o_n < N, o_c < C, b_dx)

    p_partial_norms += program * 4 * C + o_c
    if NORM:
        tl.store(p_partial_norms, b_dgamma, mask=o_c < C)
        tl.store(p_partial_norms + C, b_dbeta, mask=o_c < C)
    if p_raw is not None:
        tl.store(p_partial_norms + 2 * C, b_bn_sum, mask=o_c < C)
        tl.store(p_partial_norms + 3 * C, b_bn_sum_xhat, mask=o_c < C)


@triton.jit(do_not_specialize=SIZES)
def key_gradients_kernel(
    p_x, p_gamma, p_beta, p_wk, p_max, p_dG, p_key_delta, p_partial_dwk,
    N, programs, CK, c_end, eps,
    C: tl.constexpr, NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Backward 3: partial sums of dWk over this program's tokens. Grid: images * programs, blocks of key channels."""
    LOGITS: tl.constexpr = "ieee" if PREC == "tf32x3" else PREC  # as the forward made them, to the bit
    program = tl.program_id(0).to(tl.int64)
    image = program // programs
    o_c, o_d = tl.arange(0, BLOCK_C), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    p_x += image * N * C
    p_dG += image * CK * C

    b_max = load_vector(p_max + image * CK, o_d, CK, 0.0, ACC)
    b_key_delta = load_vector(p_key_delta + image * CK, o_d, CK, 0.0, ACC)
    b_dwk = tl.zeros((BLOCK_D, BLOCK_C), ACC)

    for start in range(tl.program_id(0) % programs * BLOCK_N, N, programs * BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        b_x = load_rows(p_x, o_n, o_c, N, C, C).to(ACC)  # [BLOCK_N, BLOCK_C]
        b_n, norm = layer_norm(b_x, p_gamma, p_beta, o_n, N, eps, C, NORM, ACC, DOT)

        b_k = project(
            b_n, p_x, p_gamma, p_beta, p_wk, norm, o_n, o_d, N, CK, c_end, C, BLOCK_K,
            TRANSPOSE=True, ACC=ACC, PREC=LOGITS,
        )  # fmt: skip
        b_dp = project(
            b_n, p_x, p_gamma, p_beta, p_dG, norm, o_n, o_d, N, CK, c_end, C, BLOCK_K,
            TRANSPOSE=True, ACC=ACC, PREC=PREC,
        )  # fmt: skip

        # With e for p: dG and r are divided by the softmax's sum already.
        b_dk = tl.exp(b_k - b_max[:, None]) * (b_dp - b_key_delta[:, None])  # [BLOCK_D, BLOCK_N]
        b_dk = tl.where((o_n < N)[None, :], b_dk, 0.0)
        b_dwk = add_dot(b_dk.to(DOT), b_n, b_dwk, PREC, ACC)

    m_w = (o_d < CK)[:, None] & (o_c < C)[None, :]
    tl.store(p_partial_dwk + program * CK * C + o_d[:, None] * C + o_c[None, :], b_dwk, mask=m_w)


@triton.jit
def store_sum_of_partials(p_out, p_partials, o, size, stride, partials, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """Elements o of the sum of partials (see ``sum_of_partials``), to p_out in its dtype, unless that is None."""
    if p_out is not None:
        store_gradient(p_out, o, 0, size, sum_of_partials(p_partials, o, size, stride, partials, BLOCK_S, ACC))


@triton.jit
def take_out_means(
    p_raw, p_bn_mean, p_bn_var, p_bn_weight, p_partial_norms, p_dx, p_dbn_weight, p_dbn_bias,
    program, programs, token_programs, rows, bn_eps,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx (rows, C), in place: from the gradient of the normed map to that of the raw one, in this program's rows.

    weight / std (dx - first / rows - xhat second / rows), xhat = (raw - mean) / std. first, second: the batch norm's
    sums, which are the gradients of its bias and weight
    """
    o_c = tl.arange(0, BLOCK_C)
    b_first = sum_of_partials(p_partial_norms + 2 * C, o_c, C, 4 * C, token_programs, BLOCK_S, ACC)  # [BLOCK_C]
    b_second = sum_of_partials(p_partial_norms + 3 * C, o_c, C, 4 * C, token_programs, BLOCK_S, ACC)
    if program == 0:
        store_gradient(p_dbn_bias, o_c, 0, C, b_first)
        store_gradient(p_dbn_weight, o_c, 0, C, b_second)

    b_rstd = 1.0 / tl.sqrt(tl.load(p_bn_var + o_c, mask=o_c < C, other=1.0).to(ACC) + bn_eps)
    b_mean = load_vector(p_bn_mean, o_c, C, 0.0, ACC)
    b_first, b_second = b_first / tl.maximum(rows, 1), b_rstd * b_second / tl.maximum(rows, 1)
    b_scale = b_rstd * load_vector(p_bn_weight, o_c, C, 1.0, ACC)

    for start in range(program * BLOCK_R, rows, programs * BLOCK_R):
        o_r = start + tl.arange(0, BLOCK_R)
        o_x = (o_r.to(tl.int64) * C)[:, None] + o_c[None, :]  # [BLOCK_R, BLOCK_C]
        m_x = (o_r < rows)[:, None] & (o_c < C)[None, :]
        b_centred = tl.load(p_raw + o_x, mask=m_x, other=0.0).to(ACC) - b_mean[None, :]
        b_dx = tl.load(p_dx + o_x, mask=m_x, other=0.0).to(ACC)

        b_dx = (b_dx - b_first[None, :] - b_centred * b_second[None, :]) * b_scale[None, :]

        tl.store(p_dx + o_x, b_dx.to(p_dx.dtype.element_ty), mask=m_x)


#: Vectors that have gradients: biases of queries (with the keys') and of the result; the norm's two.
VECTORS = 4


@triton.jit(do_not_specialize=SIZES)
def finish_kernel(
    p_dM, p_dcontext, p_G, p_wv, p_bv, p_partial_dwk, p_partial_dwq, p_partial_biases, p_partial_norms,
    p_raw, p_bn_mean, p_bn_var, p_bn_weight, p_dx,
    p_dwk, p_dbk, p_dwq, p_dbq, p_dwv, p_dbv, p_dwr, p_dbr, p_dgamma, p_dbeta, p_dbn_weight, p_dbn_bias,
    images, query_programs, key_programs, token_programs, bn_programs, rows, CK, CV, DK, DV, bn_eps,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Backward, last: the gradients of all parameters, and that of the map before the batch norm. A bias or an affine
    norm that is None has none.

    Grid: bn_programs programs that share the rows of dx, 0 without a batch norm; then value channels, a row of dWv, a
    column of dWr and dbv each; then blocks of dWk, of dWq; then one for each of VECTORS vectors.
    p_raw, p_dx: None without a batch norm    rows: tokens of all images    BLOCK_R: of them at a time
    p_d* : the parameters' gradients, in their shapes    query_programs, key_programs, token_programs: of the passes,
    over all images    BLOCK: elements of a matrix at a time, >= C, CK
    """
    index = tl.program_id(0) - bn_programs
    matrix_blocks = tl.cdiv(CK * C, BLOCK)
    o = tl.arange(0, BLOCK)

    if index < 0:  # rows of dx
        if p_raw is not None:
            take_out_means(
                p_raw, p_bn_mean, p_bn_var, p_bn_weight, p_partial_norms, p_dx, p_dbn_weight, p_dbn_bias,
                tl.program_id(0), bn_programs, token_programs, rows, bn_eps, C, BLOCK_R, BLOCK_C, BLOCK_S, ACC,
            )  # fmt: skip

    elif index < CV:  # a value channel
        o_c, o_s = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
        head = index // DV
        b_wv, b_bv = load_vector(p_wv + index * C, o_c, C, 0.0, ACC), tl.zeros((), ACC)
        if p_bv is not None:
            b_bv = tl.load(p_bv + index).to(ACC)

        # Over the key channels of the value channel's head; the context is recomputed, from G and in full precision.
        b_dwv, b_dwr, b_dbv = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_S,), ACC)
        for image in range(0, images):
            for start in range(0, DK, BLOCK_S):
                m_d = start + o_s < DK
                o_row = image * CK + head * DK + start + o_s
                n_row = image * CK + (head + 1) * DK
                b_G = load_rows(p_G, o_row, o_c, n_row, C, C)  # [BLOCK_S, BLOCK_C]
                b_context = tl.where(m_d, tl.sum(b_G * b_wv[None, :], 1) + b_bv, 0.0)  # [BLOCK_S]
                b_dcontext = tl.load(p_dcontext + o_row.to(tl.int64) * DV + index % DV, mask=m_d, other=0.0)

                b_dwv += tl.sum(b_G * b_dcontext[:, None], 0)
                b_dwr += tl.sum(load_rows(p_dM, o_row, o_c, n_row, C, C) * b_context[:, None], 0)
                b_dbv += b_dcontext

        tl.store(p_dwv + index * C + o_c, b_dwv.to(p_dwv.dtype.element_ty), mask=o_c < C)
        tl.store(p_dwr + o_c * CV + index, b_dwr.to(p_dwr.dtype.element_ty), mask=o_c < C)
        if p_dbv is not None:
            tl.store(p_dbv + index, tl.sum(b_dbv, 0).to(p_dbv.dtype.element_ty))

    elif index < CV + matrix_blocks:  # a block of dWk
        o += (index - CV) * BLOCK
        store_sum_of_partials(p_dwk, p_partial_dwk, o, CK * C, CK * C, key_programs, BLOCK_S, ACC)

    elif index < CV + 2 * matrix_blocks:  # a block of dWq
        o += (index - CV - matrix_blocks) * BLOCK
        store_sum_of_partials(p_dwq, p_partial_dwq, o, CK * C, CK * C, query_programs, BLOCK_S, ACC)

    else:  # a vector: each sum over the programs is a chain of loads
        vector = index - CV - 2 * matrix_blocks
        if vector == 0:
            if p_dbk is not None:  # the softmax over the tokens ignores it
                tl.store(p_dbk + o, tl.zeros((BLOCK,), ACC).to(p_dbk.dtype.element_ty), mask=o < CK)
            store_sum_of_partials(p_dbq, p_partial_biases, o, CK, CK + C, query_programs, BLOCK_S, ACC)
        elif vector == 1:
            store_sum_of_partials(p_dbr, p_partial_biases + CK, o, C, CK + C, query_programs, BLOCK_S, ACC)
        elif vector == 2:
            store_sum_of_partials(p_dgamma, p_partial_norms, o, C, 4 * C, token_programs, BLOCK_S, ACC)
        else:
            store_sum_of_partials(p_dbeta, p_partial_norms + C, o, C, 4 * C, token_programs, BLOCK_S, ACC)
