"""Sums across programs without atomics: each program stores its partial sums, a second kernel adds them in order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.kernels.launch import accumulator, compile_options, launch

SUMS = dict(BLOCK_S=128, BLOCK=32, **compile_options(num_warps=4))


@triton.jit
def sum_of_partials(p_partials, o, size, stride, partials, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """Elements o [BLOCK] of the sum of p_partials (partials, size) over its first axis, in order; 0 beyond size.

    partials: how many    stride: elements between one program's partial sums and the next's
    BLOCK_S: partial sums read at a time
    """
    b_sum = tl.zeros((o.shape[0],), ACC)

    for start in range(0, partials, BLOCK_S):
        o_s = start + tl.arange(0, BLOCK_S).to(tl.int64)
        m_partials = (o_s < partials)[:, None] & (o < size)[None, :]
        b_partials = tl.load(p_partials + (o_s * stride)[:, None] + o[None, :], mask=m_partials, other=0.0)

        b_sum += tl.sum(b_partials.to(ACC), 0)

    return b_sum


@triton.jit
def store_gradient(p, o, begin, size, b_sum):
    """Store the sums begin to begin + size - 1 as the gradient p, unless that is None. o: numbers of the sums b_sum."""
    if p is not None:
        tl.store(p + (o - begin), b_sum.to(p.dtype.element_ty), mask=(o >= begin) & (o < begin + size))


@triton.jit(do_not_specialize=("partials", "size", "half"))
def add_partial_sums_kernel(
    p_partials, p_bias, p_first, p_second,
    partials, size, half, C,
    HAS_BIAS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum of partials (partials, size) over the first axis, plus bias (C) on the last. Grid: blocks of size.

    p_first, p_second: the first `half` of the sums, and the rest
    """
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)

    b_sum = sum_of_partials(p_partials, o, size, size, partials, BLOCK_S, ACC)  # [BLOCK]
    if HAS_BIAS:
        b_sum += tl.load(p_bias + o % C, mask=o < size, other=0.0).to(ACC)

    tl.store(p_first + o, b_sum.to(p_first.dtype.element_ty), mask=o < half)
    tl.store(p_second + (o - half), b_sum.to(p_second.dtype.element_ty), mask=(o >= half) & (o < size))


def add_partial_sums(partials: Tensor, bias: Tensor | None, first: Tensor, second: Tensor | None) -> None:
    """Sum over the first axis of partials, plus bias, in order, into two tensors of half the size each, or into one."""
    size = partials[0].numel() if partials.shape[0] else first.numel()
    launch(
        add_partial_sums_kernel, (triton.cdiv(size, SUMS["BLOCK"]),), SUMS,
        p_partials=partials, p_bias=partials if bias is None else bias.contiguous(),
        p_first=first, p_second=first if second is None else second,
        partials=partials.shape[0], size=size, half=first.numel(), C=first.shape[-1],
        HAS_BIAS=bias is not None, ACC=accumulator(partials.dtype),
    )  # fmt: skip
