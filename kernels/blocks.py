"""What all kernels share: blocks read from memory with a mask, and a few functions that keep their digits.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_block(p, o_row, o_col, m_row, m_col):
    """Elements p[o_row + o_col] as a block [rows, columns], 0 where either mask is false.

    o_row, o_col: offsets in elements, strides included; of more than 2^31 elements, in int64.
    """
    return tl.load(p + o_row[:, None] + o_col[None, :], mask=m_row[:, None] & m_col[None, :], other=0.0)


@triton.jit
def store_block(p, o_row, o_col, m_row, m_col, b):
    """A block [rows, columns] to p[o_row + o_col], in the dtype there, where both masks are true."""
    tl.store(p + o_row[:, None] + o_col[None, :], b.to(p.dtype.element_ty), mask=m_row[:, None] & m_col[None, :])


@triton.jit
def load_vector(p, o, n, absent: tl.constexpr, ACC: tl.constexpr):
    """Elements p[o] of a vector of n, 0 beyond it; of a vector that is None, the value `absent` everywhere."""
    b = tl.full(o.shape, absent, ACC)
    if p is not None:
        b = tl.load(p + o, mask=o < n, other=0.0).to(ACC)
    return b


@triton.jit
def tf32_parts(b):
    """A float32 block as the sum of two: rounded to the 11 digits of tf32, and what is left, of 12 digits."""
    b_high = ((b.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return b_high, b - b_high


@triton.jit
def add_dot(b_a, b_b, b_sum, PREC: tl.constexpr, ACC: tl.constexpr):
    """b_a b_b + b_sum. PREC: how float32 operands are multiplied, see ``launch.product_kind``.

    tf32x3: the product of what is left of both is less than a rounding. Tensor cores cut each of their sums to float32,
    where an fma rounds: always towards zero, an error that grows with their number. So they sum no more than this
    block, from zero, smallest terms first, and what they give is added outside, rounded.
    """
    if PREC == "tf32x3":
        b_a, b_rest_a = tf32_parts(b_a)
        b_b, b_rest_b = tf32_parts(b_b)
        b_product = tl.dot(b_rest_a, b_b, input_precision="tf32", out_dtype=ACC)
        b_product = tl.dot(b_a, b_rest_b, b_product, input_precision="tf32", out_dtype=ACC)
        b_sum += tl.dot(b_a, b_b, b_product, input_precision="tf32", out_dtype=ACC)
    else:
        b_sum = tl.dot(b_a, b_b, b_sum, input_precision=PREC, out_dtype=ACC)
    return b_sum


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0: the rounding of 1 + x is divided out again (Kahan)."""
    above = 1.0 + x
    return tl.where(above == 1.0, x, tl.log(above) * (x / tl.where(above == 1.0, 1.0, above - 1.0)))
