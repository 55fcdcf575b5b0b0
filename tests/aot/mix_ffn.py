"""Compilations of the Mix-FFN."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl

from msformer_fast.kernels import mix_ffn as launch
from msformer_fast.kernels import mix_ffn_backward_kernels as backward
from msformer_fast.kernels import mix_ffn_kernels as forward
from msformer_fast.kernels.launch import padded
from msformer_fast.limits import MIX_FFN_HIDDEN
from tests.harness.aot import Case, products_on, short

PARTS = {
    "expand": forward.expand_kernel,
    "contract": forward.contract_kernel,
    "hidden": backward.hidden_gradient_kernel,
    "token": backward.token_gradient_kernel,
    "product": backward.product_gradient_kernel,
}


class Variant(NamedTuple):
    """What a network sets."""

    name: str
    flags: dict[str, bool]
    parts: tuple[str, ...] = tuple(PARTS)
    absent: tuple[str, ...] = ()  # pointers that are None
    tokens: str = ""  # type of t, y, their gradients and the norms' parameters, where they have one of their own
    strips: bool = False  # row buffers hold some of the rows


def _flags(*off: str) -> dict[str, bool]:
    return {name: name not in off for name in ("NORM", "INNER_NORM", "INNER_SKIP", "RESIDUAL")}


PAPER = Variant("", _flags(), absent=("p_moments",))
STATISTICS = Variant(", statistics", _flags(), ("contract",))
STRIPS = Variant(", strips", _flags(), absent=("p_moments",), strips=True)
AUTOCAST = Variant(", autocast", _flags(), tokens="*fp32")
SEGFORMER = Variant(
    ", SegFormer",
    _flags("INNER_NORM", "INNER_SKIP"),
    ("contract", "hidden", "product"),
    (
        *("p_inner_gamma", "p_inner_beta", "p_inner", "p_scratch", "p_moments", "p_hidden_partials"),
        *("p_dinner_gamma", "p_dinner_beta"),
    ),
)
#: Neither biases nor affine parameters nor the residual.
BARE = Variant(
    ", bare",
    _flags("RESIDUAL"),
    absent=(
        *(
            "p_gamma",
            "p_beta",
            "p_bias1",
            "p_bias_conv",
            "p_inner_gamma",
            "p_inner_beta",
            "p_bias2",
            "p_moments",
            "p_hidden_partials",
        ),
        *("p_token_partials", "p_dgamma", "p_dbeta", "p_dbias1", "p_dbias_conv", "p_dinner_gamma", "p_dinner_beta"),
        "p_dbias2",
    ),
)

FLOAT32 = (
    *("p_vectors", "p_inner", "p_tokens", "p_moments"),
    *("p_partials", "p_product_partials", "p_hidden_partials", "p_token_partials"),
)
TOKENS = ("p_t", "p_y", "p_dy", "p_dt", "p_gamma", "p_beta", "p_inner_gamma", "p_inner_beta")
NORM_GRADIENTS = ("p_dgamma", "p_dbeta", "p_dinner_gamma", "p_dinner_beta")


def cases(target: str, small: bool) -> list[Case]:
    """Every kernel, product and row of the launch table; small: the paper's widths."""
    products = products_on(target, (torch.bfloat16, "ieee"))
    found = [
        _case(part, variant, C, product, target)
        for product in products
        for C in ((100,) if small else (64, 100, 128, 256))
        for variant in _variants(C, product, small)
        for part in variant.parts
    ]
    if not small:
        found += [
            _case("hidden", PAPER, C, product, target, D=MIX_FFN_HIDDEN) for product in products for C in (128, 256)
        ]
    rest = [(PAPER, 100)] if small else [(PAPER, 100), (PAPER, 256), (SEGFORMER, 100), (BARE, 100), (AUTOCAST, 100)]
    for variant, C in rest:
        found.append(_finish(variant, C))
    return found


def _variants(C: int, product: tuple[torch.dtype, str], small: bool) -> list[Variant]:
    variants = [PAPER, STATISTICS]
    if C == 100 and not small and product[1] == "ieee":
        variants.append(AUTOCAST if product[0] == torch.bfloat16 else BARE)
    if C in (100, 256) and not small:
        variants.append(STRIPS)
    return [*variants, SEGFORMER] if C in (64, 128) and product[1] == "ieee" else variants


def _case(
    part: str, variant: Variant, C: int, product: tuple[torch.dtype, str], target: str, D: int | None = None
) -> Case:
    dtype, precision = product
    kernel, many = PARTS[part], "" if D is None else f", D {D}"
    D = D or 4 * C
    settings = launch.launch_settings(part, C, D, dtype, precision, target)
    constants = {**variant.flags, "C": C, "D": D, "PAD_D": padded(D), "ACC": tl.float32, "PREC": precision}
    absent = [*variant.absent, *([] if variant.strips else ["R"])]
    if (part, variant) == ("hidden", SEGFORMER) or (variant is BARE and part in ("hidden", "token")):
        absent.append("p_partials")
    name = f"{part}, C {C}, {short(dtype)} {precision}{variant.name}{many}"
    return Case.of(name, kernel, settings, dtype, _present(kernel, constants, absent), **_types(kernel, variant))


def _finish(variant: Variant, C: int) -> Case:
    """The kernel that adds the partial sums."""
    kernel, dtype = backward.finish_gradients_kernel, torch.bfloat16 if variant is AUTOCAST else torch.float32
    constants = _present(kernel, {"C": C, "D": 4 * C, "ACC": tl.float32}, list(variant.absent))
    name = f"finish, C {C}, {short(dtype)}{variant.name}"
    return Case.of(name, kernel, launch.FINISH, dtype, constants, **_types(kernel, variant))


def _present(kernel: Any, constants: dict[str, Any], absent: list[str]) -> dict[str, Any]:
    """Constexprs that the kernel has, and its pointers that are None."""
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    return constants | {name: None for name in absent if name in kernel.arg_names}


def _types(kernel: Any, variant: Variant) -> dict[str, str]:
    types = dict.fromkeys(FLOAT32, "*fp32") | {"eps": "fp32"}
    if variant.tokens:
        types |= dict.fromkeys((*TOKENS, *NORM_GRADIENTS), variant.tokens)
    return {name: kind for name, kind in types.items() if name in kernel.arg_names}
