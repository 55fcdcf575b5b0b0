"""Clustering loss of logits = features weight^T + bias that are never stored: the backward recomputes them.

    loss = log(1 + others)    dfeatures = d weight    dweight = d^T features    dbias = sum of d over the pixels
    others = sum of exp(l_k - max) over k other than the argmax,  d = g (softmax(l) - onehot(argmax l))

A program takes a tile of BLOCK_P pixels and goes over the clusters in blocks of BLOCK_K. The forward keeps two numbers
of a pixel, the maximum and the sum of the other exponentials; with them any block of the gradient follows from its
logits alone.

The logits stay in float32 here. A model that rounds them to 16 bits has other labels at pixels whose two largest logits
round to the same number.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share, beside those of
``clustering_loss`` and ``pixel_rows``, where features and channels now take the place of logits and clusters:
    p_features (B, H, W, D), any strides    p_weight (K, D), contiguous    p_bias (K), any pointer without HAS_BIAS
    p_max, p_others (B, H, W): of each pixel, what the backward needs
    D: channels    BLOCK_D: channels that a product of logits takes at a time    BLOCK_K: clusters at a time
    BLOCK_O: channels that a program has a gradient of
    WVEC: elements that one access to the weight may take: a power of 2 that divides D
    PREC: input_precision of float32 products: ieee or tf32
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels import clustering_loss
from msformer_fast.kernels.blocks import add_dot, log1p, store_block
from msformer_fast.kernels.clustering_loss import (
    NOTHING,
    NOWHERE,
    Results,
    load_gradient,
    logits_gradient,
    store_results,
    top_and_others,
)
from msformer_fast.kernels.launch import (
    accumulator,
    choose,
    compile_options,
    launch,
    multiprocessors_of,
    padded,
    product_kind,
    target_of,
    vector_length,
)
from msformer_fast.kernels.pixel_rows import (
    STRIDES,
    Rows,
    load_tile,
    multiple_of,
    pixels_of,
    row_length,
    store_tile,
    tile_of,
)

SIZES = (*clustering_loss.SIZES, "D", "tiles", "programs")  # never specialised: a new size runs the code of the old one
_jit = triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)


@triton.jit
def _load_weight(p_weight, o_k, o_d, K, D, WVEC: tl.constexpr):
    """A block of the weight [BLOCK_K, channels], 0 outside."""
    D = multiple_of(D, WVEC)
    m_weight = (o_k < K)[:, None] & (o_d < D)[None, :]
    return tl.load(p_weight + (o_k.to(tl.int64) * D)[:, None] + o_d[None, :], mask=m_weight, other=0.0)


@triton.jit
def _logits_of(
    inputs, tile, strides, o_k, K, D,
    BLOCK_D: tl.constexpr, VEC: tl.constexpr, WVEC: tl.constexpr, PIXELS_INNER: tl.constexpr, HAS_BIAS: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Logits of a tile [BLOCK_P, BLOCK_K], minus infinity beyond K. inputs: pointers to features, weight, bias."""
    p_features, p_weight, p_bias = inputs
    _, _, o_w, _ = tile
    b_logits = tl.zeros((o_w.shape[0], o_k.shape[0]), ACC)

    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_features, tile, strides, o_d, D, VEC, PIXELS_INNER, 0.0)  # [BLOCK_P, BLOCK_D]
        b_weight = _load_weight(p_weight, o_k, o_d, K, D, WVEC)  # [BLOCK_K, BLOCK_D]

        b_logits = add_dot(b_x, tl.trans(b_weight), b_logits, PREC, ACC)

    if HAS_BIAS:
        b_logits += tl.load(p_bias + o_k, mask=o_k < K, other=0.0).to(ACC)[None, :]
    return tl.where((o_k < K)[None, :], b_logits, NOTHING)


@triton.jit
def _gradient_of_logits(
    inputs, kept, tile, strides, grad_strides, divisor, o_k, H, W, K, D,
    BLOCK_D: tl.constexpr, VEC: tl.constexpr, WVEC: tl.constexpr, PIXELS_INNER: tl.constexpr, HAS_BIAS: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile's logits [BLOCK_P, BLOCK_K], which are recomputed; 0 outside.

    kept: pointers to each pixel's maximum, sum of the other exponentials, label; and to the loss's gradient
    """
    b_logits = _logits_of(
        inputs, tile, strides, o_k, K, D, BLOCK_D, VEC, WVEC, PIXELS_INNER, HAS_BIAS, PREC, ACC
    )  # [BLOCK_P, BLOCK_K]

    p_max, p_others, p_labels, p_grad = kept
    _, _, _, m_w = tile
    o_pixel = pixels_of(tile, H, W)
    b_max = tl.load(p_max + o_pixel, mask=m_w, other=0.0)  # [BLOCK_P], as are the next three
    b_others = tl.load(p_others + o_pixel, mask=m_w, other=0.0)
    b_others += b_max - b_max  # NaN where the maximum is NaN or infinite
    b_label = tl.load(p_labels + o_pixel, mask=m_w, other=0).to(tl.int32)
    b_grad = load_gradient(p_grad, tile, grad_strides, divisor, ACC)

    return logits_gradient(tl.exp(b_logits - b_max[:, None]), o_k, b_label, b_others, b_grad)


@_jit
def linear_loss_kernel(
    p_features, p_weight, p_bias, p_loss, p_labels, p_present, p_max, p_others,
    stride_b, stride_h, stride_w, stride_k, H, W, K, D,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, VEC: tl.constexpr, WVEC: tl.constexpr,
    PIXELS_INNER: tl.constexpr, HAS_BIAS: tl.constexpr, PER_PIXEL: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Loss, labels, flags, and what the backward needs of each pixel: features read once. Grid: tiles."""
    inputs, strides = (p_features, p_weight, p_bias), (stride_b, stride_h, stride_w, stride_k)
    W = row_length(W, VEC, PIXELS_INNER)
    tile = tile_of(tl.program_id(0), H, W, BLOCK_P)

    b_max = tl.full((BLOCK_P,), NOTHING, ACC)
    b_top = tl.full((BLOCK_P,), NOWHERE, tl.int32)
    b_others = tl.zeros((BLOCK_P,), ACC)

    for k in range(0, K, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        b_logits = _logits_of(
            inputs, tile, strides, o_k, K, D, BLOCK_D, VEC, WVEC, PIXELS_INNER, HAS_BIAS, PREC, ACC
        )  # [BLOCK_P, BLOCK_K]
        b_max2, b_top2, _, b_others2 = top_and_others(b_logits, o_k)  # [BLOCK_P], of this block of clusters

        # The larger of the two maxima stays out of the sum, the other one enters it. Of equals the first stays.
        b_new = b_max2 > b_max
        b_high = tl.maximum(b_max, b_max2)
        b_safe = tl.where(b_high == NOTHING, 0.0, b_high)
        b_scale, b_scale2 = tl.exp(b_max - b_safe), tl.exp(b_max2 - b_safe)
        b_others = b_others * b_scale + b_others2 * b_scale2 + tl.where(b_new, b_scale, b_scale2)
        b_max, b_top = b_high, tl.where(b_new, b_top2, b_top)

    _, _, _, m_w = tile
    o_pixel = pixels_of(tile, H, W)
    tl.store(p_max + o_pixel, b_max, mask=m_w)
    tl.store(p_others + o_pixel, b_others, mask=m_w)

    b_loss = log1p(b_others) + (b_max - b_max)  # NaN where the maximum is NaN or infinite
    store_results(p_loss, p_labels, p_present, tile, b_loss, b_top, H, W, K, PER_PIXEL)


@_jit
def features_gradient_kernel(
    p_features, p_weight, p_bias, p_max, p_others, p_labels, p_grad, p_out,
    stride_b, stride_h, stride_w, stride_k, grad_b, grad_h, grad_w, out_b, out_h, out_w, out_k, divisor, H, W, K, D,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr, VEC: tl.constexpr,
    WVEC: tl.constexpr, PIXELS_INNER: tl.constexpr, HAS_BIAS: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of the features, to p_out. Grid: tiles, blocks of BLOCK_O channels."""
    inputs, strides = (p_features, p_weight, p_bias), (stride_b, stride_h, stride_w, stride_k)
    kept = p_max, p_others, p_labels, p_grad
    W = row_length(W, VEC, PIXELS_INNER)
    tile = tile_of(tl.program_id(0), H, W, BLOCK_P)
    o_d = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    b_out = tl.zeros((BLOCK_P, BLOCK_O), ACC)

    for k in range(0, K, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        b_dlogits = _gradient_of_logits(
            inputs, kept, tile, strides, (grad_b, grad_h, grad_w), divisor, o_k, H, W, K, D,
            BLOCK_D, VEC, WVEC, PIXELS_INNER, HAS_BIAS, PREC, ACC,
        )  # [BLOCK_P, BLOCK_K]  # fmt: skip

        # Loaded as late as it can be: above, it costs registers, and spills on some cards.
        b_weight = _load_weight(p_weight, o_k, o_d, K, D, WVEC)  # [BLOCK_K, BLOCK_O]
        b_out = add_dot(b_dlogits.to(b_weight.dtype), b_weight, b_out, PREC, ACC)

    store_tile(p_out, tile, (out_b, out_h, out_w, out_k), o_d, D, b_out, VEC, PIXELS_INNER)


@_jit
def weight_gradient_kernel(
    p_features, p_weight, p_bias, p_max, p_others, p_labels, p_grad, p_dweight, p_dbias,
    stride_b, stride_h, stride_w, stride_k, grad_b, grad_h, grad_w, divisor, H, W, K, D, tiles, programs,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr, VEC: tl.constexpr,
    WVEC: tl.constexpr, PIXELS_INNER: tl.constexpr, HAS_BIAS: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """This program's partial sums of the gradients of weight and bias.

    Grid: programs that share the tiles, blocks of clusters, blocks of BLOCK_O channels.
    p_dweight (programs, K, D), p_dbias (programs, K)    tiles: of all images
    """
    inputs, strides = (p_features, p_weight, p_bias), (stride_b, stride_h, stride_w, stride_k)
    kept = p_max, p_others, p_labels, p_grad
    W = row_length(W, VEC, PIXELS_INNER)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    o_d = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    b_dweight, b_dbias = tl.zeros((BLOCK_K, BLOCK_O), ACC), tl.zeros((BLOCK_K,), ACC)

    for index in range(tl.program_id(0), tiles, programs):
        tile = tile_of(index, H, W, BLOCK_P)
        b_dlogits = _gradient_of_logits(
            inputs, kept, tile, strides, (grad_b, grad_h, grad_w), divisor, o_k, H, W, K, D,
            BLOCK_D, VEC, WVEC, PIXELS_INNER, HAS_BIAS, PREC, ACC,
        )  # [BLOCK_P, BLOCK_K]  # fmt: skip

        b_x = load_tile(p_features, tile, strides, o_d, D, VEC, PIXELS_INNER, 0.0)  # [BLOCK_P, BLOCK_O]
        b_dweight = add_dot(tl.trans(b_dlogits.to(b_x.dtype)), b_x, b_dweight, PREC, ACC)
        b_dbias += tl.sum(b_dlogits, 0)

    program, D = tl.program_id(0).to(tl.int64), multiple_of(D, WVEC)
    store_block(p_dweight + program * K * D, o_k.to(tl.int64) * D, o_d, o_k < K, o_d < D, b_dweight)

    if HAS_BIAS:  # noqa: SIM102 - known when compiled, the next one is not
        if tl.program_id(2) == 0:  # the programs of the other channels have the same sums
            tl.store(p_dbias + program * K + o_k, b_dbias, mask=o_k < K)


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
        input_precision: of float32 products: ``"ieee"`` or ``"tf32"``.

    Returns:
        loss, labels, label_count: as of clustering_loss.
        statistics: (2, B, H, W), each pixel's maximum and sum of the other exponentials, for the backward.
    """
    (B, H, W, D), K = features.shape, weight.shape[0]
    rows, weight = Rows.of(stride=features), weight.contiguous()
    settings = launch_settings("loss", K, features.dtype, target_of(features.device), D, input_precision)
    tiles = rows.tiles(settings["BLOCK_P"])
    results = Results.empty(features, (B, H, W), K, tiles, reduction)
    statistics = torch.empty(2, B, H, W, dtype=sum_dtype(features.dtype), device=features.device)
    launch(
        linear_loss_kernel, (tiles,), settings, _shared(rows, features, weight, bias, statistics, input_precision),
        **results.arguments, PER_PIXEL=reduction == "none",
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
    grads, weight = grad_loss.expand(B, H, W), weight.contiguous()
    rows = Rows.of(stride=features, out=out, grad=grads)
    shared = _shared(rows, features, weight, bias, statistics, input_precision)
    shared |= dict(p_labels=labels, p_grad=grads, divisor=B * H * W if reduction == "mean" else 1)
    target, device = target_of(features.device), features.device

    settings = launch_settings("features", K, features.dtype, target, D, input_precision)
    grid = rows.tiles(settings["BLOCK_P"]), triton.cdiv(D, settings["BLOCK_O"])
    launch(features_gradient_kernel, grid, settings, shared, p_out=out)

    settings = launch_settings("weight", K, features.dtype, target, D, input_precision)
    tiles = rows.tiles(settings["BLOCK_P"])
    blocks = triton.cdiv(K, settings["BLOCK_K"]), triton.cdiv(D, settings["BLOCK_O"])
    programs = max(1, min(2 * multiprocessors_of(device) // math.prod(blocks), tiles))
    dweight = torch.empty(programs, K, D, dtype=statistics.dtype, device=device)
    dbias = torch.empty(programs, K, dtype=statistics.dtype, device=device)
    launch(
        weight_gradient_kernel, (programs, *blocks), settings, shared,
        p_dweight=dweight, p_dbias=dbias, tiles=tiles, programs=programs,
    )  # fmt: skip
    return out, dweight.sum(0).to(weight.dtype), None if bias is None else dbias.sum(0).to(bias.dtype)


def _shared(
    rows: Rows, features: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor, input_precision: str
) -> dict[str, Any]:
    """Arguments that the kernels share."""
    K, D = weight.shape
    return dict(
        **rows.arguments, p_features=features, p_weight=weight, p_bias=weight if bias is None else bias.contiguous(),
        p_max=statistics[0], p_others=statistics[1], K=K, D=D, WVEC=vector_length(weight.dtype, D),
        HAS_BIAS=bias is not None, PREC=input_precision, ACC=accumulator(weight.dtype),
    )  # fmt: skip
