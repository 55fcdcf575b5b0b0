"""Launchers of the patch embedding in front of the stability loss (kernels: ``patch_embedding_kernels``)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.launch import (
    accumulator,
    choose,
    compile_options,
    multiprocessors_of,
    padded,
    product_kind,
    target_of,
)
from msformer_fast.kernels.partial_sums import add_partial_sums
from msformer_fast.kernels.patch_embedding_kernels import embed_kernel, logits_gradient_kernel, weight_gradient_kernel

LIMIT_C, LIMIT_K = 256, 1024

# (part, kind of product): {(targets, largest padded C): (BLOCK_R, BLOCK_D, BLOCK_J, num_warps, num_stages)}; "" is any
# target, a block of 0 rows of the weight is all of them.
# Found by compiling ahead of time: no spill. Nobody has timed them.
TABLE = {
    ("embed", "ieee"): {("", 256): (128, 128, 16, 8, 1), ("sm_80 sm_120", 64): (64, 64, 16, 8, 1)},
    ("embed", "tf32"): {("", 256): (128, 128, 16, 8, 1)},
    ("embed", "half"): {("", 256): (128, 128, 32, 8, 1)},
    ("weight_grads", "ieee"): {("", 128): (32, 0, 32, 8, 1), ("", 256): (16, 0, 32, 8, 1)},
    ("weight_grads", "tf32"): {("", 128): (32, 0, 32, 8, 1), ("", 256): (16, 0, 32, 8, 1)},
    ("weight_grads", "half"): {("", 128): (32, 0, 32, 4, 1), ("", 256): (16, 0, 32, 8, 1)},
    ("logit_grads", "ieee"): {
        ("", 256): (64, 16, 64, 8, 1),
        ("sm_90", 256): (32, 32, 64, 8, 1),
        ("sm_100", 256): (64, 32, 64, 8, 1),
    },
    ("logit_grads", "tf32"): {("", 256): (64, 32, 64, 8, 1), ("sm_86 sm_89", 256): (32, 32, 64, 4, 1)},
    ("logit_grads", "half"): {("", 256): (64, 32, 64, 8, 1), ("sm_80", 256): (32, 32, 64, 4, 1)},
}


class Clustering(NamedTuple):
    """A clustering loss as its gradient needs it: what the pass that made it kept, and the loss's own gradient.

    Attributes:
        pixel: (2, B, H, W), a pixel's largest logit, and the sum of ``exp(l - largest)`` over its other clusters.
        labels: (B, H, W).
        grad_loss: scalar, of the mean over all pixels.
    """

    pixel: Tensor
    labels: Tensor
    grad_loss: Tensor


def launch_settings(
    part: str,
    K: int,
    C: int,
    P: int,
    dtype: torch.dtype,
    input_precision: str = "ieee",
    channels_last: bool = True,
    target: str | None = None,
) -> dict[str, int]:
    """Launch options of a part: "embed", "weight_grads", "logit_grads". A card not in the table gets those of any.

    The block of columns is one position and many channels where channels lie side by side in memory; where pixels do,
    it is square: a few positions, that share a sector of the logits, times a few channels, that share one of the
    weight.
    """
    if K > LIMIT_K or C > LIMIT_C:
        raise ValueError(f"patch_embedding: K = {K}, C = {C}; at most {LIMIT_K} and {LIMIT_C} are supported")
    rows = TABLE[part, product_kind(dtype, input_precision)]
    block_r, block_d, block_j, warps, stages = choose(rows, padded(C), target)
    settings = dict(BLOCK_R=block_r, BLOCK_D=min(block_d or padded(C), padded(C)), **compile_options(warps, stages))
    if part == "logit_grads":
        return dict(settings, BLOCK_K=min(padded(K), block_j))
    block_k = min(
        triton.next_power_of_2(K), block_j if channels_last else block_j // min(triton.next_power_of_2(P * P), 8)
    )
    return dict(settings, BLOCK_K=block_k, BLOCK_P=block_j // block_k)


def _options(part: str, logits: Tensor, C: int, P: int, input_precision: str) -> dict[str, Any]:
    settings = launch_settings(
        part, logits.shape[1], C, P, logits.dtype, input_precision, logits.stride(1) == 1, target_of(logits.device)
    )
    return dict(settings, ACC=accumulator(logits.dtype), PREC=input_precision)


def _grid_of_patches(logits: Tensor, patch: int) -> tuple[int, int]:
    rows, columns = ((side - 1) // patch for side in logits.shape[2:])
    if rows < 1 or columns < 1:
        raise ValueError(f"patch_embedding: {tuple(logits.shape)} holds no patch of {patch} x {patch} and one pixel")
    return rows, columns


def _new(logits: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=sum_dtype(logits.dtype), device=logits.device)


def patch_embedding_forward(
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patch: int,
    input_precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """Queries and keys, (B, T, C) each, in the dtype of the logits.

    Args:
        logits: (B, K, H, W), any strides.
        mean, rstd, gamma, beta: (K), of the batch norm; of any dtype.
        weight: (C, patch * patch * K), of the logits' dtype; bias: (C) or None.
        patch: side of a patch in pixels.
        input_precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
    """
    (B, K), (rows, columns) = logits.shape[:2], _grid_of_patches(logits, patch)
    norm = [vector.contiguous() for vector in (mean, rstd, gamma, beta)]
    C, total = weight.shape[0], 2 * B * rows * columns
    options = _options("embed", logits, C, patch, input_precision)
    q, k = (torch.empty((B, rows * columns, C), dtype=logits.dtype, device=logits.device) for _ in "qk")
    tiles = triton.cdiv(total, options["BLOCK_R"]) * triton.cdiv(C, options["BLOCK_D"])
    if tiles:
        blocks = triton.cdiv(patch * patch, options["BLOCK_P"]) * triton.cdiv(K, options["BLOCK_K"])
        parts = _new(logits, max(1, min(multiprocessors_of(logits.device) // tiles, blocks)), total, C)
        embed_kernel[len(parts), tiles](
            logits,
            *norm,
            weight,
            parts,
            B,
            patch,
            rows,
            columns,
            *logits.stride(),
            *weight.stride(),
            K=K,
            C=C,
            **options,
        )
        add_partial_sums(parts, bias, q, k)
    return q, k


def patch_embedding_backward(
    dq: Tensor,
    dk: Tensor,
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    patch: int,
    input_precision: str = "ieee",
    batch_stats: bool = True,
    clustering: Clustering | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of logits (in their layout), weight, bias, gamma and beta; the last three float32 or better.

    Args:
        dq, dk: of the queries and keys, any strides.
        logits, mean, rstd, gamma, beta, weight, patch, input_precision: as they went into the forward.
        batch_stats: mean and rstd came from these logits, so that their gradient goes to them too.
        clustering: of the same logits, whose gradient is added to theirs in the same pass.
    """
    (B, K, H, W), (rows, columns) = logits.shape, _grid_of_patches(logits, patch)
    norm = [vector.contiguous() for vector in (mean, rstd, gamma, beta)]
    C, grad, total = weight.shape[0], torch.stack((dq, dk)), 2 * B * rows * columns
    dbias, dgamma, dbeta = _new(logits, C), _new(logits, K), _new(logits, K)
    dweight, dlogits = torch.empty_like(weight, memory_format=torch.contiguous_format), torch.empty_like(logits)
    add_partial_sums(grad.view(total, C), None, dbias, None)
    options = _options("weight_grads", logits, C, patch, input_precision)
    k_blocks, p_blocks = triton.cdiv(K, options["BLOCK_K"]), triton.cdiv(patch * patch, options["BLOCK_P"])
    parts = _new(logits, max(1, min(2 * multiprocessors_of(logits.device) // k_blocks, p_blocks)), 2, K)
    weight_gradient_kernel[len(parts), k_blocks](
        logits,
        *norm,
        weight,
        grad,
        dbias,
        dweight,
        parts,
        B,
        patch,
        rows,
        columns,
        *logits.stride(),
        *weight.stride(),
        K=K,
        C=C,
        **options,
    )
    add_partial_sums(parts, None, dbeta, dgamma)
    options = _options("logit_grads", logits, C, patch, input_precision)
    pixel_blocks = triton.cdiv(B * triton.cdiv(H, patch) * triton.cdiv(W, patch), options["BLOCK_R"])
    if B:
        logits_gradient_kernel[(pixel_blocks * patch * patch * triton.cdiv(K, options["BLOCK_K"]),)](
            logits,
            *norm,
            dbeta,
            dgamma,
            weight,
            grad,
            dlogits,
            *(clustering or (logits, logits, logits)),
            B,
            patch,
            H,
            W,
            rows,
            columns,
            B * H * W,
            2 * triton.cdiv(C, options["BLOCK_D"]),
            *logits.stride(),
            *weight.stride(),
            *dlogits.stride(),
            K=K,
            C=C,
            BATCH_STATS=batch_stats,
            CLUSTERING=clustering is not None,
            **options,
        )
    return dlogits, dweight, dbias, dgamma, dbeta
