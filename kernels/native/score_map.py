"""Launchers of the CPU kernels of the two-scale head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from msformer_fast.identities.score_map import folded_of, weight_gradients
from msformer_fast.kernels.native.library import run


class Gradients(NamedTuple):
    """Of the maps and weights, and of each batch norm's weight and bias (2, C), or ``None``."""

    coarse: Tensor
    fine: Tensor
    up_weight: Tensor
    head_weight: Tensor
    coarse_norm: Tensor | None
    fine_norm: Tensor | None


def score_map_forward(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: Tensor | None,
    fine_norm: Tensor | None,
) -> Tensor:
    """Logits (B, H, W, K), contiguous."""
    logits = fine.new_empty((*fine.shape[:3], head_weight.shape[0]))
    run("score_map_forward", **_shared(coarse, fine, up_weight, head_weight, coarse_norm, fine_norm), logits=logits)
    return logits


def score_map_backward(
    grad: Tensor,
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: Tensor | None,
    fine_norm: Tensor | None,
) -> Gradients:
    """Gradients of everything from that of the logits, contiguous."""
    shared = _shared(coarse, fine, up_weight, head_weight, coarse_norm, fine_norm)
    d_coarse, d_fine, d_folded, d_fine_weight = (
        torch.empty_like(shared[name]) for name in ("coarse", "fine", "folded", "fine_weight")
    )
    d_norms = [None if norm is None else fine.new_empty(2, fine.shape[3]) for norm in (coarse_norm, fine_norm)]
    run(
        "score_map_backward",
        **shared, grad_logits=grad.contiguous(), d_coarse=d_coarse, d_fine=d_fine, d_folded=d_folded,
        d_fine_weight=d_fine_weight, d_coarse_norm=d_norms[0], d_fine_norm=d_norms[1],
    )  # fmt: skip
    return Gradients(d_coarse, d_fine, *weight_gradients(d_folded, d_fine_weight, up_weight, head_weight), *d_norms)


def _shared(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: Tensor | None,
    fine_norm: Tensor | None,
) -> dict[str, Any]:
    """Arguments that the kernels share. A batch norm is (4, C): mean, 1 / standard deviation, weight and bias."""
    batch, height, width, channels = fine.shape
    sizes = {"batch": batch, "height": height, "width": width, "channels": channels, "clusters": head_weight.shape[0]}
    folded, fine_weight = (weight.contiguous() for weight in folded_of(up_weight, head_weight))
    maps = {"coarse": coarse.contiguous(), "fine": fine.contiguous(), "folded": folded, "fine_weight": fine_weight}
    return sizes | maps | {"coarse_norm": coarse_norm, "fine_norm": fine_norm}
