"""Clustering loss of logits = features weight^T + bias that are never stored: the backward makes them again.

A program takes a tile of BLOCK_P pixels and goes over the clusters in blocks of BLOCK_K. The forward keeps two numbers
of a pixel, the maximum and the sum of the other exponentials; with them any block of the gradient follows from its
logits alone.

Arguments beyond those of clustering_loss:
  stride_*, out_*        of the features and of their gradient, along image, row, column and channel
  D                      channels
  BLOCK_D, BLOCK_O       step of the products that sum over channels; channels that a program has a gradient of
  WVEC                   elements that one access to the weight (K, D) may take: a power of 2 that divides D
  PREC                     input_precision of float32 products: ieee, tf32 or tf32x3
VEC and PIXELS_INNER say of features and channels what they say of logits and clusters.

The logits stay in float32 here. A model that rounds them to 16 bits has other labels at pixels whose two largest logits
round to the same number.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.clustering_loss import (
    NOTHING,
    NOWHERE,
    SHAPES,
    STRIDES,
    Results,
    inside,
    load_tile,
    log1p,
    offsets,
    store_results,
    tile_of,
    top_and_others,
    whole,
)  # fmt: skip
from msformer_fast.kernels.launch import (
    accumulator,
    choose,
    compile_options,
    multiprocessors_of,
    padded,
    product_kind,
    target_of,
    vector_length,
)
from msformer_fast.kernels.pixel_rows import Rows

_jit = triton.jit(do_not_specialize=(*SHAPES, "D", "tiles", "programs"), do_not_specialize_on_alignment=STRIDES)


@triton.jit
def load_weight(p_weight, o_k, o_d, K, D, WVEC: tl.constexpr):
    """A block of the weight [BLOCK_K, channels], 0 outside."""
    D = whole(D, WVEC)
    m_weight = (o_k < K)[:, None] & (o_d < D)[None, :]
    return tl.load(p_weight + (o_k.to(tl.int64) * D)[:, None] + o_d[None, :], mask=m_weight, other=0.0)


@triton.jit
def logits_of(p_features, p_weight, p_bias, b, h, o_w, m_w, o_k, stride_b, stride_h, stride_w, stride_k, K, D,
              BLOCK_D: tl.constexpr, VEC: tl.constexpr, WVEC: tl.constexpr, PIXELS_INNER: tl.constexpr,
              HAS_BIAS: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Logits of a tile [BLOCK_P, BLOCK_K], minus infinity beyond K."""
    b_logits = tl.zeros((o_w.shape[0], o_k.shape[0]), ACC)
    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        b_x = load_tile(
            p_features, b, h, o_w, m_w, o_d, stride_b, stride_h, stride_w, stride_k, D, VEC, PIXELS_INNER, 0.0
        )
        b_weight = load_weight(p_weight, o_k, o_d, K, D, WVEC)
        b_logits = tl.dot(b_x, tl.trans(b_weight), b_logits, input_precision=PREC, out_dtype=ACC)
    if HAS_BIAS:
        b_logits += tl.load(p_bias + o_k, mask=o_k < K, other=0.0).to(ACC)[None, :]
    return tl.where((o_k < K)[None, :], b_logits, NOTHING)


@triton.jit
def gradient_of(b_logits, p_max, p_others, p_labels, p_grad, b, h, o_w, m_w, o_k, grad_b, grad_h, grad_w, divisor, H,
                W, ACC: tl.constexpr):  # fmt: skip
    """Gradient of a tile's logits [BLOCK_P, BLOCK_K], 0 outside."""
    o_pixel = (b * H + h) * W + o_w
    b_max = tl.load(p_max + o_pixel, mask=m_w, other=0.0)
    b_others = tl.load(p_others + o_pixel, mask=m_w, other=0.0) + (b_max - b_max)
    b_label = tl.load(p_labels + o_pixel, mask=m_w, other=0).to(tl.int32)
    b_grad = tl.load(p_grad + b * grad_b + h * grad_h + o_w * grad_w, mask=m_w, other=0.0).to(ACC) / divisor
    b_out = tl.where(o_k[None, :] == b_label[:, None], -b_others[:, None], tl.exp(b_logits - b_max[:, None]))
    return b_out * (b_grad / (1.0 + b_others))[:, None]


@_jit
def linear_loss_kernel(p_features, p_weight, p_bias, p_loss, p_labels, p_present, p_max, p_others, stride_b, stride_h,
                      stride_w, stride_k, H, W, K, D, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
                      BLOCK_D: tl.constexpr, VEC: tl.constexpr, WVEC: tl.constexpr, PIXELS_INNER: tl.constexpr,
                      HAS_BIAS: tl.constexpr, PER_PIXEL: tl.constexpr, PREC: tl.constexpr,
                      ACC: tl.constexpr):  # fmt: skip
    """Loss, labels, flags, and what the backward needs of each pixel: features read once. Grid: tiles."""
    W = whole(W, VEC) if PIXELS_INNER else W
    b, h, o_w, m_w = tile_of(tl.program_id(0), H, W, BLOCK_P)
    b_max = tl.full((BLOCK_P,), NOTHING, ACC)
    b_top = tl.full((BLOCK_P,), NOWHERE, tl.int32)
    b_others = tl.zeros((BLOCK_P,), ACC)
    for k in range(0, K, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        b_logits = logits_of(
            p_features, p_weight, p_bias, b, h, o_w, m_w, o_k, stride_b, stride_h, stride_w, stride_k, K, D, BLOCK_D,
            VEC, WVEC, PIXELS_INNER, HAS_BIAS, PREC, ACC
        )  # fmt: skip
        b_max2, b_top2, _, b_others2 = top_and_others(b_logits, o_k)
        # The larger of the two maxima stays out of the sum, the other one enters it. Of equals the first stays.
        b_new = b_max2 > b_max
        b_high = tl.maximum(b_max, b_max2)
        b_safe = tl.where(b_high == NOTHING, 0.0, b_high)
        b_scale, b_scale2 = tl.exp(b_max - b_safe), tl.exp(b_max2 - b_safe)
        b_others = b_others * b_scale + b_others2 * b_scale2 + tl.where(b_new, b_scale, b_scale2)
        b_max, b_top = b_high, tl.where(b_new, b_top2, b_top)
    o_pixel = (b * H + h) * W + o_w
    tl.store(p_max + o_pixel, b_max, mask=m_w)
    tl.store(p_others + o_pixel, b_others, mask=m_w)
    store_results(
        p_loss, p_labels, p_present, log1p(b_others) + (b_max - b_max), b_top, b, h, o_w, m_w, H, W, K, PER_PIXEL
    )


@_jit
def features_gradient_kernel(p_features, p_weight, p_bias, p_max, p_others, p_labels, p_grad, p_out, stride_b, stride_h,
                          stride_w, stride_k, grad_b, grad_h, grad_w, out_b, out_h, out_w, out_k, divisor, H, W, K,
                          D, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
                          BLOCK_O: tl.constexpr, VEC: tl.constexpr, WVEC: tl.constexpr, PIXELS_INNER: tl.constexpr,
                          HAS_BIAS: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Gradient of the features. Grid: tiles, blocks of BLOCK_O channels."""
    W = whole(W, VEC) if PIXELS_INNER else W
    b, h, o_w, m_w = tile_of(tl.program_id(0), H, W, BLOCK_P)
    o_d = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    b_out = tl.zeros((BLOCK_P, BLOCK_O), ACC)
    for k in range(0, K, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        b_logits = logits_of(
            p_features, p_weight, p_bias, b, h, o_w, m_w, o_k, stride_b, stride_h, stride_w, stride_k, K, D, BLOCK_D,
            VEC, WVEC, PIXELS_INNER, HAS_BIAS, PREC, ACC
        )  # fmt: skip
        b_dlogits = gradient_of(
            b_logits, p_max, p_others, p_labels, p_grad, b, h, o_w, m_w, o_k, grad_b, grad_h, grad_w, divisor, H, W, ACC
        )
        b_weight = load_weight(p_weight, o_k, o_d, K, D, WVEC)
        b_out = tl.dot(b_dlogits.to(b_weight.dtype), b_weight, b_out, input_precision=PREC, out_dtype=ACC)
    p_out += offsets(b, h, o_w, o_d, out_b, out_h, out_w, out_k, VEC, PIXELS_INNER)
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=m_w[:, None] & inside(o_d, D, VEC, PIXELS_INNER)[None, :])


@_jit
def weight_gradient_kernel(p_features, p_weight, p_bias, p_max, p_others, p_labels, p_grad, p_dweight, p_dbias,
                        stride_b, stride_h, stride_w, stride_k, grad_b, grad_h, grad_w, divisor, H, W, K, D, tiles,
                        programs, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
                        BLOCK_O: tl.constexpr, VEC: tl.constexpr, WVEC: tl.constexpr, PIXELS_INNER: tl.constexpr,
                        HAS_BIAS: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Gradients of weight and bias, in a slot of each program. Grid: programs, blocks of clusters, of channels."""
    W = whole(W, VEC) if PIXELS_INNER else W
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    o_d = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    b_dweight, b_dbias = tl.zeros((BLOCK_K, BLOCK_O), ACC), tl.zeros((BLOCK_K,), ACC)
    for index in range(tl.program_id(0), tiles, programs):
        b, h, o_w, m_w = tile_of(index, H, W, BLOCK_P)
        b_logits = logits_of(
            p_features, p_weight, p_bias, b, h, o_w, m_w, o_k, stride_b, stride_h, stride_w, stride_k, K, D, BLOCK_D,
            VEC, WVEC, PIXELS_INNER, HAS_BIAS, PREC, ACC
        )  # fmt: skip
        b_dlogits = gradient_of(
            b_logits, p_max, p_others, p_labels, p_grad, b, h, o_w, m_w, o_k, grad_b, grad_h, grad_w, divisor, H, W, ACC
        )
        b_x = load_tile(
            p_features, b, h, o_w, m_w, o_d, stride_b, stride_h, stride_w, stride_k, D, VEC, PIXELS_INNER, 0.0
        )
        b_dweight = tl.dot(tl.trans(b_dlogits.to(b_x.dtype)), b_x, b_dweight, input_precision=PREC, out_dtype=ACC)
        b_dbias += tl.sum(b_dlogits, 0)
    slot, D = tl.program_id(0).to(tl.int64), whole(D, WVEC)
    p_block = p_dweight + slot * K * D + (o_k.to(tl.int64) * D)[:, None] + o_d[None, :]
    tl.store(p_block, b_dweight, mask=(o_k < K)[:, None] & (o_d < D)[None, :])
    if HAS_BIAS:  # noqa: SIM102 - known when compiled, the next one is not
        if tl.program_id(2) == 0:
            tl.store(p_dbias + slot * K + o_k, b_dbias, mask=o_k < K)


# (part, kind of product): {(targets, largest K): (BLOCK_P, BLOCK_K, BLOCK_D, num_warps)}; "" is any target. Without
# tensor cores, or with three products for one, a tile of the same size takes twice the registers.
# Found by compiling ahead of time: no spill. Nobody has timed them.
ANY = 2**31
TABLE = {
    ("loss", "ieee"): {
        ("", ANY): (32, 128, 16, 8),
        ("sm_80", ANY): (32, 64, 16, 8),
        ("gfx942", ANY): (64, 128, 16, 8),
    },
    ("loss", "tf32"): {("", ANY): (64, 128, 32, 8), ("sm_80 sm_120", ANY): (32, 128, 32, 8)},
    ("loss", "half"): {("", ANY): (64, 128, 32, 8), ("sm_80", ANY): (32, 128, 32, 8)},
    ("features", "ieee"): {("", ANY): (32, 32, 16, 8), ("sm_86 sm_89 sm_90 sm_100", ANY): (32, 32, 32, 8)},
    ("features", "tf32"): {
        ("", ANY): (64, 64, 32, 8),
        ("sm_86 sm_89 sm_120", ANY): (64, 32, 32, 8),
        ("sm_100", ANY): (32, 64, 32, 8),
    },
    ("features", "half"): {
        ("", ANY): (64, 64, 32, 8),
        ("sm_86 sm_89", ANY): (32, 32, 32, 8),
        ("sm_120", ANY): (64, 32, 32, 8),
    },
    ("weight", "ieee"): {
        ("", ANY): (16, 64, 16, 8),
        ("sm_80 sm_120", ANY): (32, 32, 16, 8),
        ("gfx942", ANY): (16, 64, 16, 4),
    },
    ("weight", "tf32"): {("", ANY): (32, 64, 32, 8), ("gfx942", ANY): (32, 64, 32, 4)},
    ("weight", "half"): {
        ("", ANY): (32, 64, 32, 8),
        ("sm_80", ANY): (16, 64, 32, 8),
        ("sm_120", ANY): (32, 32, 32, 8),
        ("gfx942", ANY): (32, 64, 32, 4),
    },
}


def launch_settings(
    part: str, K: int, dtype: torch.dtype, target: str | None = None, D: int = 128, input_precision: str = "ieee"
) -> dict[str, int]:
    """Block sizes, warps and stages of one kernel.

    Args:
        part: ``"loss"``, ``"features"`` or ``"weight"``.
        K, D: clusters and channels; any number.
        dtype: of features and weight.
        target: ``"sm_90"``, ``"gfx942"`` and so on; ``None`` where it is not known (interpreter).
        input_precision: of float32 products.
    """
    block_p, block_k, block_d, warps = choose(TABLE[part, product_kind(dtype, input_precision)], K, target)
    settings = dict(BLOCK_P=block_p, BLOCK_K=min(padded(K), block_k), BLOCK_D=block_d, **compile_options(warps))
    return settings if part == "loss" else dict(settings, BLOCK_O=min(padded(D), 128))


def linear_clustering_loss_forward(
    features: Tensor, weight: Tensor, bias: Tensor | None, reduction: str = "mean", input_precision: str = "ieee"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward of clustering_loss for logits ``features @ weight.T + bias``.

    Args:
        features: (B, H, W, D), any strides.
        weight: (K, D), of the features' dtype.
        bias: (K), or None.
        reduction: ``"mean"`` or ``"sum"`` over all pixels, or ``"none"``.
        input_precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.

    Returns:
        loss, labels, label_count: as of clustering_loss.
        statistics: (2, B, H, W), each pixel's maximum and sum of the other exponentials, for the backward.
    """
    (B, H, W, D), K = features.shape, weight.shape[0]
    rows, weight = Rows.of(features), weight.contiguous()
    settings = launch_settings("loss", K, features.dtype, target_of(features.device), D, input_precision)
    tiles = rows.tiles(settings["BLOCK_P"])
    results = Results.empty(features, (B, H, W), K, tiles, reduction)
    statistics = torch.empty(2, B, H, W, dtype=sum_dtype(features.dtype), device=features.device)
    if tiles:
        linear_loss_kernel[(tiles,)](
            features, weight, weight if bias is None else bias.contiguous(), *results, *statistics, *rows.strides[0],
            rows.H, rows.W, K, D,
            PER_PIXEL=reduction == "none", **_constants(rows, weight, bias, input_precision), **settings,
        )  # fmt: skip
    return *results.finish(reduction), statistics


def linear_clustering_loss_backward(
    features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, statistics: Tensor, grad_loss: Tensor,
    reduction: str = "mean", input_precision: str = "ieee",
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of features (in their layout), weight and bias.

    Args:
        features, weight, bias, reduction, input_precision: as they went into the forward.
        labels, statistics: what came out of it.
        grad_loss: of the loss: a scalar, or of every pixel for ``"none"``; any strides.
    """
    out = torch.empty_like(features)
    (B, H, W, D), K = features.shape, weight.shape[0]
    grads = grad_loss.expand(B, H, W)
    rows, weight = Rows.of(features, out, grads), weight.contiguous()
    strides, out_strides, grad_strides = rows.strides
    target, device = target_of(features.device), features.device
    divisor = B * H * W if reduction == "mean" else 1
    inputs = features, weight, weight if bias is None else bias.contiguous(), *statistics, labels, grads
    constants = _constants(rows, weight, bias, input_precision)

    settings = launch_settings("features", K, features.dtype, target, D, input_precision)
    if tiles := rows.tiles(settings["BLOCK_P"]):
        grid = tiles, triton.cdiv(D, settings["BLOCK_O"])
        features_gradient_kernel[grid](
            *inputs, out, *strides, *grad_strides, *out_strides, divisor, rows.H, rows.W, K, D, **constants, **settings
        )

    settings = launch_settings("weight", K, features.dtype, target, D, input_precision)
    tiles = rows.tiles(settings["BLOCK_P"])
    blocks = triton.cdiv(K, settings["BLOCK_K"]), triton.cdiv(D, settings["BLOCK_O"])
    programs = max(1, min(triton.cdiv(2 * multiprocessors_of(device), math.prod(blocks)), tiles))
    dweight = torch.empty(programs, K, D, dtype=statistics.dtype, device=device)
    dbias = torch.empty(programs, K, dtype=statistics.dtype, device=device)
    weight_gradient_kernel[(programs, *blocks)](
        *inputs,
        dweight,
        dbias,
        *strides,
        *grad_strides,
        divisor,
        rows.H,
        rows.W,
        K,
        D,
        tiles,
        programs,
        **constants,
        **settings,
    )
    return out, dweight.sum(0).to(weight.dtype), None if bias is None else dbias.sum(0).to(bias.dtype)


def _constants(rows: Rows, weight: Tensor, bias: Tensor | None, input_precision: str) -> dict[str, object]:
    """constexprs that the kernels share."""
    return dict(
        VEC=rows.VEC,
        WVEC=vector_length(weight.dtype, weight.shape[1]),
        PIXELS_INNER=rows.pixels_inner,
        HAS_BIAS=bias is not None,
        PREC=input_precision,
        ACC=accumulator(weight.dtype),
    )
