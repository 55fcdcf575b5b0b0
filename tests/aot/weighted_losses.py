"""Compilations of the weighted losses."""

from __future__ import annotations

import torch
import triton.language as tl

from msformer_fast.kernels import weighted_losses as kernels
from msformer_fast.limits import WEIGHTED_LOSSES_CHANNELS
from tests.harness.aot import Case, short

LOSSES = ("p_clustering_loss", "p_stability_loss", "p_total", "p_clustering", "p_consistency", "p_stability")
GRADIENTS = ("p_grad_total", "p_grad_clustering", "p_grad_consistency", "p_grad_stability")


def cases(target: str, small: bool) -> list[Case]:
    """Both kernels from one channel to the most, contexts of 32 and 16 bits; gradients of the total alone, and of all
    losses. Small: the paper's width."""
    widths = [100] if small else [1, 16, 100, 256, WEIGHTED_LOSSES_CHANNELS]
    return [
        case
        for width in widths
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for case in (forward(width, dtype), backward(width, dtype, total_alone=True), backward(width, dtype, False))
    ]


def _constexprs() -> dict[str, object]:
    weights = {"W_CLUSTERING": 1.0, "W_CONSISTENCY": 1.5, "W_STABILITY": 1.3}
    return {**weights, "EPS": 1e-12, "ACC": tl.float32}


def forward(C: int, dtype: torch.dtype) -> Case:
    types = {**{name: "*fp32" for name in LOSSES}, "p_label_count": "*i32", "p_numbers": "*fp64"}
    settings = kernels.launch_settings("losses", C)
    return Case.of(f"losses, C {C}, {short(dtype)}", kernels.losses_kernel, settings, dtype, _constexprs(), **types)


def backward(C: int, dtype: torch.dtype, total_alone: bool) -> Case:
    absent = {name: None for name in GRADIENTS[1:]} if total_alone else {}
    names = (*LOSSES[:2], "p_d_clustering_loss", "p_d_stability_loss", *GRADIENTS)
    types = {name: "*fp32" for name in names if name not in absent}
    settings = kernels.launch_settings("gradients", C)
    arrived = "total" if total_alone else "all"
    name = f"gradients, C {C}, {short(dtype)}, of {arrived}"
    return Case.of(name, kernels.gradients_kernel, settings, dtype, _constexprs() | absent, **types)
