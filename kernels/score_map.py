"""Launchers of the two-scale head. Its kernels, forward and gradient, and the launch table have files of their own."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from msformer_fast.dtypes import label_dtype, sum_dtype
from msformer_fast.kernels.launch import accumulator, multiprocessors_of, padded, target_of
from msformer_fast.kernels.score_map_gradient_kernels import (
    map_gradients_kernel,
    unfold_kernel,
    weight_finish_kernel,
    weight_sums_kernel,
)
from msformer_fast.kernels.score_map_kernels import gathered_kernel, scores_kernel
from msformer_fast.kernels.score_map_table import GATHERED, UNFOLD, finish_settings, launch_settings


class MapNorm(NamedTuple):
    """A batch norm through which a map is read.

    Attributes:
        vectors: (4, C), mean, biased variance, gamma and beta; float32 or better.
        eps: added to the variance.
    """

    vectors: Tensor
    eps: float

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> MapNorm:
        return cls(torch.stack([vector.to(mean.dtype) for vector in (mean, var, weight, bias)]), eps)


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


class _Head:
    """What the launches of one call share."""

    def __init__(
        self,
        coarse: Tensor,
        fine: Tensor,
        up_weight: Tensor,
        head_weight: Tensor,
        coarse_norm: MapNorm | None,
        fine_norm: MapNorm | None,
        input_precision: str,
    ) -> None:
        self.B, self.H, self.W, self.C = fine.shape
        self.cells = coarse.shape[1] * coarse.shape[2]
        self.K = head_weight.shape[0]
        self.sums = sum_dtype(fine.dtype)
        self.maps = coarse.contiguous(), fine.contiguous()
        self.norms = coarse_norm, fine_norm
        self.head = head_weight.contiguous()
        self.fine_weight = self.head[:, self.C :]
        self.folded = torch.matmul(self.head[:, : self.C], up_weight.unflatten(0, (4, self.C)))
        self.precision = input_precision
        self.types = dict(ACC=accumulator(fine.dtype), PREC=input_precision)
        self.flags = dict(COARSE_NORM=coarse_norm is not None, FINE_NORM=fine_norm is not None)

    def settings(self, part: str) -> dict[str, int]:
        target = target_of(self.maps[0].device)
        return launch_settings(part, self.K, self.C, self.maps[0].dtype, self.precision, target)

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.sums, device=self.head.device)

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """Maps and the vectors of their norms."""
        return *self.maps, *(self.head if norm is None else norm.vectors for norm in self.norms)

    @property
    def eps(self) -> tuple[float, ...]:
        return tuple(0.0 if norm is None else norm.eps for norm in self.norms)


def score_map_forward(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: MapNorm | None = None,
    fine_norm: MapNorm | None = None,
    input_precision: str = "ieee",
    gather_eps: float | None = None,
) -> tuple[Tensor, Gathered | None]:
    """Logits (B, H, W, K), contiguous, and with ``gather_eps`` what the losses read of them.

    Args:
        coarse: (B, ceil(H / 2), ceil(W / 2), C); fine: (B, H, W, C). Other strides than contiguous cost a copy.
        up_weight: (4C, C); head_weight: (K, 2C).
        coarse_norm, fine_norm: batch norms through which the maps are read.
        input_precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        gather_eps: added to the variance of the logits; K is at most 256.
    """
    gather = gather_eps is not None
    head = _Head(coarse, fine, up_weight, head_weight, coarse_norm, fine_norm, input_precision)
    B, H, W, K = head.B, head.H, head.W, head.K
    settings = head.settings("gather" if gather else "scores")
    logits = fine.new_empty((B, H, W, K))
    blocks = triton.cdiv(head.cells, settings["BLOCK_N"])
    k_blocks, tiles = triton.cdiv(K, settings["BLOCK_K"]), 4 * B * blocks
    programs = min(tiles, triton.cdiv(2 * multiprocessors_of(fine.device), k_blocks))
    labels, pixel, present, losses, moments = (logits,) * 5
    if gather:
        labels = torch.empty((B, H, W), dtype=label_dtype(K), device=fine.device)
        pixel, losses, moments = head.new(2, B, H, W), head.new(programs), head.new(programs, 4, K)
        present = torch.zeros((B, K), dtype=torch.uint8, device=fine.device)
    if tiles:
        scores_kernel[programs, k_blocks](
            *head.reads,
            head.folded,
            head.fine_weight,
            logits,
            labels,
            pixel,
            present,
            losses,
            moments,
            H,
            W,
            coarse.shape[2],
            head.cells,
            blocks,
            tiles,
            B * H * W,
            head.C,
            *head.eps,
            head.head.stride(0),
            K=K,
            C=head.C,
            GATHER=gather,
            **head.flags,
            **head.types,
            **settings,
        )
    if not gather:
        return logits, None
    mean, var, rstd, loss = head.new(K), head.new(K), head.new(K), head.new()
    count = torch.empty(B, dtype=torch.int32, device=fine.device)
    gathered_kernel[(triton.cdiv(K, GATHERED["BLOCK_K"]) + max(B, 1),)](
        moments,
        losses,
        present,
        mean,
        var,
        rstd,
        loss,
        count,
        programs,
        B * H * W,
        B,
        gather_eps,
        K=K,
        ALL_K=padded(K),
        ACC=head.types["ACC"],
        **GATHERED,
    )
    return logits, Gathered(loss, labels, count, mean, var, rstd, pixel)


class Gradients(NamedTuple):
    """Of the maps (contiguous) and weights, in their dtypes; of the norms' gamma and beta, (C) each, or None."""

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
) -> Gradients:
    """Gradients of everything from that of the logits, ``grad`` (B, H, W, K), contiguous or copied."""
    head = _Head(coarse, fine, up_weight, head_weight, coarse_norm, fine_norm, input_precision)
    B, H, W, K, C = head.B, head.H, head.W, head.K, head.C
    grad, settings = grad.contiguous(), head.settings("weight_sums")
    sizes, widths = (H, W, coarse.shape[2], head.cells), dict(K=K, C=C)
    blocks, k_blocks = triton.cdiv(head.cells, settings["BLOCK_N"]), triton.cdiv(K, settings["BLOCK_K"])
    programs = min(B * blocks, triton.cdiv(multiprocessors_of(fine.device), 4 * k_blocks))
    products, sums = head.new(programs, 4, 2, K, C), head.new(programs, 4, K)
    if programs:
        weight_sums_kernel[programs, 4 * k_blocks](
            grad,
            *head.reads,
            products,
            sums,
            *sizes,
            blocks,
            B * blocks,
            *head.eps,
            **widths,
            **head.flags,
            **head.types,
            **settings,
        )
    folded, parts, norms = head.new(4, K, C), head.new(K, 4, C), head.new(4, C)
    d_head, d_up = torch.empty_like(head.head), up_weight.new_empty(up_weight.shape)
    weight_finish_kernel[(K,)](
        products,
        sums,
        *head.reads[2:],
        head.folded,
        head.fine_weight,
        folded,
        d_head,
        parts,
        programs,
        head.head.stride(0),
        **widths,
        **head.flags,
        ACC=head.types["ACC"],
        **finish_settings(C),
    )
    normed = any(head.flags.values())
    c_blocks, k_blocks = triton.cdiv(C, UNFOLD["BLOCK"]), triton.cdiv(K, UNFOLD["BLOCK"])
    norm_blocks = triton.cdiv(4 * C, UNFOLD["BLOCK"]) if normed else 0
    unfold_kernel[(c_blocks * (4 * c_blocks + k_blocks) + norm_blocks,)](
        folded,
        up_weight,
        head.head,
        parts,
        d_up,
        d_head,
        norms,
        *up_weight.stride(),
        *head.head.stride(),
        K,
        C,
        **widths,
        **head.types,
        **UNFOLD,
    )
    d_coarse, d_fine = (torch.empty_like(m) for m in head.maps)
    settings = head.settings("map_gradients")
    blocks = triton.cdiv(head.cells, settings["BLOCK_N"])
    if B:
        map_gradients_kernel[B * blocks, triton.cdiv(C, settings["BLOCK_C"])](
            grad,
            *head.reads,
            norms,
            head.folded,
            head.fine_weight,
            d_coarse,
            d_fine,
            *sizes,
            blocks,
            B * H * W,
            B * head.cells,
            K,
            *head.eps,
            head.head.stride(0),
            **widths,
            **head.flags,
            **head.types,
            **settings,
        )
    d_fine_norm = None if fine_norm is None else (norms[1], norms[0])
    d_coarse_norm = None if coarse_norm is None else (norms[3], norms[2])
    return Gradients(d_coarse, d_fine, d_up, d_head, d_coarse_norm, d_fine_norm)
