"""Launch table and launchers of the two-scale head (kernels: ``score_map_kernels``, ``score_map_gradient_kernels``)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from msformer_fast.dtypes import label_dtype, sum_dtype
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
from msformer_fast.kernels.score_map_gradient_kernels import (
    map_gradients_kernel,
    unfold_kernel,
    weight_finish_kernel,
    weight_sums_kernel,
)
from msformer_fast.kernels.score_map_kernels import fold_kernel, gathered_kernel, scores_kernel
from msformer_fast.limits import GUIDED_SCORE_MAP_CLUSTERS, SCORE_MAP_CHANNELS

# (kernel, kind of product): {(targets, largest padded C): (BLOCK_N, BLOCK_K, BLOCK_C, num_warps, num_stages)}; "" is
# any target, a block of 0 channels is all of them. "gather" is the scores' kernel where a tile holds all clusters.
# Found by compiling ahead of time: no spill. Nobody has timed them.
TABLE = {
    ("scores", "ieee"): {("", 256): (64, 128, 16, 8, 1)},
    ("scores", "tf32"): {("", 256): (64, 128, 32, 8, 1), ("sm_100", 256): (32, 128, 32, 8, 1)},
    ("scores", "tf32x3"): {("", 256): (32, 128, 32, 8, 1)},
    ("scores", "half"): {("", 256): (64, 128, 32, 8, 1)},
    ("gather", "ieee"): {
        ("", 128): (32, 128, 16, 8, 1),
        ("sm_86 sm_89", 128): (16, 128, 16, 8, 1),
        ("sm_120", 64): (16, 128, 16, 4, 1),
        ("gfx942", 128): (16, 128, 16, 8, 1),
        ("", 256): (16, 256, 16, 8, 1),
    },
    ("gather", "tf32"): {
        ("", 128): (64, 128, 32, 8, 1),
        ("sm_90 sm_100 sm_120", 128): (32, 128, 32, 8, 1),
        ("", 256): (32, 256, 32, 8, 1),
        ("sm_100 sm_120", 256): (16, 256, 32, 8, 1),
        ("sm_90", 256): (32, 256, 16, 8, 1),
    },
    ("gather", "tf32x3"): {("", 128): (32, 128, 16, 8, 1), ("", 256): (16, 256, 16, 8, 1)},
    ("gather", "half"): {
        ("", 128): (64, 128, 32, 8, 1),
        ("sm_90", 128): (32, 128, 64, 8, 1),
        ("", 256): (32, 256, 32, 8, 1),
    },
    ("weight_sums", "ieee"): {("", 128): (16, 32, 0, 8, 1), ("", 256): (16, 16, 0, 8, 1)},
    ("weight_sums", "tf32"): {("", 128): (32, 64, 0, 8, 1), ("", 256): (32, 32, 0, 8, 1)},
    ("weight_sums", "tf32x3"): {("", 128): (16, 64, 0, 8, 1), ("", 256): (16, 32, 0, 8, 1)},
    ("weight_sums", "half"): {("", 128): (32, 64, 0, 8, 1), ("", 256): (32, 32, 0, 8, 1)},
    ("map_gradients", "ieee"): {("", 256): (32, 16, 128, 8, 1), ("gfx942", 256): (32, 16, 64, 8, 1)},
    ("map_gradients", "tf32"): {
        ("", 256): (64, 16, 128, 8, 1),
        ("sm_90", 256): (32, 32, 64, 8, 1),
        ("sm_100", 256): (32, 32, 128, 8, 1),
        ("gfx942", 256): (64, 32, 128, 8, 1),
    },
    ("map_gradients", "tf32x3"): {
        ("", 256): (32, 16, 128, 8, 1),
        ("sm_90", 256): (32, 32, 64, 8, 1),
        ("sm_100", 256): (32, 32, 128, 8, 1),
    },
    ("map_gradients", "half"): {("", 256): (64, 32, 128, 8, 1), ("sm_90", 256): (32, 32, 128, 8, 1)},
}
# Few large blocks: what a program costs in the interpreter is its operations, whatever their size.
INTERPRETER = dict.fromkeys(("scores", "gather", "weight_sums", "map_gradients"), (64, 128, 0, 8, 1))
UNFOLD = dict(BLOCK=32, **compile_options(num_warps=8))
GATHERED = dict(BLOCK_S=128, BLOCK_K=16, BLOCK=1024, **compile_options(num_warps=4))


def launch_settings(
    part: str, K: int, C: int, dtype: torch.dtype, input_precision: str = "ieee", target: str | None = None
) -> dict[str, int]:
    """Launch options of a kernel: "scores", "gather", "weight_sums", "map_gradients". Other cards get those of any.

    Args:
        target: name of the card; None is the interpreter.

    Raises:
        ValueError: more channels, or clusters of one tile, than the table was made for.
    """
    if C > SCORE_MAP_CHANNELS or (part == "gather" and K > GUIDED_SCORE_MAP_CLUSTERS):
        limits = f"{GUIDED_SCORE_MAP_CLUSTERS} and {SCORE_MAP_CHANNELS}"
        raise ValueError(f"score_map: K = {K}, C = {C}; at most {limits} are supported")

    size = max(padded(K), padded(C)) if part == "gather" else padded(C)
    rows = TABLE[part, product_kind(dtype, input_precision)]
    block_n, block_k, block_c, warps, stages = INTERPRETER[part] if target is None else choose(rows, size, target)
    return dict(
        BLOCK_N=block_n,
        BLOCK_K=padded(K) if part == "gather" else min(block_k, padded(K)),
        BLOCK_C=min(block_c or padded(C), padded(C)),
        **compile_options(warps, stages),
    )


def finish_settings(C: int) -> dict[str, int]:
    """Launch options of the sums over the programs of the weights' gradients."""
    return dict(BLOCK_S=min(2048 // padded(C), 16), BLOCK_C=padded(C), **compile_options(num_warps=8))


class MapNorm(NamedTuple):
    """A batch norm through which a map is read.

    Attributes:
        gamma, beta: (C), of any dtype.
        mean, var: (C), ``var`` biased; float32 or better.
        eps: added to the variance.
    """

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    eps: float


class Folded(NamedTuple):
    """What the kernels read of the parameters, forward and backward.

    Attributes:
        wc: (4, K, C), the head's coarse columns times the upsampling weight, in its dtype.
        coarse_norm, fine_norm: (4, C), mean, biased variance, gamma and beta; float32 or better; (0) without a norm.
    """

    wc: Tensor
    coarse_norm: Tensor
    fine_norm: Tensor


class Gathered(NamedTuple):
    """What a forward finds out beside the logits.

    Attributes:
        loss: scalar, the mean over all pixels of ``logsumexp(l) - max(l)``; float32 or better, as all but the labels.
        labels: (B, H, W), the argmax, in the smallest integer dtype that holds K; label_count: (B) int32.
        mean, var, rstd: (K), of the logits over batch and pixels: ``var`` biased, ``rstd`` its ``(var + eps) ** -0.5``.
        pixel: (2, B, H, W), a pixel's largest logit, and the sum of ``exp(l - largest)`` over its other clusters.
    """

    loss: Tensor
    labels: Tensor
    label_count: Tensor
    mean: Tensor
    var: Tensor
    rstd: Tensor
    pixel: Tensor


def _new(like: Tensor, *shape: int) -> Tensor:
    """For sums of the elements of `like`."""
    return torch.empty(shape, dtype=sum_dtype(like.dtype), device=like.device)


def _fold(
    up_weight: Tensor,
    head: Tensor,
    coarse_norm: MapNorm | None,
    fine_norm: MapNorm | None,
    input_precision: str,
    present: Tensor | None = None,
) -> Folded:
    """See :class:`Folded`. head: contiguous. present: (B, K), flags that become 0."""
    (K, _), C = head.shape, up_weight.shape[1]
    norms = {"coarse": coarse_norm, "fine": fine_norm}
    vectors = {name: _new(head, *((0,) if norm is None else (4, C))) for name, norm in norms.items()}
    wc = torch.empty((4, K, C), dtype=head.dtype, device=head.device)
    given = {
        f"p_{name}_{field}": None if norm is None else getattr(norm, field).contiguous()
        for name, norm in norms.items()
        for field in ("mean", "var", "gamma", "beta")
    }
    blocks = 4 * triton.cdiv(K, UNFOLD["BLOCK"]) * triton.cdiv(C, UNFOLD["BLOCK"])
    launch(
        fold_kernel, (blocks + 1,), UNFOLD, given,
        p_up=up_weight, p_head=head, p_wc=wc, p_present=present,
        p_coarse_norm=None if coarse_norm is None else vectors["coarse"],
        p_fine_norm=None if fine_norm is None else vectors["fine"],
        stride_uc=up_weight.stride(0), stride_ud=up_weight.stride(1), c_end=C,
        images=0 if present is None else present.shape[0],
        K=K, C=C, BLOCK_C=padded(C), ACC=accumulator(head.dtype), PREC=input_precision,
    )  # fmt: skip
    return Folded(wc, **{f"{name}_norm": made for name, made in vectors.items()})


def _shared(
    coarse: Tensor,
    fine: Tensor,
    head: Tensor,
    folded: Folded,
    coarse_norm: MapNorm | None,
    fine_norm: MapNorm | None,
    input_precision: str,
) -> dict[str, Any]:
    """Arguments that the kernels share. head: contiguous."""
    (B, H, W, C), K = fine.shape, head.shape[0]
    WC, cells = coarse.shape[2], coarse.shape[1] * coarse.shape[2]
    shared: dict[str, Any] = dict(
        p_coarse=coarse.contiguous(), p_fine=fine.contiguous(), p_head=head,
        p_wc=folded.wc, p_wf=head[:, C:], stride_wf=head.stride(0),
        H=H, W=W, WC=WC, cells=cells, pixels=B * H * W, pixels_coarse=B * cells, c_end=C, k_end=K, K=K, C=C,
        ACC=accumulator(fine.dtype), PREC=input_precision,
    )  # fmt: skip
    for name, norm, vectors in (("coarse", coarse_norm, folded.coarse_norm), ("fine", fine_norm, folded.fine_norm)):
        shared[f"p_{name}_norm"] = head if norm is None else vectors
        shared[f"eps_{name}"] = 0.0 if norm is None else norm.eps
        shared[f"{name.upper()}_NORM"] = norm is not None
    return shared


def score_map_forward(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: MapNorm | None = None,
    fine_norm: MapNorm | None = None,
    input_precision: str = "ieee",
    gather_eps: float | None = None,
) -> tuple[Tensor, Gathered | None, Folded]:
    """Logits (B, H, W, K), contiguous; with ``gather_eps`` what the losses read of them; and what was made of the
    parameters, for the backward.

    Args:
        coarse: (B, ceil(H / 2), ceil(W / 2), C); fine: (B, H, W, C). Other strides than contiguous cost a copy.
        up_weight: (4C, C); head_weight: (K, 2C).
        coarse_norm, fine_norm: batch norms through which the maps are read.
        input_precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        gather_eps: added to the variance of the logits; K is at most 256.
    """
    (B, H, W, C), K, gather = fine.shape, head_weight.shape[0], gather_eps is not None
    present = torch.empty((B, K), dtype=torch.uint8, device=fine.device) if gather else None
    head = head_weight.contiguous()
    folded = _fold(up_weight, head, coarse_norm, fine_norm, input_precision, present)
    shared = _shared(coarse, fine, head, folded, coarse_norm, fine_norm, input_precision)
    part = "gather" if gather else "scores"
    settings = launch_settings(part, K, C, fine.dtype, input_precision, target_of(fine.device))
    logits = fine.new_empty((B, H, W, K))
    blocks, k_blocks = triton.cdiv(shared["cells"], settings["BLOCK_N"]), triton.cdiv(K, settings["BLOCK_K"])
    tiles = 4 * B * blocks
    programs = min(tiles, max(1, 2 * multiprocessors_of(fine.device) // k_blocks))

    labels, pixel, losses, moments = (logits,) * 4  # any pointers
    if gather:
        labels = torch.empty((B, H, W), dtype=label_dtype(K), device=fine.device)
        pixel, losses, moments = _new(fine, 2, B, H, W), _new(fine, programs), _new(fine, programs, 4, K)
    launch(
        scores_kernel, (programs, k_blocks), settings, shared,
        p_logits=logits, p_labels=labels, p_pixel=pixel, p_present=logits if present is None else present,
        p_partials=losses, p_moments=moments,
        blocks=blocks, tiles=tiles, GATHER=gather,
    )  # fmt: skip
    if not gather:
        return logits, None, folded

    mean, var, rstd, loss = _new(fine, K), _new(fine, K), _new(fine, K), _new(fine)
    count = torch.empty(B, dtype=torch.int32, device=fine.device)
    launch(
        gathered_kernel, (triton.cdiv(K, GATHERED["BLOCK_K"]) + max(B, 1),), GATHERED, shared,
        p_moments=moments, p_partials=losses, p_present=present, p_mean=mean, p_var=var, p_rstd=rstd, p_loss=loss,
        p_count=count, programs=programs, divisor=B * H * W, images=B, eps=gather_eps, ALL_K=padded(K),
    )  # fmt: skip
    return logits, Gathered(loss, labels, count, mean, var, rstd, pixel), folded


class Gradients(NamedTuple):
    """Of the maps (contiguous) and weights, and of the norms' gamma and beta, (C) each, or None; in their dtypes."""

    coarse: Tensor
    fine: Tensor
    up_weight: Tensor
    head_weight: Tensor
    coarse_norm: tuple[Tensor, Tensor] | None
    fine_norm: tuple[Tensor, Tensor] | None


def score_map_backward(
    grad: Tensor,
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: MapNorm | None = None,
    fine_norm: MapNorm | None = None,
    input_precision: str = "ieee",
    folded: Folded | None = None,
) -> Gradients:
    """Gradients of everything from that of the logits, ``grad`` (B, H, W, K), contiguous or copied.

    Args:
        folded: as it came out of the forward; None to make it again.
    """
    (B, _, _, C), K, head = fine.shape, head_weight.shape[0], head_weight.contiguous()
    folded = folded or _fold(up_weight, head, coarse_norm, fine_norm, input_precision)
    shared = _shared(coarse, fine, head, folded, coarse_norm, fine_norm, input_precision)
    shared |= dict(p_grad=grad.contiguous())
    options = K, C, fine.dtype, input_precision, target_of(fine.device)

    # The products of the logits' gradient with both maps, and its sums, position by position.
    settings = launch_settings("weight_sums", *options)
    blocks, k_blocks = triton.cdiv(shared["cells"], settings["BLOCK_N"]), triton.cdiv(K, settings["BLOCK_K"])
    # No more than the multiprocessors: a few programs in a second wave would take as long again.
    programs = min(B * blocks, max(1, multiprocessors_of(fine.device) // (4 * k_blocks)))
    products, sums = _new(fine, programs, 4, 2, K, C), _new(fine, programs, 4, K)
    launch(
        weight_sums_kernel, (programs, 4 * k_blocks), settings, shared,
        p_products=products, p_sums=sums, blocks=blocks, tiles=B * blocks,
    )  # fmt: skip

    # From them the gradients of the weights and of the norms.
    d_wc, partials, norms = _new(fine, 4, K, C), _new(fine, K, 4, C), _new(fine, 4, C)
    d_head, d_up = torch.empty_like(head), up_weight.new_empty(up_weight.shape)
    launch(
        weight_finish_kernel, (K,), finish_settings(C), shared,
        p_products=products, p_sums=sums, p_dwc=d_wc, p_dhead=d_head, p_partials=partials, programs=programs,
    )  # fmt: skip
    c_blocks, k_blocks = triton.cdiv(C, UNFOLD["BLOCK"]), triton.cdiv(K, UNFOLD["BLOCK"])
    normed = coarse_norm is not None or fine_norm is not None
    norm_blocks = triton.cdiv(4 * C, UNFOLD["BLOCK"]) if normed else 0
    d_coarse_norm, d_fine_norm = (
        None if norm is None else (torch.empty_like(norm.gamma), torch.empty_like(norm.beta))
        for norm in (coarse_norm, fine_norm)
    )
    launch(
        unfold_kernel, (c_blocks * (4 * c_blocks + k_blocks) + norm_blocks,), UNFOLD, shared,
        p_dwc=d_wc, p_up=up_weight, p_partials=partials, p_dup=d_up, p_dhead=d_head, p_dnorm=norms,
        **dict(zip(("p_dgamma_coarse", "p_dbeta_coarse"), d_coarse_norm or (None, None), strict=True)),
        **dict(zip(("p_dgamma_fine", "p_dbeta_fine"), d_fine_norm or (None, None), strict=True)),
        stride_uc=up_weight.stride(0), stride_ud=up_weight.stride(1),
        stride_hk=head.stride(0), stride_hc=head.stride(1),
    )  # fmt: skip

    # The gradients of the maps, which need those of the norms.
    d_coarse, d_fine = torch.empty_like(shared["p_coarse"]), torch.empty_like(shared["p_fine"])
    settings = launch_settings("map_gradients", *options)
    blocks = triton.cdiv(shared["cells"], settings["BLOCK_N"])
    launch(
        map_gradients_kernel, (B * blocks, triton.cdiv(C, settings["BLOCK_C"])), settings, shared,
        p_dnorm=norms, p_dcoarse=d_coarse, p_dfine=d_fine, blocks=blocks,
    )  # fmt: skip
    return Gradients(d_coarse, d_fine, d_up, d_head, d_coarse_norm, d_fine_norm)
