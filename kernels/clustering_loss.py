"""Clustering loss, label map and label count from one read of the logits; its gradient from one read and one write.

A program takes a tile of BLOCK_P pixels of one image row, with all K clusters of each: one pass gives all. A map whose
rows follow one another in memory is one long row, so that a tile does not end where an image row does.

Arguments that the kernels share:
  stride_*               of the logits and of their gradient, in elements, along image, row, column (w) and cluster (k)
  H, W, K                rows, pixels of a row, clusters
  BLOCK_P, BLOCK_K       pixels of a tile, power of 2 >= K
  PIXELS_INNER            pixels, not clusters, are neighbours in memory (B, K, H, W)
  VEC                    elements that one access may take: a power of 2 that divides the length of the axis whose
                         elements are neighbours, and every stride but the one of that axis
  ACC                    type of sums: float32, or float64 for float64

NaN: a pixel with a NaN or an infinite maximum has a NaN loss and NaN gradients, as in PyTorch. Its label is the largest
of its other logits (0 if there is none), so it stays below K; PyTorch's would be the NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.kernels.launch import accumulator, compile_options, target_of
from msformer_fast.kernels.pixel_rows import Rows, clusters_last

MAX_CLUSTERS = 1024
NOTHING = tl.constexpr(-float("inf"))  # the logit of a cluster that does not exist
NOWHERE = tl.constexpr(2**31 - 1)  # its index
SHAPES = ("H", "W", "K", "slots", "divisor", "images")
STRIDES = (
    "stride_b",
    "stride_h",
    "stride_w",
    "stride_k",
    "grad_b",
    "grad_h",
    "grad_w",
    "out_b",
    "out_h",
    "out_w",
    "out_k",
)
# VEC alone says what is divisible: sizes differ from image to image, and each class of them would be compiled again.
_jit = triton.jit(do_not_specialize=SHAPES, do_not_specialize_on_alignment=STRIDES)


@triton.jit
def whole(value, VEC: tl.constexpr):
    """The value, a multiple of VEC, in a form from which the compiler sees that it is one."""
    return value // VEC * VEC


@triton.jit
def tile_of(index, H, W, BLOCK_P: tl.constexpr):
    """Image and row (int64), columns (int64) and validity [BLOCK_P] of a tile's pixels."""
    tiles = tl.cdiv(W, BLOCK_P)
    o_w = (index % tiles).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = (index // tiles).to(tl.int64)
    return row // H, row % H, o_w, o_w < W


@triton.jit
def inside(o_k, K, VEC: tl.constexpr, PIXELS_INNER: tl.constexpr):
    """Which clusters exist [BLOCK_K]."""
    return o_k < (K if PIXELS_INNER else whole(K, VEC))


@triton.jit
def offsets(b, h, o_w, o_k, stride_b, stride_h, stride_w, stride_k, VEC: tl.constexpr,
            PIXELS_INNER: tl.constexpr):  # fmt: skip
    """Offsets of a tile's values [BLOCK_P, BLOCK_K]."""
    if PIXELS_INNER:
        stride_k = whole(stride_k, VEC)
    else:
        stride_w = whole(stride_w, VEC)
    o_row = b * whole(stride_b, VEC) + h * whole(stride_h, VEC)
    return o_row + (o_w * stride_w)[:, None] + (o_k.to(tl.int64) * stride_k)[None, :]


@triton.jit
def load_tile(p_map, b, h, o_w, m_w, o_k, stride_b, stride_h, stride_w, stride_k, K, VEC: tl.constexpr,
              PIXELS_INNER: tl.constexpr, OTHER: tl.constexpr):  # fmt: skip
    """Values of a tile [BLOCK_P, BLOCK_K], OTHER outside the map."""
    p_tile = p_map + offsets(b, h, o_w, o_k, stride_b, stride_h, stride_w, stride_k, VEC, PIXELS_INNER)
    return tl.load(p_tile, mask=m_w[:, None] & inside(o_k, K, VEC, PIXELS_INNER)[None, :], other=OTHER)


@triton.jit
def top_and_others(b_logits, o_k):
    """Maximum and its first index [BLOCK_P], exp(l - maximum) [BLOCK_P, BLOCK_K], its sum without that index [BLOCK_P].

    The sum leaves out the 1 of the maximum: beside it the others would lose their digits when one cluster dominates.
    """
    b_max = tl.max(b_logits, 1)
    b_top = tl.min(tl.where(b_logits == b_max[:, None], o_k[None, :], NOWHERE), 1)
    b_exp = tl.exp(b_logits - tl.where(b_max == NOTHING, 0.0, b_max)[:, None])
    return b_max, b_top, b_exp, tl.sum(tl.where(o_k[None, :] == b_top[:, None], 0.0, b_exp), 1)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0: the rounding of 1 + x is divided out again (Kahan)."""
    above = 1.0 + x
    return tl.where(above == 1.0, x, tl.log(above) * (x / tl.where(above == 1.0, 1.0, above - 1.0)))


@triton.jit
def store_results(p_loss, p_labels, p_present, b_loss, b_top, b, h, o_w, m_w, H, W, K,
                  PER_PIXEL: tl.constexpr):  # fmt: skip
    """Store labels, flags of those that occur, and the loss: of every pixel, or the sum in a slot of this program."""
    b_label = tl.where(b_top < K, b_top, 0)  # nothing was found: all logits are NaN
    o_pixel = (b * H + h) * W + o_w
    tl.store(p_labels + o_pixel, b_label.to(p_labels.dtype.element_ty), mask=m_w)
    # K flags of one byte lie in a few sectors, so a warp's scattered stores merge; all programs store the same value.
    tl.store(p_present + b * K + b_label, tl.full(b_label.shape, 1, tl.uint8), mask=m_w)
    if PER_PIXEL:
        tl.store(p_loss + o_pixel, b_loss, mask=m_w)
    else:
        tl.store(p_loss + tl.program_id(0), tl.sum(tl.where(m_w, b_loss, 0.0), 0))


@_jit
def loss_kernel(p_logits, p_loss, p_labels, p_present, stride_b, stride_h, stride_w, stride_k, H, W, K,
                BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr, PIXELS_INNER: tl.constexpr,
                PER_PIXEL: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Loss, labels and flags: logits read once. Grid: tiles."""
    W = whole(W, VEC) if PIXELS_INNER else W
    b, h, o_w, m_w = tile_of(tl.program_id(0), H, W, BLOCK_P)
    o_k = tl.arange(0, BLOCK_K)
    b_logits = load_tile(
        p_logits, b, h, o_w, m_w, o_k, stride_b, stride_h, stride_w, stride_k, K, VEC, PIXELS_INNER, NOTHING
    ).to(ACC)
    b_max, b_top, _, b_others = top_and_others(b_logits, o_k)
    store_results(
        p_loss, p_labels, p_present, log1p(b_others) + (b_max - b_max), b_top, b, h, o_w, m_w, H, W, K, PER_PIXEL
    )


@triton.jit
def count_and_sum(p_partial, p_present, p_loss, p_count, b, slots, divisor, images, K, BLOCK_K: tl.constexpr,
                  BLOCK: tl.constexpr, SUM: tl.constexpr):  # fmt: skip
    """Count the flags of image b; for the first, and if SUM, add the slots of all programs in their order."""
    o_k = tl.arange(0, BLOCK_K)
    b_flags = tl.load(p_present + b * K + o_k, mask=o_k < tl.where(b < images, K, 0), other=0)
    tl.store(p_count + b, tl.sum(b_flags.to(tl.int32), 0), mask=b < images)
    if SUM:  # noqa: SIM102 - known when compiled, the next one is not
        if b == 0:
            b_sum = tl.zeros((BLOCK,), p_loss.dtype.element_ty)
            for start in range(0, slots, BLOCK):
                o_slot = start + tl.arange(0, BLOCK)
                b_sum += tl.load(p_partial + o_slot, mask=o_slot < slots, other=0.0)
            tl.store(p_loss, tl.sum(b_sum, 0) / divisor)


@_jit
def finish_kernel(p_partial, p_present, p_loss, p_count, slots, divisor, images, K, BLOCK_K: tl.constexpr,
                  BLOCK: tl.constexpr, SUM: tl.constexpr):  # fmt: skip
    """Count each image's flags, and sum the slots of all programs in their order. Grid: images, at least 1."""
    b = tl.program_id(0).to(tl.int64)
    count_and_sum(p_partial, p_present, p_loss, p_count, b, slots, divisor, images, K, BLOCK_K, BLOCK, SUM)


@_jit
def gradient_kernel(p_logits, p_grad, p_out, stride_b, stride_h, stride_w, stride_k, grad_b, grad_h, grad_w, out_b,
                    out_h, out_w, out_k, divisor, H, W, K, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
                    VEC: tl.constexpr, PIXELS_INNER: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """g (softmax(l) - onehot(argmax l)): logits read once, their gradient written once. Grid: tiles.

    grad_* are the strides of g, 0 for one g of all pixels; divisor: pixels to average over, or 1.
    """
    W = whole(W, VEC) if PIXELS_INNER else W
    b, h, o_w, m_w = tile_of(tl.program_id(0), H, W, BLOCK_P)
    o_k = tl.arange(0, BLOCK_K)
    b_logits = load_tile(
        p_logits, b, h, o_w, m_w, o_k, stride_b, stride_h, stride_w, stride_k, K, VEC, PIXELS_INNER, NOTHING
    ).to(ACC)
    b_grad = tl.load(p_grad + b * grad_b + h * grad_h + o_w * grad_w, mask=m_w, other=0.0).to(ACC) / divisor
    b_max, b_top, b_exp, b_others = top_and_others(b_logits, o_k)
    b_others += b_max - b_max
    # At the argmax softmax - 1 is -others / total: no 1 to cancel.
    b_out = tl.where(o_k[None, :] == b_top[:, None], -b_others[:, None], b_exp) * (b_grad / (1.0 + b_others))[:, None]
    p_out += offsets(b, h, o_w, o_k, out_b, out_h, out_w, out_k, VEC, PIXELS_INNER)
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=m_w[:, None] & inside(o_k, K, VEC, PIXELS_INNER)[None, :])


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
    if K > MAX_CLUSTERS:
        raise ValueError(f"clustering_loss: the kernels take at most {MAX_CLUSTERS} clusters, got {K}")
    # Where pixels are neighbours, whole cache lines of them. The gradient holds more for each logit: fewer a thread.
    block_p = min(max(4096 // block_k, 128 // dtype.itemsize if pixels_inner else 1), 16384 // block_k, 1024)
    threads = block_p * block_k // (32 if part == "loss" else 16)
    lanes = 64 if (target or "").startswith("gfx") else 32
    warps = min(max(threads // lanes, 1), 512 // lanes)
    return dict(BLOCK_P=block_p, BLOCK_K=block_k, **compile_options(warps))


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
    logits = clusters_last(logits, cluster_dim)
    B, H, W, K = logits.shape
    rows = Rows.of(logits)
    settings = launch_settings("loss", K, logits.dtype, target_of(logits.device), rows.pixels_inner)
    tiles = rows.tiles(settings["BLOCK_P"])
    results = Results.empty(logits, (B, H, W), K, tiles, reduction)
    if tiles:
        loss_kernel[(tiles,)](
            logits, results.loss, results.labels, results.present, *rows.strides[0], rows.H, rows.W, K,
            VEC=rows.VEC, PIXELS_INNER=rows.pixels_inner, PER_PIXEL=reduction == "none", ACC=accumulator(logits.dtype),
            **settings,
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
    logits = clusters_last(logits, cluster_dim)
    B, H, W, K = logits.shape
    rows = Rows.of(logits, clusters_last(out, cluster_dim), grad_loss.expand(B, H, W))
    settings = launch_settings("gradient", K, logits.dtype, target_of(logits.device), rows.pixels_inner)
    tiles = rows.tiles(settings["BLOCK_P"])
    if tiles:
        strides, out_strides, grad_strides = rows.strides
        gradient_kernel[(tiles,)](
            logits, grad_loss, out, *strides, *grad_strides, *out_strides, B * H * W if reduction == "mean" else 1,
            rows.H, rows.W, K,
            VEC=rows.VEC, PIXELS_INNER=rows.pixels_inner, ACC=accumulator(logits.dtype), **settings,
        )  # fmt: skip
    return out


class Results(NamedTuple):
    """What a forward writes. loss: of every pixel, or one slot a program."""

    loss: Tensor
    labels: Tensor
    present: Tensor

    @classmethod
    def empty(cls, like: Tensor, shape: tuple[int, ...], K: int, programs: int, reduction: str) -> Results:
        """For pixels of (B, ...) and K clusters, on the device of `like`."""
        loss = torch.empty(shape if reduction == "none" else programs, dtype=sum_dtype(like.dtype), device=like.device)
        labels = torch.empty(shape, dtype=label_dtype(K), device=like.device)
        return cls(loss, labels, torch.zeros(shape[0], K, dtype=torch.uint8, device=like.device))

    def finish(self, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, labels and label count."""
        B, K = self.present.shape
        total = reduction != "none"
        loss = self.loss.new_empty(()) if total else self.loss
        count = torch.empty(B, dtype=torch.int32, device=loss.device)
        settings = launch_settings("finish", K, loss.dtype)
        finish_kernel[(max(B, 1),)](
            self.loss, self.present, loss, count, self.loss.numel(), self.labels.numel() if reduction == "mean" else 1,
            B, K,
            SUM=total, **settings,
        )  # fmt: skip
        return loss, self.labels, count
