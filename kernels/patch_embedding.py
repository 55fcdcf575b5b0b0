"""Launch table and launchers of the patch embedding (kernels: ``patch_embedding_kernels``)."""

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
    launch,
    multiprocessors_of,
    padded,
    product_kind,
    target_of,
)
from msformer_fast.kernels.partial_sums import add_partial_sums
from msformer_fast.kernels.patch_embedding_kernels import (
    embed_kernel,
    logits_gradient_kernel,
    stack_gradients_kernel,
    weight_gradient_kernel,
)
from msformer_fast.limits import PATCH_EMBEDDING_CHANNELS, PATCH_EMBEDDING_CLUSTERS

# (part, kind of product): {(targets, largest padded C): (BLOCK_R, BLOCK_D, BLOCK_J, num_warps, num_stages)}; "" is any
# target, a block of 0 rows of the weight is all of them.
# Found by compiling ahead of time: no spill. Nobody has timed them.
TABLE = {
    ("embed", "ieee"): {("", 256): (128, 128, 16, 8, 1), ("sm_80 sm_120", 64): (64, 64, 16, 8, 1)},
    ("embed", "tf32"): {("", 256): (128, 128, 16, 8, 1)},
    ("embed", "tf32x3"): {
        ("", 256): (128, 128, 16, 8, 1),
        ("sm_80", 256): (64, 128, 16, 8, 1),
        ("sm_100", 64): (64, 64, 16, 8, 1),
    },
    ("embed", "half"): {("", 256): (128, 128, 32, 8, 1)},
    ("weight_grads", "ieee"): {
        ("", 128): (32, 0, 32, 8, 1),
        ("", 256): (16, 0, 32, 8, 1),
        ("sm_90", 128): (64, 0, 32, 8, 1),
    },
    ("weight_grads", "tf32"): {
        ("", 128): (32, 0, 32, 8, 1),
        ("", 256): (16, 0, 32, 8, 1),
        ("sm_90", 128): (64, 0, 64, 8, 1),
    },
    ("weight_grads", "tf32x3"): {
        ("", 128): (32, 0, 32, 8, 1),
        ("", 256): (16, 0, 32, 8, 1),
        ("sm_90", 128): (64, 0, 64, 8, 1),
        ("sm_90 before 3.8", 128): (32, 0, 32, 8, 1),
        ("sm_100", 128): (16, 0, 32, 8, 1),
    },
    ("weight_grads", "half"): {("", 128): (32, 0, 32, 4, 1), ("", 256): (16, 0, 32, 8, 1)},
    ("logit_grads", "ieee"): {
        ("", 256): (64, 16, 64, 8, 1),
        ("sm_90", 256): (64, 64, 64, 8, 1),
        ("sm_90 before 3.8", 256): (32, 32, 64, 8, 1),  # the row above would spill
        ("sm_100", 256): (64, 32, 64, 8, 1),
    },
    ("logit_grads", "tf32"): {
        ("", 256): (64, 32, 64, 8, 1),
        ("sm_86 sm_89", 256): (32, 32, 64, 4, 1),
        ("sm_90", 256): (64, 64, 64, 8, 1),
    },
    ("logit_grads", "tf32x3"): {("", 256): (64, 32, 64, 8, 1), ("sm_90", 256): (64, 64, 64, 8, 1)},
    ("logit_grads", "half"): {
        ("", 256): (64, 32, 64, 8, 1),
        ("sm_80", 256): (32, 32, 64, 4, 1),
        ("sm_90", 256): (64, 64, 64, 8, 1),
    },
}

STACK = dict(BLOCK_R=64, BLOCK_C=16, **compile_options(num_warps=4))


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

    Raises:
        ValueError: more channels or clusters than the table was made for.
    """
    if K > PATCH_EMBEDDING_CLUSTERS or C > PATCH_EMBEDDING_CHANNELS:
        limits = f"{PATCH_EMBEDDING_CLUSTERS} and {PATCH_EMBEDDING_CHANNELS}"
        raise ValueError(f"patch_embedding: K = {K}, C = {C}; at most {limits} are supported")

    rows = TABLE[part, product_kind(dtype, input_precision)]
    block_r, block_d, block_j, warps, stages = choose(rows, padded(C), target)
    settings = dict(BLOCK_R=block_r, BLOCK_D=min(block_d or padded(C), padded(C)), **compile_options(warps, stages))
    if part == "logit_grads":
        return dict(settings, BLOCK_K=min(padded(K), block_j))

    positions = 1 if channels_last else min(triton.next_power_of_2(P * P), 8)
    block_k = min(triton.next_power_of_2(K), block_j // positions)
    return dict(settings, BLOCK_K=block_k, BLOCK_P=block_j // block_k)


def _options(part: str, logits: Tensor, C: int, P: int, input_precision: str) -> dict[str, Any]:
    K, channels_last, target = logits.shape[1], logits.stride(1) == 1, target_of(logits.device)
    settings = launch_settings(part, K, C, P, logits.dtype, input_precision, channels_last, target)
    return dict(settings, ACC=accumulator(logits.dtype), PREC=input_precision)


def _patches(logits: Tensor, patch: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    rows, columns = ((side - 1) // patch for side in logits.shape[2:])
    if rows < 1 or columns < 1:
        raise ValueError(f"patch_embedding: {tuple(logits.shape)} holds no patch of {patch} x {patch} and one pixel")
    return rows, columns


def _new(logits: Tensor, *shape: int) -> Tensor:
    """For sums of the logits."""
    return torch.empty(shape, dtype=sum_dtype(logits.dtype), device=logits.device)


def _strides(name: str, x: Tensor) -> dict[str, int]:
    """Strides of a tensor (B, K, H, W) as kernels name them."""
    return {f"stride_{name}{axis}": stride for axis, stride in zip("bkhw", x.stride(), strict=True)}


def _shared(
    logits: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, patch: int
) -> dict[str, Any]:
    """Arguments that the kernels share."""
    (B, K, H, W), (rows, columns) = logits.shape, _patches(logits, patch)
    return dict(
        **_strides("l", logits), stride_wd=weight.stride(0), stride_wj=weight.stride(1),
        p_logits=logits, p_mean=mean.contiguous(), p_rstd=rstd.contiguous(), p_gamma=gamma.contiguous(),
        p_beta=beta.contiguous(), p_weight=weight, B=B, P=patch, H=H, W=W, rows=rows, columns=columns, pixels=B * H * W,
        K=K, C=weight.shape[0],
    )  # fmt: skip


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
    shared = _shared(logits, mean, rstd, gamma, beta, weight, patch)
    B, K, C, patches = shared["B"], shared["K"], shared["C"], shared["rows"] * shared["columns"]
    options = _options("embed", logits, C, patch, input_precision)
    q, k = (torch.empty((B, patches, C), dtype=logits.dtype, device=logits.device) for _ in "qk")

    tiles = triton.cdiv(2 * B * patches, options["BLOCK_R"]) * triton.cdiv(C, options["BLOCK_D"])
    if tiles:
        blocks = triton.cdiv(patch * patch, options["BLOCK_P"]) * triton.cdiv(K, options["BLOCK_K"])
        programs = max(1, min(multiprocessors_of(logits.device) // tiles, blocks))
        partials = _new(logits, programs, 2 * B * patches, C)
        launch(embed_kernel, (programs, tiles), options, shared, p_partials=partials)
        add_partial_sums(partials, bias, q, k)
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
    shared = _shared(logits, mean, rstd, gamma, beta, weight, patch)
    (B, K, H, W), C = logits.shape, weight.shape[0]
    grad = torch.empty((2, *dq.shape), dtype=dq.dtype, device=dq.device)
    dbias, dgamma, dbeta = _new(logits, C), _new(logits, K), _new(logits, K)
    dweight, dlogits = torch.empty_like(weight, memory_format=torch.contiguous_format), torch.empty_like(logits)
    shared |= dict(p_grad=grad, p_dbias=dbias, p_dgamma=dgamma, p_dbeta=dbeta)
    launch(
        stack_gradients_kernel, (triton.cdiv(C, STACK["BLOCK_C"]),), STACK, shared,
        p_dq=dq.contiguous(), p_dk=dk.contiguous(), ACC=accumulator(logits.dtype),
    )  # fmt: skip

    options = _options("weight_grads", logits, C, patch, input_precision)
    k_blocks, p_blocks = triton.cdiv(K, options["BLOCK_K"]), triton.cdiv(patch * patch, options["BLOCK_P"])
    programs = max(1, min(2 * multiprocessors_of(logits.device) // k_blocks, p_blocks))
    partials = _new(logits, programs, 2, K)
    launch(weight_gradient_kernel, (programs, k_blocks), options, shared, p_dweight=dweight, p_partials=partials)
    add_partial_sums(partials, None, dbeta, dgamma)

    options = _options("logit_grads", logits, C, patch, input_precision)
    pixel_blocks = triton.cdiv(B * triton.cdiv(H, patch) * triton.cdiv(W, patch), options["BLOCK_R"])
    pixel, labels, dloss = clustering or (logits, logits, logits)  # any pointers
    launch(
        logits_gradient_kernel, (pixel_blocks * patch * patch * triton.cdiv(K, options["BLOCK_K"]),), options, shared,
        _strides("g", dlogits), p_dlogits=dlogits, p_pixel=pixel, p_labels=labels, p_dloss=dloss,
        steps=2 * triton.cdiv(C, options["BLOCK_D"]), BATCH_STATS=batch_stats, CLUSTERING=clustering is not None,
    )  # fmt: skip
    return dlogits, dweight, dbias, dgamma, dbeta
