"""Stability loss: how far the attention of each patch is from pointing at the patch itself.

    S = q k^T / scale    A = softmax(S) over the last axis    loss = mean over the batch of 2 / T^2 sum_i (1 - A_ii)

That is the mean absolute difference between A and the identity, because a row of A sums to 1. No T x T matrix is
stored. Two numbers a row are enough for both directions, and they keep their digits when A_ii comes near to 1, where
`lse_i - s_ii` would round to 0: the diagonal score s_ii, and `others`, the logsumexp of the row without it.

    x_i = others_i - s_ii    1 - A_ii = sigmoid(x_i)    lse_i = logaddexp(others_i, s_ii)
    D_ij = A_ii (1 - A_ii) E_ij,  E_ij = exp(s_ij - others_i) for j != i,  E_ii = -1    (rows of E sum to 0)
    dq = c D k    dk = c D^T q    c = 2 / (scale T^2 B) dloss

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share:
    p_q, p_k (B, T, C), any strides    p_others, p_diagonal (B, T)    B, T, C: images, patches, channels
    SCALE: divisor of the scores    BLOCK_M: patches that a program owns    BLOCK_N: patches that it loops over
    BLOCK_K: channels that a product of scores takes at a time    BLOCK_C: power of 2 >= C
    ACC: dtype of sums    PREC: input_precision of products
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.blocks import add_dot
from msformer_fast.kernels.launch import (
    accumulator,
    choose,
    compile_options,
    launch,
    padded,
    product_kind,
    target_of,
)
from msformer_fast.limits import STABILITY_LOSS_CHANNELS

SIZES = ("B", "T", "partials")  # never specialised: a new size runs the code of the old one


@triton.jit
def _load_patches(p, o_row, o_c, T, C, stride_t, stride_c):
    """Some channels of some patches [rows, channels], 0 outside."""
    o = (o_row.to(tl.int64) * stride_t)[:, None] + (o_c.to(tl.int64) * stride_c)[None, :]
    return tl.load(p + o, mask=(o_row < T)[:, None] & (o_c < C)[None, :], other=0.0)


@triton.jit
def _scores(
    p_a, p_b, o_m, o_n,
    T, C, stride_at, stride_ac, stride_bt, stride_bc,
    SCALE: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """a b^T / scale [BLOCK_M, BLOCK_N] of patches o_m of a and o_n of b."""
    b_s = tl.zeros((o_m.shape[0], o_n.shape[0]), ACC)

    for start in range(0, C, BLOCK_K):
        o_c = start + tl.arange(0, BLOCK_K)
        b_a = _load_patches(p_a, o_m, o_c, T, C, stride_at, stride_ac)  # [BLOCK_M, BLOCK_K]
        b_b = _load_patches(p_b, o_n, o_c, T, C, stride_bt, stride_bc)  # [BLOCK_N, BLOCK_K]

        b_s = add_dot(b_a, tl.trans(b_b), b_s, PREC, ACC)

    # fma(s, 1 / scale, 0): a plain product may be contracted with the subtraction that follows, in one kernel and not
    # in another, and the backward needs the very bits that `others` was made from.
    return tl.fma(b_s, tl.full(b_s.shape, 1.0 / SCALE, ACC), tl.zeros(b_s.shape, ACC))


@triton.jit(do_not_specialize=SIZES)
def stability_kernel(
    p_q, p_k, p_others, p_diagonal, p_partials,
    T, C, stride_qb, stride_qt, stride_qc, stride_kb, stride_kt, stride_kc,
    SCALE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """others and diagonal, and this program's sum of 1 - A_ii. Grid: B * blocks of rows.

    p_partials: one sum a program
    """
    blocks = tl.cdiv(T, BLOCK_M)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    o_m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    p_q += image * stride_qb
    p_k += image * stride_kb

    # Begins at -1e30, not -inf, for -inf - -inf is NaN: a row may have no others (T = 1), or none in its first block.
    b_max = tl.full((BLOCK_M,), -1e30, ACC)
    b_sum = tl.zeros((BLOCK_M,), ACC)
    b_diagonal = tl.zeros((BLOCK_M,), ACC)

    for start in range(0, T, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_self = o_m[:, None] == o_n[None, :]  # [BLOCK_M, BLOCK_N]
        b_s = _scores(p_q, p_k, o_m, o_n, T, C, stride_qt, stride_qc, stride_kt, stride_kc, SCALE, BLOCK_K, ACC, PREC)

        # From the same product as its rivals, so that its rounding is theirs.
        b_diagonal += tl.sum(tl.where(m_self, b_s, 0.0), 1)

        # Online softmax of the others: rescale what was summed so far to the new maximum.
        b_s = tl.where(m_self | (o_n >= T)[None, :], float("-inf"), b_s)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))  # [BLOCK_M]
        b_sum = b_sum * tl.exp(b_max - b_new) + tl.sum(tl.exp(b_s - b_new[:, None]), 1)
        b_max = b_new

    # 1 - A_ii = sigmoid(x), without overflow.
    b_others = b_max + tl.log(b_sum)
    b_x = b_others - b_diagonal
    b_e = tl.exp(-tl.abs(b_x))
    b_loss = tl.where(b_x < 0, b_e, 1.0) / (1.0 + b_e)

    o_out = image * T + o_m
    tl.store(p_others + o_out, b_others, mask=o_m < T)
    tl.store(p_diagonal + o_out, b_diagonal, mask=o_m < T)
    tl.store(p_partials + tl.program_id(0), tl.sum(tl.where(o_m < T, b_loss, 0.0), 0))


@triton.jit(do_not_specialize=SIZES)
def mean_loss_kernel(
    p_partials, p_loss,
    partials, B, T,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """2 / (B T^2) times the partial sums, in an order that depends on their number alone. One program."""
    b_sum = tl.zeros((BLOCK,), ACC)

    for start in range(0, partials, BLOCK):
        o_s = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_partials + o_s, mask=o_s < partials, other=0.0)

    tl.store(p_loss, tl.sum(b_sum, 0) * (2.0 / T.to(ACC) / T.to(ACC) / B.to(ACC)))


@triton.jit
def _row_statistics(p_others, p_diagonal, o_t, T, ACC: tl.constexpr):
    """others and A_ii (1 - A_ii) of some rows; 0 outside."""
    b_others = tl.load(p_others + o_t, mask=o_t < T, other=0.0)
    b_x = b_others - tl.load(p_diagonal + o_t, mask=o_t < T, other=0.0)

    b_e = tl.exp(-tl.abs(b_x))
    return b_others, tl.where(o_t < T, b_e / ((1.0 + b_e) * (1.0 + b_e)), 0.0)


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(
    p_a, p_b, p_others, p_diagonal, p_grad_loss, p_da,
    B, T, C, stride_ab, stride_at, stride_ac, stride_bb, stride_bt, stride_bc,
    SCALE: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Gradient of a. ROWS: a = q, b = k, dq = c D k; otherwise a = k, b = q, dk = c D^T q. Grid: B * blocks of a.

    p_grad_loss: the loss's gradient, one number    p_da: (B, T, C), contiguous
    """
    blocks = tl.cdiv(T, BLOCK_M)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    o_m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, BLOCK_C)
    p_a += image * stride_ab
    p_b += image * stride_bb
    p_others += image * T
    p_diagonal += image * T

    b_da = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    b_others, b_factor = _row_statistics(p_others, p_diagonal, o_m, T, ACC)

    for start in range(0, T, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        b_s = _scores(p_a, p_b, o_m, o_n, T, C, stride_at, stride_ac, stride_bt, stride_bc, SCALE, BLOCK_K, ACC, PREC)

        # E [BLOCK_M, BLOCK_N], or its transpose.
        m_self = o_m[:, None] == o_n[None, :]
        if ROWS:  # the factor belongs to the rows of the result: it is applied once, at the end
            b_e = tl.where(m_self, -1.0, tl.exp(b_s - b_others[:, None]))
        else:
            b_others_n, b_factor_n = _row_statistics(p_others, p_diagonal, o_n, T, ACC)
            b_e = tl.where(m_self, -1.0, tl.exp(b_s - b_others_n[None, :])) * b_factor_n[None, :]
        b_e = tl.where((o_n < T)[None, :], b_e, 0.0)

        # In float32 even for 16-bit inputs: the factor may be 1e-20, which float16 does not hold.
        b_b = _load_patches(p_b, o_n, o_c, T, C, stride_bt, stride_bc).to(ACC)  # [BLOCK_N, BLOCK_C]
        b_da = add_dot(b_e, b_b, b_da, PREC, ACC)

    b_c = tl.load(p_grad_loss).to(ACC) * (2.0 / SCALE) / T.to(ACC) / T.to(ACC) / B.to(ACC)
    if ROWS:
        b_da *= (b_c * b_factor)[:, None]
    else:
        b_da *= b_c

    o_out = ((image * T + o_m) * C)[:, None] + o_c[None, :]
    tl.store(p_da + o_out, b_da.to(p_da.dtype.element_ty), mask=(o_m < T)[:, None] & (o_c < C)[None, :])


# (part, kind of product): {(targets, largest padded C): (BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages)}; "" is any.
# Found by compiling ahead of time: no spill, shared memory within the card. Nobody has timed them.
TABLE = {
    ("forward", "ieee"): {("", 256): (32, 32, 32, 4, 1)},
    ("forward", "tf32"): {("", 256): (64, 64, 32, 4, 1)},
    ("forward", "half"): {("", 256): (64, 64, 32, 4, 1)},
    ("backward", "ieee"): {("", 256): (32, 32, 16, 4, 1)},
    ("backward", "tf32"): {("", 256): (32, 32, 32, 4, 1)},
    ("backward", "half"): {("", 256): (32, 64, 32, 8, 1), ("gfx942", 256): (32, 32, 32, 4, 1)},
}
MEAN = dict(BLOCK=1024, **compile_options(num_warps=4))  # launch options of mean_loss_kernel


def launch_settings(
    part: str, C: int, dtype: torch.dtype, input_precision: str = "ieee", target: str | None = None
) -> dict[str, int]:
    """Launch options of a part, "forward" or "backward". A card that the table does not name gets those of any."""
    if C > STABILITY_LOSS_CHANNELS:
        raise ValueError(f"stability_loss: {C} channels, at most {STABILITY_LOSS_CHANNELS} are supported")
    rows = TABLE[part, product_kind(dtype, input_precision)]
    block_m, block_n, block_k, warps, stages = choose(rows, padded(C), target)
    blocks = dict(BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=min(block_k, padded(C)))
    settings = dict(**blocks, **compile_options(warps, stages))
    return settings if part == "forward" else dict(settings, BLOCK_C=padded(C))


def _options(part: str, q: Tensor, scale: float, input_precision: str) -> dict[str, Any]:
    settings = launch_settings(part, q.shape[-1], q.dtype, input_precision, target_of(q.device))
    # Of 16-bit inputs one product alone has float32 operands, E b in the backward: tf32 holds b exactly, and rounds E
    # to the 11 bits that float16 has too.
    precision = "tf32" if q.dtype.itemsize == 2 else input_precision
    return dict(settings, SCALE=float(scale), ACC=accumulator(q.dtype), PREC=precision)


def _strides(name: str, x: Tensor) -> dict[str, int]:
    """Strides of a tensor (B, T, C) as kernels name them."""
    return {f"stride_{name}{axis}": stride for axis, stride in zip("btc", x.stride(), strict=True)}


def stability_loss_forward(
    q: Tensor, k: Tensor, scale: float, input_precision: str = "ieee"
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and what the backward needs.

    Args:
        q, k: (B, T, C), one dtype, any strides. The mean over an empty batch is NaN, as in PyTorch.
        scale: divisor of the scores.
        input_precision: of float32 products: ``"ieee"`` or ``"tf32"``.

    Returns:
        loss: scalar, float32 or better.
        others, diagonal: (B, T), likewise.
    """
    (B, T, C), wide = q.shape, sum_dtype(q.dtype)
    options = _options("forward", q, scale, input_precision)
    partials = B * triton.cdiv(T, options["BLOCK_M"])
    loss, sums = (torch.empty(shape, dtype=wide, device=q.device) for shape in ((), (partials,)))
    others, diagonal = (torch.empty(B, T, dtype=wide, device=q.device) for _ in range(2))

    launch(
        stability_kernel, (partials,), options, _strides("q", q), _strides("k", k),
        p_q=q, p_k=k, p_others=others, p_diagonal=diagonal, p_partials=sums, T=T, C=C,
    )  # fmt: skip
    launch(
        mean_loss_kernel, (1,), MEAN,
        p_partials=sums, p_loss=loss, partials=partials, B=B, T=T, ACC=options["ACC"],
    )  # fmt: skip
    return loss, others, diagonal


def stability_loss_backward(
    q: Tensor,
    k: Tensor,
    others: Tensor,
    diagonal: Tensor,
    grad_loss: Tensor,
    scale: float,
    input_precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """Gradients of q and k, contiguous, in their dtype.

    Args:
        q, k, scale, input_precision: as they went into the forward.
        others, diagonal: what came out of it.
        grad_loss: of the loss, one number on the device.
    """
    B, T, C = q.shape
    options = _options("backward", q, scale, input_precision)
    dq, dk = (torch.empty((B, T, C), dtype=q.dtype, device=q.device) for _ in range(2))

    for rows, a, b, da in ((True, q, k, dq), (False, k, q, dk)):
        launch(
            gradient_kernel, (B * triton.cdiv(T, options["BLOCK_M"]),), options, _strides("a", a), _strides("b", b),
            p_a=a, p_b=b, p_others=others, p_diagonal=diagonal, p_grad_loss=grad_loss, p_da=da, B=B, T=T, C=C,
            ROWS=rows,
        )  # fmt: skip
    return dq, dk
