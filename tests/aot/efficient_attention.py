"""Compilations of efficient attention."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from msformer_fast.kernels import efficient_attention_gradient_kernels as gradients
from msformer_fast.kernels import efficient_attention_kernels as kernels
from msformer_fast.kernels import efficient_attention_table as table
from msformer_fast.kernels.launch import padded, product_kind
from tests.harness.aot import Case, products_on, short

DOTS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
WIDTHS = (64, 100, 128, 256)

#: Part of the launch table: its kernel.
PARTS = {
    "context": kernels.context_kernel,
    "attend": kernels.attend_kernel,
    "queries": gradients.query_gradients_kernel,
    "tokens": gradients.token_gradients_kernel,
    "keys": gradients.key_gradients_kernel,
}
BATCH_NORM = ("p_bn_mean", "p_bn_var", "p_bn_weight", "p_bn_bias", "p_normed", "p_raw")
#: Sums and what is kept between kernels; all other pointers are to what the caller gave or gets.
SUMS = (
    "p_partial_max",
    "p_partial_sum",
    "p_partial_G",
    "p_max",
    "p_sum",
    "p_G",
    "p_M",
    "p_query_stats",
    "p_key_delta",
    "p_dG",
)
SUMS += ("p_partial_dM", "p_partial_dwq", "p_partial_dwk", "p_partial_biases", "p_partial_norms", "p_dM", "p_dcontext")
SUMS += ("p_bn_mean", "p_bn_var")
Product = tuple[torch.dtype, torch.dtype, str]
FLOATS = {name: "fp32" for name in ("eps", "bn_eps")} | {name: "*fp32" for name in SUMS}


def cases(target: str, small: bool) -> list[Case]:
    """Every pass, product and width of the launch table, and the small kernels; small: the paper's width."""
    found = []
    for C in (100,) if small else WIDTHS:
        for product in _products(C, target):
            for part in PARTS:
                for heads, batch_norm in _variants(part, C):
                    found.append(pass_case(part, C, heads, batch_norm, product, target))
        if C == 100:
            found += [case for dtype in (torch.float32, torch.bfloat16) for case in _small_cases(C, dtype)]
    return found


def _products(C: int, target: str) -> list[Product]:
    """dtype in memory, that of the products' operands, and their precision. The last is autocast's."""
    plain = products_on(target, (torch.bfloat16, "ieee"))
    mixed = [(torch.float32, torch.bfloat16, "ieee")] * (C == 100)
    return [(dtype, dtype, precision) for dtype, precision in plain] + mixed


def _variants(part: str, C: int) -> list[tuple[int, bool]]:
    """Heads, and whether there is a batch norm, which touches two passes."""
    normed = [(1, True)] if C == 100 and part in ("context", "tokens") else []
    heads = [(2, False)] if C == 128 and part in ("attend", "queries", "tokens") else []
    return [(1, False), *normed, *heads]


def pass_case(part: str, C: int, heads: int, batch_norm: bool, product: Any, target: str, **settings: Any) -> Case:
    """One pass over the tokens at one width; settings beside those of the launch table."""
    memory, dot, precision = product
    shape = table.Shape(1, 1, C, C, C, heads)
    kernel = PARTS[part]
    kind = product_kind(dot, precision) if dot == memory else "mixed"
    settings = table.launch_settings(part, shape, kind, target) | settings
    fixed: dict[str, Any] = {
        "C": C,
        "NORM": True,
        "ACC": tl.float32,
        "DOT": DOTS[dot],
        "PREC": settings.pop("PREC", precision),
    }
    fixed |= {"HEADS": heads} if part == "attend" else {}
    fixed |= {"RESIDUAL": True} if part in ("attend", "tokens") else {}
    fixed |= {} if batch_norm else {name: None for name in BATCH_NORM if name in kernel.arg_names}
    name = f"{part}, C {C}, {short(memory)} {precision if dot == memory else 'as ' + short(dot)}"
    name += f", {heads} heads" * (heads > 1) + ", batch norm" * batch_norm
    types = {name: kind for name, kind in FLOATS.items() if name not in fixed}
    return Case.of(name, kernel, settings, memory, fixed, **types)


def _small_cases(C: int, dtype: torch.dtype) -> list[Case]:
    """The kernels between and after the passes, with everything that is optional."""
    common = dict(C=C, BLOCK_C=padded(C), ACC=tl.float32)
    row = [(kernel, table.SMALL) for kernel in (kernels.merge_kernel, gradients.merge_gradients_kernel)]
    row.append((gradients.finish_kernel, table.FINISH))
    return [
        Case.of(f"{kernel.__name__}, C {C}, {short(dtype)}", kernel, settings, dtype, common, **FLOATS)
        for kernel, settings in row
    ]
