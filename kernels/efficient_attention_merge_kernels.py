"""Small kernels of efficient attention, between its passes over the tokens and after them.

They add the slots of the passes in order and do the work on matrices of the channels' size, in the sums' dtype. (The
maths and the arguments: ``efficient_attention_kernels`` and ``efficient_attention_gradient_kernels``.)
BLOCK_S: slots, or channels, at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from msformer_fast.kernels.efficient_attention_kernels import SIZES, load_rows, load_vector
from msformer_fast.kernels.partial_sums import sum_of_partials


@triton.jit(do_not_specialize=SIZES)
def merge_kernel(
    p_maxes,
    p_sums,
    p_gathereds,
    p_wv,
    p_bv,
    p_wr,
    p_max,
    p_sum,
    p_gathered,
    p_folded,
    p_context,
    programs,
    CK,
    CV,
    DK,
    DV,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
):
    """Between the passes: adds the slots of one key channel in order, makes its rows of context and M.

    Grid: images * CK. p_context (B, CK, DV): of each key channel's own head    BLOCK_S: slots, value channels at once
    """
    row = tl.program_id(0).to(tl.int64)
    d, first = row % CK, row // CK * programs
    o_c, o_s = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    p_maxes, p_sums, p_gathereds = p_maxes + first * CK + d, p_sums + first * CK + d, p_gathereds + (first * CK + d) * C
    b_max = tl.full((BLOCK_S,), float("-inf"), ACC)
    for start in range(0, programs, BLOCK_S):
        b_max = tl.maximum(
            b_max, tl.load(p_maxes + (start + o_s) * CK, mask=start + o_s < programs, other=float("-inf"))
        )
    b_max = tl.max(b_max, 0)
    b_sum, b_G = tl.zeros((BLOCK_S,), ACC), tl.zeros((BLOCK_C,), ACC)
    for start in range(0, programs, BLOCK_S):
        m_s = start + o_s < programs
        b_weight = tl.exp(tl.load(p_maxes + (start + o_s) * CK, mask=m_s, other=float("-inf")) - b_max)
        b_sum += b_weight * tl.load(p_sums + (start + o_s) * CK, mask=m_s, other=0.0)
        b_G += tl.sum(b_weight[:, None] * load_rows(p_gathereds, start + o_s, o_c, programs, C, CK * C), 0)
    b_sum = tl.sum(b_sum, 0)
    b_G = b_G / b_sum
    b_M, o_head = tl.zeros((BLOCK_C,), ACC), d // DK * DV
    for start in range(0, DV, BLOCK_S):
        o_v = o_head + start + o_s
        b_context = tl.sum(load_rows(p_wv, o_v, o_c, o_head + DV, C, C).to(ACC) * b_G[None, :], 1)
        b_context += load_vector(p_bv, o_v, o_head + DV, 0.0, ACC)
        tl.store(p_context + row * DV + start + o_s, b_context.to(p_context.dtype.element_ty), mask=start + o_s < DV)
        b_wr = load_rows(p_wr, o_c, o_v, C, o_head + DV, CV).to(ACC)
        b_M += tl.sum(b_wr * tl.where(start + o_s < DV, b_context, 0.0)[None, :], 1)
    tl.store(p_max + row, b_max)
    tl.store(p_sum + row, b_sum)
    tl.store(p_gathered + row * C + o_c, b_G, mask=o_c < C)
    tl.store(p_folded + row * C + o_c, b_M, mask=o_c < C)


@triton.jit(do_not_specialize=SIZES)
def merge_gradients_kernel(
    p_dfoldeds,
    p_dcontext,
    p_wv,
    p_wr,
    p_sum,
    p_gathered,
    p_dfolded,
    p_dcontexts,
    p_dG,
    p_balance,
    programs,
    CK,
    CV,
    DK,
    DV,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
):
    """Between the passes: dM of one key channel, its slots added in order; its rows of dcontext, dG / s, and r / s.

    Grid: images * CK. p_dcontext: gradient that arrives, or None    p_dcontexts (B, CK, DV): with what came through M
    """
    row = tl.program_id(0).to(tl.int64)
    d, o_c, o_s = row % CK, tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    p_dfoldeds += (row // CK * programs * CK + d) * C
    b_dM, b_dG, o_head = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC), d // DK * DV
    for start in range(0, programs, BLOCK_S):
        b_dM += tl.sum(load_rows(p_dfoldeds, start + o_s, o_c, programs, C, CK * C), 0)
    for start in range(0, DV, BLOCK_S):
        o_v, m_v = o_head + start + o_s, start + o_s < DV
        b_dcontext = tl.sum(load_rows(p_wr, o_c, o_v, C, o_head + DV, CV).to(ACC) * b_dM[:, None], 0)
        if p_dcontext is not None:
            b_dcontext += tl.load(p_dcontext + row * DV + start + o_s, mask=m_v, other=0.0).to(ACC)
        tl.store(p_dcontexts + row * DV + start + o_s, b_dcontext, mask=m_v)
        b_dG += tl.sum(load_rows(p_wv, o_v, o_c, o_head + DV, C, C).to(ACC) * b_dcontext[:, None], 0)
    tl.store(p_dfolded + row * C + o_c, b_dM, mask=o_c < C)
    b_dG = b_dG / tl.load(p_sum + row)
    tl.store(p_dG + row * C + o_c, b_dG, mask=o_c < C)
    tl.store(p_balance + row, tl.sum(load_vector(p_gathered + row * C, o_c, C, 0.0, ACC) * b_dG, 0))


@triton.jit
def store_sum(p_out, p_parts, o, size, stride, slots, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """Elements o of the parts' sum, to p_out unless that is None."""
    if p_out is not None:
        b_sum = sum_of_partials(p_parts, o, size, stride, slots, BLOCK_S, ACC)
        tl.store(p_out + o, b_sum.to(p_out.dtype.element_ty), mask=o < size)


@triton.jit(do_not_specialize=SIZES)
def finish_kernel(
    p_dfolded,
    p_dcontexts,
    p_gathered,
    p_wv,
    p_bv,
    p_dwks,
    p_dwqs,
    p_vectors,
    p_parts,
    p_dwk,
    p_dbk,
    p_dwq,
    p_dbq,
    p_dwv,
    p_dbv,
    p_dwr,
    p_dbr,
    p_dgamma,
    p_dbeta,
    p_dbn_weight,
    p_dbn_bias,
    p_sums,
    images,
    query_slots,
    key_slots,
    token_slots,
    CK,
    CV,
    DK,
    DV,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
):
    """Backward, last: the gradients of all parameters. A bias or an affine norm that is None has none.

    Grid: value channels, a row of dWv, a column of dWr and dbv each; then blocks of dWk, of dWq; then one for all
    vectors. p_sums (2, C): the batch norm's two sums in full precision    BLOCK >= C, CK
    """
    index = tl.program_id(0)
    matrix_blocks = tl.cdiv(CK * C, BLOCK)
    o = tl.arange(0, BLOCK)
    if index < CV:
        o_c, o_s = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
        head = index // DV
        b_wv, b_bv = load_vector(p_wv + index * C, o_c, C, 0.0, ACC), tl.zeros((), ACC)
        if p_bv is not None:
            b_bv = tl.load(p_bv + index).to(ACC)
        b_dwv, b_dwr, b_dbv = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_S,), ACC)
        for image in range(0, images):
            for start in range(0, DK, BLOCK_S):
                m_d = start + o_s < DK
                o_row = image * CK + head * DK + start + o_s
                n_row = image * CK + (head + 1) * DK
                b_G = load_rows(p_gathered, o_row, o_c, n_row, C, C)
                b_context = tl.where(m_d, tl.sum(b_G * b_wv[None, :], 1) + b_bv, 0.0)
                p_dcontext = p_dcontexts + o_row.to(tl.int64) * DV + index % DV
                b_dcontext = tl.load(p_dcontext, mask=m_d, other=0.0)
                b_dwv += tl.sum(b_G * b_dcontext[:, None], 0)
                b_dwr += tl.sum(load_rows(p_dfolded, o_row, o_c, n_row, C, C) * b_context[:, None], 0)
                b_dbv += b_dcontext
        tl.store(p_dwv + index * C + o_c, b_dwv.to(p_dwv.dtype.element_ty), mask=o_c < C)
        tl.store(p_dwr + o_c * CV + index, b_dwr.to(p_dwr.dtype.element_ty), mask=o_c < C)
        if p_dbv is not None:
            tl.store(p_dbv + index, tl.sum(b_dbv, 0).to(p_dbv.dtype.element_ty))
    elif index < CV + matrix_blocks:
        o += (index - CV) * BLOCK
        store_sum(p_dwk, p_dwks, o, CK * C, CK * C, key_slots, BLOCK_S, ACC)
    elif index < CV + 2 * matrix_blocks:
        o += (index - CV - matrix_blocks) * BLOCK
        store_sum(p_dwq, p_dwqs, o, CK * C, CK * C, query_slots, BLOCK_S, ACC)
    else:
        if p_dbk is not None:
            tl.store(p_dbk + o, tl.zeros((BLOCK,), ACC).to(p_dbk.dtype.element_ty), mask=o < CK)
        store_sum(p_dbq, p_vectors, o, CK, CK + C, query_slots, BLOCK_S, ACC)
        store_sum(p_dbr, p_vectors + CK, o, C, CK + C, query_slots, BLOCK_S, ACC)
        store_sum(p_dgamma, p_parts, o, C, 4 * C, token_slots, BLOCK_S, ACC)
        store_sum(p_dbeta, p_parts + C, o, C, 4 * C, token_slots, BLOCK_S, ACC)
        store_sum(p_dbn_bias, p_parts + 2 * C, o, C, 4 * C, token_slots, BLOCK_S, ACC)
        store_sum(p_dbn_weight, p_parts + 3 * C, o, C, 4 * C, token_slots, BLOCK_S, ACC)
        if p_sums is not None:
            store_sum(p_sums, p_parts + 2 * C, o, C, 4 * C, token_slots, BLOCK_S, ACC)
            store_sum(p_sums + C, p_parts + 3 * C, o, C, 4 * C, token_slots, BLOCK_S, ACC)


@triton.jit(do_not_specialize=SIZES)
def batch_norm_gradient_kernel(
    p_raw,
    p_mean,
    p_var,
    p_weight,
    p_sums,
    p_dx,
    rows,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """dx (rows, C), in place: from the gradient of the normed map to that of the raw one. Grid: blocks of rows.

    weight / std (dx - first / rows - xhat second / rows), xhat = (raw - mean) / std. p_sums (2, C): first, second
    """
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = tl.arange(0, BLOCK_C)
    o_x, m_x = (o_r * C)[:, None] + o_c[None, :], (o_r < rows)[:, None] & (o_c < C)[None, :]
    b_rstd = 1.0 / tl.sqrt(tl.load(p_var + o_c, mask=o_c < C, other=1.0).to(ACC) + eps)
    b_xhat = tl.load(p_raw + o_x, mask=m_x, other=0.0).to(ACC) - load_vector(p_mean, o_c, C, 0.0, ACC)[None, :]
    b_dx = tl.load(p_dx + o_x, mask=m_x, other=0.0).to(ACC)
    b_dx -= (load_vector(p_sums, o_c, C, 0.0, ACC) / rows)[None, :]
    b_dx -= b_xhat * (b_rstd * load_vector(p_sums + C, o_c, C, 0.0, ACC) / rows)[None, :]
    b_dx *= (b_rstd * load_vector(p_weight, o_c, C, 1.0, ACC))[None, :]
    tl.store(p_dx + o_x, b_dx.to(p_dx.dtype.element_ty), mask=m_x)
