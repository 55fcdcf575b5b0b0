"""Sums across programs without atomics: one slot a program, added in the slots' order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.kernels.launch import accumulator, compile_options

SUMS = dict(BLOCK_S=128, BLOCK=32, **compile_options(num_warps=4))


@triton.jit
def sum_of_slots(p_parts, o, size, stride, slots, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """Elements o of parts (slots, size), a slot every `stride` elements, added in the slots' order; 0 beyond size."""
    b_sum = tl.zeros((o.shape[0],), ACC)
    for start in range(0, slots, BLOCK_S):
        o_s = start + tl.arange(0, BLOCK_S).to(tl.int64)
        m_parts = (o_s < slots)[:, None] & (o < size)[None, :]
        b_parts = tl.load(p_parts + (o_s * stride)[:, None] + o[None, :], mask=m_parts, other=0.0)
        b_sum += tl.sum(b_parts.to(ACC), 0)
    return b_sum


@triton.jit(do_not_specialize=("slots", "size", "half"))
def sum_slots_kernel(
    p_parts,
    p_bias,
    p_first,
    p_second,
    slots,
    size,
    half,
    C,
    HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Sum of parts (slots, size) over the slots, plus bias (C) on the last axis. Grid: blocks of size.

    The first `half` of the sums goes to one tensor, the rest to another.
    """
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_sum = sum_of_slots(p_parts, o, size, size, slots, BLOCK_S, ACC)
    if HAS_BIAS:
        b_sum += tl.load(p_bias + o % C, mask=o < size, other=0.0).to(ACC)
    tl.store(p_first + o, b_sum.to(p_first.dtype.element_ty), mask=o < half)
    tl.store(p_second + (o - half), b_sum.to(p_second.dtype.element_ty), mask=(o >= half) & (o < size))


def sum_slots(parts: Tensor, bias: Tensor | None, first: Tensor, second: Tensor | None) -> None:
    """Sum over the first axis of parts, plus bias, in order, into two tensors of half the size each, or into one."""
    size, C = parts[0].numel() if parts.shape[0] else first.numel(), first.shape[-1]
    sum_slots_kernel[(triton.cdiv(size, SUMS["BLOCK"]),)](
        parts,
        parts if bias is None else bias.contiguous(),
        first,
        first if second is None else second,
        parts.shape[0],
        size,
        first.numel(),
        C,
        HAS_BIAS=bias is not None,
        ACC=accumulator(parts.dtype),
        **SUMS,
    )
