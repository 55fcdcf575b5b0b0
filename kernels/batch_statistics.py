"""Mean and variance of every channel of a feature map in one read: BatchNorm2d's statistics in training mode.

    mean = sum of x / n    var = sum of (x - mean)^2 / n, biased    over batch and pixels

Programs share the pixels of a map of K channels; each merges its blocks as it goes (Chan et al.) and stores its
moments; a second kernel merges those in order. Two maps of K channels may share both launches.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Moments (programs, 4, K) of each program's pixels: their
count (perhaps 0), a shift, mean less shift, and sum of squared deviations from the mean. The shift is near the mean, so
that a nearly constant channel far from 0 keeps its digits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.launch import accumulator, compile_options, launch, multiprocessors_of, padded

# never specialised: a new size runs the code of the old one
SIZES = ("B", "H", "W", "programs", "more_B", "more_H", "more_W", "more_programs")
BLOCK_N, BLOCK_K = 32, 64  # the most pixels and channels of a block
MOMENTS = compile_options(num_warps=8)
MERGE = dict(BLOCK_S=128, BLOCK_K=16, **compile_options(num_warps=4))


@triton.jit
def merge_two(n, b_mean, b_m2, n_new, b_mean_new, b_m2_new):
    """Statistics of two sets as one: counts, means, sums of squared deviations (Chan et al.); a set may be empty."""
    total = tl.maximum(n + n_new, 1.0)
    b_delta = b_mean_new - b_mean
    return b_mean + b_delta * (n_new / total), b_m2 + b_m2_new + b_delta * b_delta * (n * (n_new / total))


@triton.jit
def add_block(n, b_shift, b_mean, b_m2, b_x, m_x, n_new):
    """Mean less shift, squared deviations [BLOCK_K] of n values a channel and of `n_new` in b_x [BLOCK_N, BLOCK_K]."""
    b_x = tl.where(m_x, b_x - b_shift[None, :], 0.0)
    b_mean_new = tl.sum(b_x, 0) / tl.maximum(n_new, 1.0)  # [BLOCK_K]

    b_x = tl.where(m_x, b_x - b_mean_new[None, :], 0.0)
    return merge_two(n, b_mean, b_m2, n_new, b_mean_new, tl.sum(b_x * b_x, 0))


@triton.jit
def store_moments(p_moments, o_k, K, n, b_shift, b_mean, b_m2, BLOCK_K: tl.constexpr, ACC: tl.constexpr):
    """This program's row of moments (programs, 4, K)."""
    p_moments += tl.program_id(0).to(tl.int64) * 4 * K + o_k
    tl.store(p_moments, tl.zeros((BLOCK_K,), ACC) + n, mask=o_k < K)
    tl.store(p_moments + K, b_shift, mask=o_k < K)
    tl.store(p_moments + 2 * K, b_mean, mask=o_k < K)
    tl.store(p_moments + 3 * K, b_m2, mask=o_k < K)


@triton.jit
def load_moments(p_moments, o_k, m_k, K):
    """What store_moments left in this program's row: count, shift, mean less shift, squared deviations; 0 outside."""
    p_moments += tl.program_id(0).to(tl.int64) * 4 * K + o_k
    n = tl.max(tl.load(p_moments, mask=m_k, other=0.0), 0)  # stored once a channel
    b_shift = tl.load(p_moments + K, mask=m_k, other=0.0)
    b_mean = tl.load(p_moments + 2 * K, mask=m_k, other=0.0)
    b_m2 = tl.load(p_moments + 3 * K, mask=m_k, other=0.0)
    return n, b_shift, b_mean, b_m2


@triton.jit
def merged_moments(p_moments, o_k, programs, K, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr):
    """Mean and biased variance [BLOCK_K] of moments (programs, 4, K), merged in order, BLOCK_S programs at a time."""
    # All means are taken relative to the first shift.
    b_first = tl.load(p_moments + K + o_k, mask=o_k < K * tl.minimum(programs, 1), other=0.0)
    n, b_mean, b_m2 = tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC)

    for start in range(0, programs, BLOCK_S):
        o_s = start + tl.arange(0, BLOCK_S)
        m_s = (o_s < programs)[:, None] & (o_k < K)[None, :]
        p_s = p_moments + (o_s.to(tl.int64) * 4 * K)[:, None] + o_k[None, :]
        b_n = tl.load(p_s, mask=m_s, other=0.0)  # [BLOCK_S, BLOCK_K], as are the next three
        b_shift, b_mean_s = tl.load(p_s + K, mask=m_s, other=0.0), tl.load(p_s + 2 * K, mask=m_s, other=0.0)
        b_m2_s = tl.load(p_s + 3 * K, mask=m_s, other=0.0)

        b_mean_s += b_shift - b_first[None, :]
        n_new = tl.sum(b_n, 0)
        b_mean_new = tl.sum(b_n * b_mean_s, 0) / tl.maximum(n_new, 1.0)
        b_mean_s -= b_mean_new[None, :]
        b_m2_new = tl.sum(b_m2_s + b_n * b_mean_s * b_mean_s, 0)

        b_mean, b_m2 = merge_two(n, b_mean, b_m2, n_new, b_mean_new, b_m2_new)
        n += n_new

    return b_first + b_mean, b_m2 / tl.maximum(n, 1.0)


@triton.jit
def store_moments_of(
    p_x, p_moments, sizes, strides, K, program, programs,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Moments of one of the programs that share a map. sizes: B, H, W    strides: along image, channel, row, column"""
    B, H, W = sizes
    stride_b, stride_k, stride_h, stride_w = strides
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(W, BLOCK_N)

    # The shift is the first pixel of all, the same for every program.
    m_first = o_k < tl.minimum(B, 1) * K
    b_shift = tl.load(p_x + o_k.to(tl.int64) * stride_k, mask=m_first, other=0.0).to(ACC)

    n = tl.zeros((), ACC)
    b_mean, b_m2 = tl.zeros((BLOCK_K,), ACC), tl.zeros((BLOCK_K,), ACC)

    for index in range(program, B * H * blocks, programs):
        line, o_x = (index // blocks).to(tl.int64), index % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        m_x = (o_x < W)[:, None] & (o_k < K)[None, :]
        p_line = p_x + (line // H) * stride_b + (line % H) * stride_h
        p_block = p_line + (o_x.to(tl.int64) * stride_w)[:, None] + (o_k.to(tl.int64) * stride_k)[None, :]
        b_x = tl.load(p_block, mask=m_x, other=0.0).to(ACC)  # [BLOCK_N, BLOCK_K]

        n_new = tl.minimum(W - index % blocks * BLOCK_N, BLOCK_N).to(ACC)
        b_mean, b_m2 = add_block(n, b_shift, b_mean, b_m2, b_x, m_x, n_new)
        n += n_new

    store_moments(p_moments, o_k, K, n, b_shift, b_mean, b_m2, BLOCK_K, ACC)


@triton.jit(do_not_specialize=SIZES)
def moments_kernel(
    p_x, p_more, p_moments,
    K, B, H, W, stride_b, stride_k, stride_h, stride_w, programs,
    more_B, more_H, more_W, more_stride_b, more_stride_k, more_stride_h, more_stride_w, more_programs,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Moments of this program's pixels. Grid: programs of the one map, then of the other, blocks of channels.

    p_x (B, K, H, W), any strides (stride_*), which `programs` share    p_more: another map, or None, with more_*
    p_moments (programs + more_programs, 4, K)
    """
    program, sizes = tl.program_id(0), (B, H, W)
    strides = (stride_b, stride_k, stride_h, stride_w)
    if p_more is None:
        store_moments_of(p_x, p_moments, sizes, strides, K, program, tl.num_programs(0), BLOCK_N, BLOCK_K, ACC)
    elif program < programs:
        store_moments_of(p_x, p_moments, sizes, strides, K, program, programs, BLOCK_N, BLOCK_K, ACC)
    else:
        sizes, strides = (more_B, more_H, more_W), (more_stride_b, more_stride_k, more_stride_h, more_stride_w)
        store_moments_of(
            p_more, p_moments, sizes, strides, K, program - programs, more_programs, BLOCK_N, BLOCK_K, ACC
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def merge_moments_kernel(
    p_moments, p_mean, p_var,
    programs, more_programs, K,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance (K) of moments (programs + more_programs, 4, K), of one map or of two.

    Grid: blocks of channels, maps. p_mean, p_var (maps, K)
    """
    second = tl.program_id(1)
    o_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    p_moments += (second * programs).to(tl.int64) * 4 * K

    b_mean, b_var = merged_moments(
        p_moments, o_k, tl.where(second == 0, programs, more_programs), K, BLOCK_S, BLOCK_K, ACC
    )

    tl.store(p_mean + second * K + o_k, b_mean, mask=o_k < K)
    tl.store(p_var + second * K + o_k, b_var, mask=o_k < K)


def merge_moments(moments: Tensor, mean: Tensor, var: Tensor, more_programs: int = 0) -> None:
    """Mean and biased variance (K) of moments (programs, 4, K); zeros of no program.

    Args:
        mean, var: (K), or of two maps (2, K), of which the second has the last ``more_programs`` of the moments.
    """
    programs, K = moments.shape[0] - more_programs, mean.shape[-1]
    launch(
        merge_moments_kernel, (triton.cdiv(K, MERGE["BLOCK_K"]), mean.numel() // K), MERGE,
        p_moments=moments, p_mean=mean, p_var=var, programs=programs, more_programs=more_programs, K=K,
        ACC=accumulator(moments.dtype),
    )  # fmt: skip


def batch_statistics(x: Tensor, more: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over batch and pixels: (K) each, of two maps (2, K); float32 or better.

    Args:
        x: (B, K, H, W), any strides. An empty batch has zeros.
        more: another map of K channels and the same dtype.
    """
    K, dtype = x.shape[1], sum_dtype(x.dtype)
    block_k = min(BLOCK_K, padded(K))
    k_blocks = triton.cdiv(K, block_k)
    first, programs = _sharing(x, k_blocks)
    second, more_programs = (dict.fromkeys(first), 0) if more is None else _sharing(more, k_blocks)
    total = programs + more_programs

    shape = (K,) if more is None else (2, K)
    moments, mean, var = (torch.empty(size, dtype=dtype, device=x.device) for size in ((total, 4, K), shape, shape))
    launch(
        moments_kernel, (total, k_blocks), MOMENTS, first, {f"more_{name}": value for name, value in second.items()},
        p_x=x, p_more=more, p_moments=moments, K=K, programs=programs, more_programs=more_programs,
        BLOCK_N=BLOCK_N, BLOCK_K=block_k, ACC=accumulator(x.dtype),
    )  # fmt: skip
    merge_moments(moments, mean, var, more_programs)
    return mean, var


def _sharing(x: Tensor, k_blocks: int) -> tuple[dict[str, int], int]:
    """Sizes and strides of a map (B, K, H, W) as the kernel names them, and how many programs share its pixels."""
    B, _, H, W = x.shape
    stride_b, stride_k, stride_h, stride_w = x.stride()
    if stride_h == W * stride_w:  # rows follow one another: one long row
        H, W = 1, H * W
    programs = max(1, min(2 * multiprocessors_of(x.device) // k_blocks, B * H * triton.cdiv(W, BLOCK_N)))
    strides = dict(stride_b=stride_b, stride_k=stride_k, stride_h=stride_h, stride_w=stride_w)
    return dict(B=B, H=H, W=W, **strides), programs
