"""Mean and variance of every channel of a map in one read: BatchNorm2d's statistics in training mode.

Programs share the pixels; each merges its blocks as it goes and writes one slot. A second kernel merges the slots in
order. Shapes in comments: n pixels, k channels. `b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.launch import accumulator, compile_options, padded, processors_of

SIZES = ("B", "H", "W", "slots")  # never specialised: a new size runs the code of the old one
BLOCK_N, BLOCK_K = 32, 64  # the most pixels and channels of a block
MOMENTS = compile_options(num_warps=8)
MERGE = dict(BLOCK_S=128, BLOCK_K=16, **compile_options(num_warps=4))


@triton.jit
def chan(n, b_mean, b_m2, more, b_mean_more, b_m2_more):
    """Statistics of two sets as one: counts, means, sums of squared deviations (Chan et al.); a set may be empty."""
    total = tl.maximum(n + more, 1.0)
    b_delta = b_mean_more - b_mean
    return b_mean + b_delta * (more / total), b_m2 + b_m2_more + b_delta * b_delta * (n * (more / total))


@triton.jit
def add_block(n, b_shift, b_mean, b_m2, b_x, m_x, more):
    """Mean less shift and squared deviations (k) of n values of each channel and of `more` in a block (pixels, k)."""
    b_x = tl.where(m_x, b_x - b_shift[None, :], 0.0)
    b_mean_more = tl.sum(b_x, 0) / tl.maximum(more, 1.0)
    b_x = tl.where(m_x, b_x - b_mean_more[None, :], 0.0)
    return chan(n, b_mean, b_m2, more, b_mean_more, tl.sum(b_x * b_x, 0))


@triton.jit
def store_moments(p_moments, o_k, K, n, b_shift, b_mean, b_m2, BLOCK_K: tl.constexpr, ACC: tl.constexpr):
    """This program's slot of moments (programs, 4, K), see ``merged_slots``."""
    p_moments += tl.program_id(0).to(tl.int64) * 4 * K + o_k
    tl.store(p_moments, tl.zeros((BLOCK_K,), ACC) + n, mask=o_k < K)
    tl.store(p_moments + K, b_shift, mask=o_k < K)
    tl.store(p_moments + 2 * K, b_mean, mask=o_k < K)
    tl.store(p_moments + 3 * K, b_m2, mask=o_k < K)


@triton.jit
def merged_slots(p_moments, o_k, slots, K, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr):
    """Mean and biased variance (k) of all slots in order, relative to the first shift: digits of a nearly constant
    channel far from 0 stay.

    p_moments (slots, 4, K): count (perhaps 0), shift, mean less shift, squared deviations of a program's pixels
    """
    b_first = tl.load(p_moments + K + o_k, mask=o_k < K * tl.minimum(slots, 1), other=0.0)
    n, b_mean, b_m2 = tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC)
    for start in range(0, slots, BLOCK_S):
        o_s = start + tl.arange(0, BLOCK_S)
        m_s = (o_s < slots)[:, None] & (o_k < K)[None, :]
        p_s = p_moments + (o_s.to(tl.int64) * 4 * K)[:, None] + o_k[None, :]
        b_n = tl.load(p_s, mask=m_s, other=0.0)  # (slots, k)
        b_shift, b_mean_s = tl.load(p_s + K, mask=m_s, other=0.0), tl.load(p_s + 2 * K, mask=m_s, other=0.0)
        b_m2_s = tl.load(p_s + 3 * K, mask=m_s, other=0.0)
        b_mean_s += b_shift - b_first[None, :]
        more = tl.sum(b_n, 0)
        b_mean_more = tl.sum(b_n * b_mean_s, 0) / tl.maximum(more, 1.0)
        b_mean_s -= b_mean_more[None, :]
        b_m2_more = tl.sum(b_m2_s + b_n * b_mean_s * b_mean_s, 0)
        b_mean, b_m2 = chan(n, b_mean, b_m2, more, b_mean_more, b_m2_more)
        n += more
    return b_first + b_mean, b_m2 / tl.maximum(n, 1.0)


@triton.jit(do_not_specialize=SIZES)
def moments_kernel(
    p_logits,
    p_parts,
    B,
    K,
    H,
    W,
    stride_lb,
    stride_lk,
    stride_lh,
    stride_lw,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
):
    """Moments of this program's pixels, to p_parts (programs, 4, K), see ``merged_slots``.

    Grid: programs, blocks of channels. The shift is the first pixel, the same for all.
    """
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_first = o_k < tl.minimum(B, 1) * K
    b_shift = tl.load(p_logits + o_k.to(tl.int64) * stride_lk, mask=m_first, other=0.0).to(ACC)
    blocks = tl.cdiv(W, BLOCK_N)
    n = tl.zeros((), ACC)
    b_mean, b_m2 = tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC)
    for index in range(tl.program_id(0), B * H * blocks, tl.num_programs(0)):
        line, o_x = (index // blocks).to(tl.int64), index % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        m_x = (o_x < W)[:, None] & (o_k < K)[None, :]
        p_line = p_logits + (line // H) * stride_lb + (line % H) * stride_lh
        b_x = tl.load(
            p_line + (o_x.to(tl.int64) * stride_lw)[:, None] + (o_k.to(tl.int64) * stride_lk)[None, :],
            mask=m_x,
            other=0.0,
        ).to(ACC)
        more = tl.minimum(W - index % blocks * BLOCK_N, BLOCK_N).to(ACC)
        b_mean, b_m2 = add_block(n, b_shift, b_mean, b_m2, b_x, m_x, more)
        n += more
    store_moments(p_parts, o_k, K, n, b_shift, b_mean, b_m2, BLOCK_K, ACC)


@triton.jit(do_not_specialize=SIZES)
def merge_moments_kernel(
    p_moments,
    p_mean,
    p_var,
    slots,
    K,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
):
    """mean and biased variance (K) of all slots. Grid: blocks of channels."""
    o_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    b_mean, b_var = merged_slots(p_moments, o_k, slots, K, BLOCK_S, BLOCK_K, ACC)
    tl.store(p_mean + o_k, b_mean, mask=o_k < K)
    tl.store(p_var + o_k, b_var, mask=o_k < K)


def merge_moments(moments: Tensor, mean: Tensor, var: Tensor) -> None:
    """Mean and biased variance (K) of moments (slots, 4, K), see ``merged_slots``; zeros of no slot."""
    slots, K = moments.shape[0], mean.shape[0]
    merge_moments_kernel[(triton.cdiv(K, MERGE["BLOCK_K"]),)](
        moments, mean, var, slots, K, ACC=accumulator(moments.dtype), **MERGE
    )


def batch_statistics(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over batch and pixels, (K) each, float32 or better.

    Args:
        logits: (B, K, H, W), any strides. An empty batch has zeros.
    """
    B, K, H, W = logits.shape
    stride_b, stride_k, stride_h, stride_w = logits.stride()
    if stride_h == W * stride_w:  # rows follow one another: one long row
        H, W = 1, H * W
    block_k, acc, dtype = min(BLOCK_K, padded(K)), accumulator(logits.dtype), sum_dtype(logits.dtype)
    k_blocks = triton.cdiv(K, block_k)
    programs = max(1, min(2 * processors_of(logits.device) // k_blocks, B * H * triton.cdiv(W, BLOCK_N)))
    parts, mean, var = (
        torch.empty(shape, dtype=dtype, device=logits.device) for shape in ((programs, 4, K), (K,), (K,))
    )
    moments_kernel[programs, k_blocks](
        logits,
        parts,
        B,
        K,
        H,
        W,
        stride_b,
        stride_k,
        stride_h,
        stride_w,
        BLOCK_N=BLOCK_N,
        BLOCK_K=block_k,
        ACC=acc,
        **MOMENTS,
    )
    merge_moments(parts, mean, var)
    return mean, var
