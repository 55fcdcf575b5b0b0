"""Compilations of windowed cross-scale attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl

from msformer_fast.kernels import cross_scale_attention_kernels as kernels
from msformer_fast.kernels.cross_scale_attention_table import EXPAND, SMALL, TABLE_GRADIENT, Tile, tile_of
from msformer_fast.kernels.launch import compile_options, padded, vector_length
from tests.harness.aot import Case, short

PRODUCTS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"))

PARTS = {
    "forward": kernels.attention_kernel,
    "fused": kernels.fused_gradient_kernel,
    "query": kernels.query_gradient_kernel,
    "bias": kernels.bias_gradient_kernel,
    "key": kernels.key_gradient_kernel,
}

FLOAT32 = dict.fromkeys(("p_bias", "p_lse", "p_delta", "p_dbias", "p_dpad"), "*fp32") | dict.fromkeys(
    ("scale", "scale_rest", "seam", "seam_rest"), "fp32"
)


class Attention(NamedTuple):
    """What a network sets, with a table of relative positions."""

    window: int
    D: int
    pads: bool = True
    soft: bool = False
    halo: int = 0
    ratio: tuple[int, int] = (1, 1)

    @property
    def core(self) -> int:
        return self.window * self.ratio[0] // self.ratio[1]

    def __str__(self) -> str:
        name = f"window {self.window}, d {self.D}" + ", pads" * self.pads + ", soft seam" * self.soft
        return name + f", keys {self.ratio[0]}/{self.ratio[1]}, halo {self.halo}" * (self.ratio != (1, 1))


SINGLE, TF32, HALF = PRODUCTS

#: Networks, and the products that each is compiled for.
CALLS = (
    *((Attention(window, D), PRODUCTS) for D in (32, 64, 16) for window in (8, 7, 16, 12)),
    (Attention(8, 128), PRODUCTS),
    (Attention(8, 32, halo=2, ratio=(1, 2)), (TF32, HALF)),
    (Attention(7, 32, soft=True), (TF32, HALF)),
    (Attention(8, 32, soft=True), (HALF,)),
    (Attention(8, 32, pads=False), PRODUCTS),
    (Attention(8, 8), (HALF,)),
    # MSFormer's, of 100 channels in 4 heads, both ways; and several windows in a tile.
    (Attention(8, 25, pads=False, ratio=(1, 2)), PRODUCTS),
    (Attention(4, 25, pads=False, ratio=(2, 1)), PRODUCTS),
    (Attention(4, 32), (SINGLE, HALF)),
)


def cases(target: str, small: bool) -> list[Case]:
    """Every kernel that a call launches; small: a fused backward and a split one."""
    if small:
        calls = [(Attention(7, 32), HALF), (Attention(8, 32), TF32), (Attention(16, 32), SINGLE)]
    else:
        calls = [(attention, product) for attention, products in CALLS for product in products]
    found = [case for attention, product in calls for case in cases_of(attention, product, target)]
    return found if small else [*found, *_bias_cases(8), *_bias_cases(16)]


def cases_of(attention: Attention, product: tuple[Any, str], target: str) -> list[Case]:
    """The launches of one forward and backward."""
    queries, keys = attention.window**2, (attention.core + 2 * attention.halo) ** 2

    def tile(part: str) -> Tile | None:
        seen = attention.core**2 if part == "key" else keys
        return tile_of(part, queries, seen, attention.D, *product, target)

    fused = None if attention.halo else tile("fused")
    one_tile = (fused or tile("query")).tiles(queries, keys)[1] == 1
    several = ["query", "key"] if one_tile else ["query", "bias", "key"]
    parts = ["forward", *(["fused"] if fused else several)]
    return [case_of(part, attention, product, tile(part), one_tile) for part in parts]


def case_of(part: str, attention: Attention, product: tuple[Any, str], tile: Tile, one_tile: bool) -> Case:
    """One launch; one_tile: of all keys, so that the kernel of the queries sums the gradient of the bias."""
    dtype, precision = product
    kernel, D, window, core, halo = PARTS[part], attention.D, attention.window, attention.core, attention.halo
    constexprs = dict(
        D=D, BLOCK_D=padded(D), WINDOW_Y=window, WINDOW_X=window, CORE_Y=core, CORE_X=core, HALO_Y=halo, HALO_X=halo,
        BIAS=True, PAD=attention.pads, SOFT=attention.soft, DBIAS=one_tile,
        VEC=vector_length(dtype, D), GVEC=vector_length(dtype, D), ACC=tl.float32, PREC=precision,
        **{f"stride_{tensor}d": 1 for tensor in ("q", "k", "v", "g", "dq", "dk", "dv")},
        **tile.settings,
    )  # fmt: skip
    options = {name: constexprs.pop(name) for name in compile_options(1)}
    known = {name: value for name, value in constexprs.items() if name in kernel.arg_names}
    return Case.of(f"{part}, {attention}, {short(dtype)} {precision}", kernel, options, dtype, known, **FLOAT32)


def _bias_cases(window: int) -> list[Case]:
    """The kernels before and after that of all gradients, which know neither products nor channels."""
    side, tokens = window, window**2
    constexprs = dict(WINDOW_Y=side, WINDOW_X=side, REACH_Y=side, REACH_X=side, P_Y=1, P_X=1, Q_Y=1, Q_X=1, N=1)
    table = Case.of(
        f"table gradient, window {side}", kernels.table_gradient_kernel, TABLE_GRADIENT, torch.float32, constexprs
    )
    if tokens > SMALL:
        return [table]
    constexprs = dict(WINDOW_X=side, CORE_X=side, QUERIES=tokens, KEYS=tokens, N=1, BLOCK_M=64, BLOCK_N=64)
    return [table, Case.of(f"bias, window {side}", kernels.expand_bias_kernel, EXPAND, torch.float32, constexprs)]
