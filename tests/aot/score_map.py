"""Compilations of the two-scale head."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from msformer_fast.kernels import score_map as op
from msformer_fast.kernels import score_map_gradient_kernels as gradients
from msformer_fast.kernels import score_map_kernels as kernels
from msformer_fast.kernels.launch import padded
from tests.harness.aot import Case, products_on, short

NORMS, PLAIN = {"COARSE_NORM": True, "FINE_NORM": True}, {"COARSE_NORM": False, "FINE_NORM": False}

#: Row of the launch table: kernel, further constexprs.
PARTS: dict[str, tuple[Any, dict[str, bool]]] = {
    "scores": (kernels.scores_kernel, {"GATHER": False}),
    "gather": (kernels.scores_kernel, {"GATHER": True}),
    "weight_sums": (gradients.weight_sums_kernel, {}),
    "map_gradients": (gradients.map_gradients_kernel, {}),
}

#: Pointers to sums, which are float32 whatever the maps are, and to integers.
FLOAT32 = {
    name: "*fp32"
    for name in (
        *("p_pixel", "p_partials", "p_moments", "p_products", "p_sums", "p_coarse_norm", "p_fine_norm", "p_dnorm"),
        *("p_dwc", "p_mean", "p_var", "p_loss", "p_coarse_mean", "p_coarse_var", "p_fine_mean", "p_fine_var"),
    )
} | {"p_labels": "*u8", "p_present": "*u8", "p_count": "*i32", "eps_coarse": "fp32", "eps_fine": "fp32"}


def cases(target: str, small: bool) -> list[Case]:
    """Every kernel, product and row of the launch table; small: the paper's widths."""
    found = []
    more = (torch.bfloat16, "ieee"), (torch.float16, "ieee")
    for product in products_on(target, *more[: 1 if small else 2]):
        only_paper = small or product[0] == torch.float16
        for K, C in [(100, 100)] if only_paper else [(100, 100), (64, 64), (128, 128), (256, 256)]:
            for part in PARTS:
                for norm in (NORMS, PLAIN) if K == 100 else (NORMS,):
                    found.append(_case(part, norm, K, C, product, target))
        for width in (100,) if only_paper else (100, 256):
            found += _small_kernels(width, width, product)
    return found


def _case(part: str, norm: dict[str, bool], K: int, C: int, product: tuple[Any, str], target: str) -> Case:
    dtype, precision = product
    kernel, flags = PARTS[part]
    settings = op.launch_settings(part, K, C, dtype, precision, target)
    constexprs = {"K": K, "C": C, "ACC": tl.float32, "PREC": precision, **flags, **norm}
    name = f"{part}, K {K}, C {C}, {short(dtype)} {precision}" + ", batch norms" * (norm == NORMS)
    return Case.of(name, kernel, settings, dtype, constexprs, **FLOAT32)


def _small_kernels(K: int, C: int, product: tuple[Any, str]) -> list[Case]:
    dtype, precision = product
    name = f"K {K}, C {C}, {short(dtype)} {precision}"
    widths = {"K": K, "C": C, "ACC": tl.float32}
    finish, options = {**widths, **NORMS}, op.finish_settings(C)
    gathered = {"K": K, "ALL_K": padded(K), "ACC": tl.float32}
    unfold = {**widths, "PREC": precision, "stride_ud": 1, "stride_hc": 1}
    fold = {**widths, "PREC": precision, "stride_ud": 1, "BLOCK_C": padded(C)}
    found = [
        Case.of(f"fold, {name}", kernels.fold_kernel, op.UNFOLD, dtype, fold, **FLOAT32),
        Case.of(f"weight_finish, {name}", gradients.weight_finish_kernel, options, dtype, finish, **FLOAT32),
        Case.of(f"unfold, {name}", gradients.unfold_kernel, op.UNFOLD, dtype, unfold, **FLOAT32),
    ]
    if product == (torch.float32, "ieee"):
        found.append(Case.of(f"gathered, {name}", kernels.gathered_kernel, op.GATHERED, dtype, gathered, **FLOAT32))
    return found
