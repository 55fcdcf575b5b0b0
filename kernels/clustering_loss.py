"""Clustering loss, label map and label count from one read of the logits; its gradient from one read and one write.

    loss = logsumexp(l) - max(l) = log(1 + others),  others = sum of exp(l_k - max) over k other than the argmax
    dl = g (softmax(l) - onehot(argmax l))

A program takes a tile of BLOCK_P pixels of one image row, with all K clusters of each: one pass gives all.

NaN: a pixel with a NaN or an infinite maximum has a NaN loss and NaN gradients, as in PyTorch. Its label is the largest
of its other logits (0 if there is none), so it stays below K; PyTorch's would be the NaN.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share, beside those of
``pixel_rows``:
    p_logits (B, K, H, W) or (B, H, W, K), any strides    p_grad: g, of every pixel (B, H, W) or one number
    p_loss: of every pixel (B, H, W), or the partial sums of the programs    p_labels (B, H, W)
    p_present (B, K): 1 where a label occurs in an image, else 0
    K: clusters    divisor: pixels to average over, or 1    BLOCK_K: power of 2 >= K    ACC: dtype of sums
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.kernels.blocks import log1p
from msformer_fast.kernels.launch import accumulator, compile_options, launch, target_of
from msformer_fast.kernels.pixel_rows import STRIDES, Rows, load_tile, pixels_of, row_length, store_tile, tile_of
from msformer_fast.limits import CLUSTERING_LOSS_CLUSTERS

NOTHING = tl.constexpr(-float("inf"))  # the logit of a cluster that does not exist
NOWHERE = tl.constexpr(2**31 - 1)  # its index
SIZES = ("H", "W", "K", "partials", "divisor", "images")  # never specialised: a new size runs the code of the old one
_jit = triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)


@triton.jit
def top_and_others(b_logits, o_k):
    """Maximum and its first index [BLOCK_P], exp(l - maximum) [BLOCK_P, BLOCK_K], its sum without that index [BLOCK_P].

    The sum leaves out the 1 of the maximum: beside it the others would lose their digits when one cluster dominates.
    """
    b_max = tl.max(b_logits, 1)
    b_top = tl.min(tl.where(b_logits == b_max[:, None], o_k[None, :], NOWHERE), 1)

    # A row of -inf alone would otherwise be -inf less -inf, a NaN.
    b_exp = tl.exp(b_logits - tl.where(b_max == NOTHING, 0.0, b_max)[:, None])
    return b_max, b_top, b_exp, tl.sum(tl.where(o_k[None, :] == b_top[:, None], 0.0, b_exp), 1)


@triton.jit
def logits_gradient(b_exp, o_k, b_label, b_others, b_grad):
    """g (softmax - onehot) [BLOCK_P, BLOCK_K] from exp(l - maximum) of some clusters; the others are [BLOCK_P]."""
    # At the label softmax - 1 is -others / total: no 1 to cancel.
    b_out = tl.where(o_k[None, :] == b_label[:, None], -b_others[:, None], b_exp)
    return b_out * (b_grad / (1.0 + b_others))[:, None]


@triton.jit
def load_gradient(p_grad, tile, strides, divisor, ACC: tl.constexpr):
    """g / divisor [BLOCK_P] of a tile's pixels; strides: of g, along image, row and column."""
    b, h, o_w, m_w = tile
    grad_b, grad_h, grad_w = strides
    return tl.load(p_grad + b * grad_b + h * grad_h + o_w * grad_w, mask=m_w, other=0.0).to(ACC) / divisor


@triton.jit
def store_results(p_loss, p_labels, p_present, tile, b_loss, b_top, H, W, K, PER_PIXEL: tl.constexpr):
    """Store labels, flags of those that occur, and the loss: of every pixel, or this program's partial sum."""
    b, _, _, m_w = tile
    o_pixel = pixels_of(tile, H, W)
    b_label = tl.where(b_top < K, b_top, 0)  # nothing was found: all logits are NaN
    tl.store(p_labels + o_pixel, b_label.to(p_labels.dtype.element_ty), mask=m_w)

    # K flags of one byte lie in a few sectors, so a warp's scattered stores merge; all programs store the same value.
    tl.store(p_present + b * K + b_label, tl.full(b_label.shape, 1, tl.uint8), mask=m_w)

    if PER_PIXEL:
        tl.store(p_loss + o_pixel, b_loss, mask=m_w)
    else:
        tl.store(p_loss + tl.program_id(0), tl.sum(tl.where(m_w, b_loss, 0.0), 0))


@_jit
def loss_kernel(
    p_logits, p_loss, p_labels, p_present,
    stride_b, stride_h, stride_w, stride_k, H, W, K,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr, PIXELS_INNER: tl.constexpr,
    PER_PIXEL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Loss, labels and flags: logits read once. Grid: tiles.

    PER_PIXEL: store the loss of every pixel, not this program's partial sum
    """
    W = row_length(W, VEC, PIXELS_INNER)
    tile, o_k = tile_of(tl.program_id(0), H, W, BLOCK_P), tl.arange(0, BLOCK_K)
    strides = (stride_b, stride_h, stride_w, stride_k)
    b_logits = load_tile(p_logits, tile, strides, o_k, K, VEC, PIXELS_INNER, NOTHING).to(ACC)  # [BLOCK_P, BLOCK_K]

    b_max, b_top, _, b_others = top_and_others(b_logits, o_k)
    b_loss = log1p(b_others) + (b_max - b_max)  # NaN where the maximum is NaN or infinite

    store_results(p_loss, p_labels, p_present, tile, b_loss, b_top, H, W, K, PER_PIXEL)


@triton.jit
def count_labels(p_present, p_count, b, images, K, BLOCK_K: tl.constexpr):
    """Labels that occur in image b, to p_count (B)."""
    o_k = tl.arange(0, BLOCK_K)
    b_flags = tl.load(p_present + b * K + o_k, mask=o_k < tl.where(b < images, K, 0), other=0)

    tl.store(p_count + b, tl.sum(b_flags.to(tl.int32), 0), mask=b < images)


@triton.jit
def add_losses(p_partials, p_loss, partials, divisor, BLOCK: tl.constexpr):
    """Sum of the partial sums / divisor, in an order that depends on their number alone."""
    b_sum = tl.zeros((BLOCK,), p_loss.dtype.element_ty)

    for start in range(0, partials, BLOCK):
        o_s = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_partials + o_s, mask=o_s < partials, other=0.0)

    tl.store(p_loss, tl.sum(b_sum, 0) / divisor)


@_jit
def finish_kernel(
    p_partials, p_present, p_loss, p_count,
    partials, divisor, images, K,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Labels that occur in each image, to p_count (B), and the loss from its partial sums. Grid: images, at least 1.

    SUM: p_loss is one number; without it, the losses of the pixels are left as they are
    BLOCK: partial sums at a time    images: B
    """
    b = tl.program_id(0).to(tl.int64)
    count_labels(p_present, p_count, b, images, K, BLOCK_K)

    if SUM:  # noqa: SIM102 - known when compiled, the next one is not
        if b == 0:
            add_losses(p_partials, p_loss, partials, divisor, BLOCK)


@_jit
def gradient_kernel(
    p_logits, p_grad, p_out,
    stride_b, stride_h, stride_w, stride_k, grad_b, grad_h, grad_w, out_b, out_h, out_w, out_k, divisor, H, W, K,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr, PIXELS_INNER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """g (softmax(l) - onehot(argmax l)), to p_out: logits read once, their gradient written once. Grid: tiles."""
    W = row_length(W, VEC, PIXELS_INNER)
    tile, o_k = tile_of(tl.program_id(0), H, W, BLOCK_P), tl.arange(0, BLOCK_K)
    strides, out_strides = (stride_b, stride_h, stride_w, stride_k), (out_b, out_h, out_w, out_k)
    b_logits = load_tile(p_logits, tile, strides, o_k, K, VEC, PIXELS_INNER, NOTHING).to(ACC)  # [BLOCK_P, BLOCK_K]
    b_grad = load_gradient(p_grad, tile, (grad_b, grad_h, grad_w), divisor, ACC)  # [BLOCK_P]

    b_max, b_top, b_exp, b_others = top_and_others(b_logits, o_k)
    b_others += b_max - b_max  # NaN where the maximum is NaN or infinite
    b_out = logits_gradient(b_exp, o_k, b_top, b_others, b_grad)  # [BLOCK_P, BLOCK_K]

    store_tile(p_out, tile, out_strides, o_k, K, b_out, VEC, PIXELS_INNER)


def launch_settings(
    part: str, K: int, dtype: torch.dtype, target: str | None = None, pixels_inner: bool = False
) -> dict[str, int]:
    """Block sizes, warps and stages of one kernel.

    Args:
        part: ``"loss"``, ``"finish"`` or ``"gradient"``.
        K: clusters.
        dtype: of the logits.
        target: ``"sm_90"``, ``"gfx942"`` and so on; ``None`` where it is not known (interpreter).
        pixels_inner: pixels, not clusters, are neighbours in memory.

    Raises:
        ValueError: more clusters than a tile holds.
    """
    block_k = triton.next_power_of_2(K)
    if part == "finish":
        return dict(BLOCK_K=block_k, BLOCK=4096, **compile_options(num_warps=8))
    if K > CLUSTERING_LOSS_CLUSTERS:
        raise ValueError(f"clustering_loss: the kernels take at most {CLUSTERING_LOSS_CLUSTERS} clusters, got {K}")

    # Where pixels are neighbours, whole cache lines of them. The gradient holds more for each logit: fewer a thread.
    block_p = min(max(4096 // block_k, 128 // dtype.itemsize if pixels_inner else 1), 16384 // block_k, 1024)
    threads = block_p * block_k // (32 if part == "loss" else 16)
    lanes = 64 if (target or "").startswith("gfx") else 32
    warps = min(max(threads // lanes, 1), 512 // lanes)
    return dict(BLOCK_P=block_p, BLOCK_K=block_k, **compile_options(warps))


def _clusters_last(logits: Tensor, cluster_dim: int) -> Tensor:
    """A view (B, H, W, K)."""
    return logits.permute(0, 2, 3, 1) if cluster_dim == 1 else logits


def clustering_loss_forward(
    logits: Tensor, reduction: str = "mean", cluster_dim: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss ``logsumexp(l) - max(l)``, labels, and the number of distinct labels, without a host wait.

    Args:
        logits: (B, K, H, W) with ``cluster_dim=1`` or (B, H, W, K) with ``cluster_dim=-1``; any strides.
        reduction: ``"mean"`` or ``"sum"`` over all pixels, or ``"none"``.
        cluster_dim: axis of the clusters.

    Returns:
        loss: scalar, or (B, H, W) for ``"none"``; float32, or float64 for float64 logits.
        labels: (B, H, W), the first index of the maximum, in the smallest integer dtype that holds K.
        label_count: (B), int32.
    """
    logits = _clusters_last(logits, cluster_dim)
    B, H, W, K = logits.shape
    rows = Rows.of(stride=logits)
    settings = launch_settings("loss", K, logits.dtype, target_of(logits.device), rows.pixels_inner)
    tiles = rows.tiles(settings["BLOCK_P"])
    results = Results.empty(logits, (B, H, W), K, tiles, reduction)
    launch(
        loss_kernel, (tiles,), settings, rows.arguments, results.arguments,
        p_logits=logits, K=K, PER_PIXEL=reduction == "none", ACC=accumulator(logits.dtype),
    )  # fmt: skip
    return results.finish(reduction)


def clustering_loss_backward(
    logits: Tensor, grad_loss: Tensor, reduction: str = "mean", cluster_dim: int = 1
) -> Tensor:
    """Gradient of the loss to the logits, in their dtype and memory layout.

    Args:
        logits, reduction, cluster_dim: as they went into the forward.
        grad_loss: of the loss, on the logits' device: a scalar, or (B, H, W) for ``"none"``; any strides.
    """
    out = torch.empty_like(logits)
    logits = _clusters_last(logits, cluster_dim)
    B, H, W, K = logits.shape
    rows = Rows.of(stride=logits, out=_clusters_last(out, cluster_dim), grad=grad_loss.expand(B, H, W))
    settings = launch_settings("gradient", K, logits.dtype, target_of(logits.device), rows.pixels_inner)
    launch(
        gradient_kernel, (rows.tiles(settings["BLOCK_P"]),), settings, rows.arguments,
        p_logits=logits, p_grad=grad_loss, p_out=out, divisor=B * H * W if reduction == "mean" else 1, K=K,
        ACC=accumulator(logits.dtype),
    )  # fmt: skip
    return out


class Results(NamedTuple):
    """What a forward writes. loss: of every pixel, or one partial sum a program."""

    loss: Tensor
    labels: Tensor
    present: Tensor

    @classmethod
    def empty(cls, like: Tensor, shape: tuple[int, ...], K: int, programs: int, reduction: str) -> Results:
        """For pixels of (B, ...) and K clusters, on the device of `like`."""
        loss = torch.empty(shape if reduction == "none" else programs, dtype=sum_dtype(like.dtype), device=like.device)
        labels = torch.empty(shape, dtype=label_dtype(K), device=like.device)
        return cls(loss, labels, torch.zeros(shape[0], K, dtype=torch.uint8, device=like.device))

    @property
    def arguments(self) -> dict[str, Tensor]:
        """As kernels name them."""
        return dict(p_loss=self.loss, p_labels=self.labels, p_present=self.present)

    def finish(self, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, labels and label count."""
        B, K = self.present.shape
        total = reduction != "none"
        loss = self.loss.new_empty(()) if total else self.loss
        count = torch.empty(B, dtype=torch.int32, device=loss.device)
        launch(
            finish_kernel, (max(B, 1),), launch_settings("finish", K, loss.dtype),
            p_partials=self.loss, p_present=self.present, p_loss=loss, p_count=count,
            partials=self.loss.numel(), divisor=self.labels.numel() if reduction == "mean" else 1, images=B, K=K,
            SUM=total,
        )  # fmt: skip
        return loss, self.labels, count
