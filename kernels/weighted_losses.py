"""Inter-scale consistency of two contexts, and the three losses weighted and added: one launch forward, one backward.

    row r of a and b (rows, C):  dot = a . b,  n_a = |a|^2 + eps,  n_b = |b|^2 + eps,  cos = dot / sqrt(n_a n_b)
    consistency = w_consistency / rows * sum over r of (1 - cos)    clustering, stability: weight times loss
    total = clustering + consistency + stability
    da = g (b - a dot / n_a) / sqrt(n_a n_b),  db = g (a - b dot / n_b) / sqrt(n_a n_b)
    g = -(dtotal + dconsistency) w_consistency / rows

The contexts of an image are a few hundred rows: one program reads them in some microseconds. As PyTorch's operators all
this is forty launches a step, for less than a megabyte.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share:
    p_a, p_b (rows, C), contiguous    p_clustering_loss, p_stability_loss: one number each
    rows: of all images    C: channels    W_CLUSTERING, W_CONSISTENCY, W_STABILITY: weights    EPS: of squared norms
    BLOCK_R: rows at a time    BLOCK_C: power of 2 >= C    ACC: dtype of sums
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.blocks import load_block, store_block
from msformer_fast.kernels.launch import accumulator, compile_options, launch

_jit = triton.jit(do_not_specialize=("rows", "C", "images"))  # a new size runs the code of the old one


@triton.jit
def _rows_of(p_a, p_b, o_r, rows, C, EPS: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """Some rows of both contexts [BLOCK_R, BLOCK_C], 0 outside; dot, n_a and n_b [BLOCK_R]."""
    o_c, o_row = tl.arange(0, BLOCK_C), o_r.to(tl.int64) * C
    b_a = load_block(p_a, o_row, o_c, o_r < rows, o_c < C).to(ACC)
    b_b = load_block(p_b, o_row, o_c, o_r < rows, o_c < C).to(ACC)

    return b_a, b_b, tl.sum(b_a * b_b, 1), tl.sum(b_a * b_a, 1) + EPS, tl.sum(b_b * b_b, 1) + EPS


@_jit
def losses_kernel(
    p_clustering_loss, p_stability_loss, p_a, p_b, p_label_count,
    p_total, p_clustering, p_consistency, p_stability, p_numbers,
    rows, C, images,
    W_CLUSTERING: tl.constexpr, W_CONSISTENCY: tl.constexpr, W_STABILITY: tl.constexpr, EPS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The weighted losses and their sum, and all of them as numbers for the host. One program.

    p_label_count (images) int32    p_total to p_stability: one number each
    p_numbers (5) float64: total, clustering, consistency, stability, the largest label count
    BLOCK_B: images at a time
    """
    b_sum = tl.zeros((BLOCK_R,), ACC)
    for start in range(0, rows, BLOCK_R):
        o_r = start + tl.arange(0, BLOCK_R)
        _, _, b_dot, b_norm_a, b_norm_b = _rows_of(p_a, p_b, o_r, rows, C, EPS, BLOCK_C, ACC)
        b_sum += tl.where(o_r < rows, 1.0 - b_dot / tl.sqrt(b_norm_a * b_norm_b), 0.0)

    b_most = tl.zeros((BLOCK_B,), tl.int32)
    for start in range(0, images, BLOCK_B):
        o_i = start + tl.arange(0, BLOCK_B)
        b_most = tl.maximum(b_most, tl.load(p_label_count + o_i, mask=o_i < images, other=0))

    consistency = tl.sum(b_sum, 0) / rows.to(ACC) * W_CONSISTENCY
    clustering = tl.load(p_clustering_loss).to(ACC) * W_CLUSTERING
    stability = tl.load(p_stability_loss).to(ACC) * W_STABILITY
    total = clustering + consistency + stability

    tl.store(p_total, total)
    tl.store(p_clustering, clustering)
    tl.store(p_consistency, consistency)
    tl.store(p_stability, stability)
    tl.store(p_numbers, total.to(tl.float64))
    tl.store(p_numbers + 1, clustering.to(tl.float64))
    tl.store(p_numbers + 2, consistency.to(tl.float64))
    tl.store(p_numbers + 3, stability.to(tl.float64))
    tl.store(p_numbers + 4, tl.max(b_most, 0).to(tl.float64))


@triton.jit
def _arrived(p_grad_total, p_grad, ACC: tl.constexpr):
    """The gradient of a weighted loss, its own and that of the total; either may be None."""
    grad = tl.zeros((), ACC)
    if p_grad_total is not None:
        grad += tl.load(p_grad_total).to(ACC)
    if p_grad is not None:
        grad += tl.load(p_grad).to(ACC)
    return grad


@_jit
def gradients_kernel(
    p_a, p_b, p_grad_total, p_grad_clustering, p_grad_consistency, p_grad_stability,
    p_da, p_db, p_d_clustering_loss, p_d_stability_loss,
    rows, C,
    W_CLUSTERING: tl.constexpr, W_CONSISTENCY: tl.constexpr, W_STABILITY: tl.constexpr, EPS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of both contexts, and by the first program of both losses. Grid: blocks of rows.

    p_grad_*: one number, or None where no gradient arrived    p_da, p_db (rows, C), contiguous
    p_d_clustering_loss, p_d_stability_loss: one number each
    """
    o_r, o_c = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    b_a, b_b, b_dot, b_norm_a, b_norm_b = _rows_of(p_a, p_b, o_r, rows, C, EPS, BLOCK_C, ACC)

    b_g = _arrived(p_grad_total, p_grad_consistency, ACC) * -W_CONSISTENCY / rows.to(ACC)
    b_g /= tl.sqrt(b_norm_a * b_norm_b)  # [BLOCK_R]
    b_da = b_g[:, None] * (b_b - b_a * (b_dot / b_norm_a)[:, None])
    b_db = b_g[:, None] * (b_a - b_b * (b_dot / b_norm_b)[:, None])

    store_block(p_da, o_r.to(tl.int64) * C, o_c, o_r < rows, o_c < C, b_da)
    store_block(p_db, o_r.to(tl.int64) * C, o_c, o_r < rows, o_c < C, b_db)
    if tl.program_id(0) == 0:
        d_clustering = _arrived(p_grad_total, p_grad_clustering, ACC) * W_CLUSTERING
        d_stability = _arrived(p_grad_total, p_grad_stability, ACC) * W_STABILITY
        tl.store(p_d_clustering_loss, d_clustering.to(p_d_clustering_loss.dtype.element_ty))
        tl.store(p_d_stability_loss, d_stability.to(p_d_stability_loss.dtype.element_ty))


def launch_settings(part: str, C: int) -> dict[str, int]:
    """Launch options of a part, "losses" or "gradients"."""
    block_c = triton.next_power_of_2(C)
    blocks = dict(BLOCK_R=max(1024 // block_c, 1), BLOCK_C=block_c, **compile_options(num_warps=4))
    return dict(blocks, BLOCK_B=128) if part == "losses" else blocks


def _shared(context: Tensor, weights: tuple[float, float, float], eps: float) -> dict[str, Any]:
    clustering, consistency, stability = (float(weight) for weight in weights)
    return dict(
        rows=context.shape[0] * context.shape[1], C=context.shape[2], ACC=accumulator(context.dtype), EPS=float(eps),
        W_CLUSTERING=clustering, W_CONSISTENCY=consistency, W_STABILITY=stability,
    )  # fmt: skip


def weighted_losses_forward(
    clustering_loss: Tensor,
    stability_loss: Tensor,
    context_a: Tensor,
    context_b: Tensor,
    label_count: Tensor,
    weights: tuple[float, float, float],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Total and the three weighted losses, scalars of float32 or better, and the numbers for the host (5) float64.

    Args:
        clustering_loss, stability_loss: scalars.
        context_a, context_b: (B, Ck, Cv), one dtype; other strides than contiguous cost a copy.
        label_count: (B) int32.
        weights: of clustering, consistency and stability.
        eps: added to squared norms.
    """
    shared, dtype = _shared(context_a, weights, eps), sum_dtype(context_a.dtype)
    total, clustering, consistency, stability = (context_a.new_empty((), dtype=dtype) for _ in range(4))
    numbers = context_a.new_empty(5, dtype=torch.float64)
    launch(
        losses_kernel, (1,), launch_settings("losses", context_a.shape[2]), shared,
        p_clustering_loss=clustering_loss, p_stability_loss=stability_loss,
        p_a=context_a.contiguous(), p_b=context_b.contiguous(), p_label_count=label_count.contiguous(),
        p_total=total, p_clustering=clustering, p_consistency=consistency, p_stability=stability, p_numbers=numbers,
        images=label_count.numel(),
    )  # fmt: skip
    return total, clustering, consistency, stability, numbers


def weighted_losses_backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    clustering_loss: Tensor,
    stability_loss: Tensor,
    context_a: Tensor,
    context_b: Tensor,
    weights: tuple[float, float, float],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of both losses and both contexts, in their dtypes, contiguous.

    Args:
        grads: of total, clustering, consistency and stability; ``None`` where none arrived.
        clustering_loss, stability_loss, context_a, context_b, weights, eps: as they went into the forward.
    """
    shared = _shared(context_a, weights, eps)
    settings = launch_settings("gradients", context_a.shape[2])
    d_a, d_b = (torch.empty_like(context, memory_format=torch.contiguous_format) for context in (context_a, context_b))
    d_clustering, d_stability = torch.empty_like(clustering_loss), torch.empty_like(stability_loss)
    total, clustering, consistency, stability = grads
    launch(
        gradients_kernel, (max(triton.cdiv(shared["rows"], settings["BLOCK_R"]), 1),), settings, shared,
        p_grad_total=total, p_grad_clustering=clustering, p_grad_consistency=consistency, p_grad_stability=stability,
        p_a=context_a.contiguous(), p_b=context_b.contiguous(), p_da=d_a, p_db=d_b,
        p_d_clustering_loss=d_clustering, p_d_stability_loss=d_stability,
    )  # fmt: skip
    return d_clustering, d_stability, d_a, d_b
