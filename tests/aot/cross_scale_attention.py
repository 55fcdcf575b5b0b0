"""Compilations of windowed cross-scale attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl

from msformer_fast.kernels import cross_scale_attention as kernels
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
    axes: int = 2

    @property
    def core(self) -> int:
        return self.window * self.ratio[0] // self.ratio[1]

    def __str__(self) -> str:
        side = str(self.window) if self.axes == 2 else f"{self.window}^{self.axes}"
        name = f"window {side}, d {self.D}" + ", pads" * self.pads + ", soft seam" * self.soft
        return name + f", keys {self.ratio[0]}/{self.ratio[1]}, halo {self.halo}" * (self.ratio != (1, 1))


SINGLE, TF32, HALF = PRODUCTS
WITH_FLOAT16 = (*PRODUCTS, (torch.float16, "ieee"))

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
    # Volumes, Swin UNETR's among them: windows of several tiles, and of one.
    *((Attention(7, D, soft=True, axes=3), WITH_FLOAT16) for D in (16, 32, 8)),
    *((Attention(8, D, axes=3), WITH_FLOAT16) for D in (32, 16, 8)),
    (Attention(10, 16, axes=3), (HALF,)),
    *((Attention(4, D, axes=3), WITH_FLOAT16) for D in (32, 16, 8)),
    (Attention(4, 16, halo=1, ratio=(1, 2), axes=3), (HALF,)),
)


def cases(target: str, small: bool) -> list[Case]:
    """Every kernel that a call launches; small: a fused backward and a split one."""
    if small:
        calls = [(Attention(7, 32), HALF), (Attention(8, 32), TF32), (Attention(16, 32), SINGLE)]
    else:
        calls = [(attention, product) for attention, products in CALLS for product in products]
    found = [case for attention, product in calls for case in cases_of(attention, product, target)]
    others = [case for sides in ((8,), (16,), (7, 3), (4, 3)) for case in _bias_cases(*sides)]
    return found if small else [*found, *others]


def cases_of(attention: Attention, product: tuple[Any, str], target: str) -> list[Case]:
    """The launches of one forward and backward."""
    axes = attention.axes
    queries, keys = attention.window**axes, (attention.core + 2 * attention.halo) ** axes

    def tile(part: str) -> Tile | None:
        seen = attention.core**axes if part == "key" else keys
        return tile_of(part, queries, seen, attention.D, *product, target, axes)

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
        D=D, BLOCK_D=padded(D), **_of_sides(attention.axes, WINDOW=window, CORE=core, HALO=halo),
        BIAS=True, PAD=attention.pads, SOFT=attention.soft, DBIAS=one_tile,
        VEC=vector_length(dtype, D), GVEC=vector_length(dtype, D), ACC=tl.float32, PREC=precision,
        **{f"stride_{tensor}d": 1 for tensor in ("q", "k", "v", "g", "dq", "dk", "dv")},
        **tile.settings,
    )  # fmt: skip
    options = {name: constexprs.pop(name) for name in compile_options(1)}
    name = f"{part}, {attention}, {short(dtype)} {precision}"
    return Case.of(name, kernel, options, dtype, _known(kernel, constexprs), **FLOAT32)


def _of_sides(axes: int, **sides: int) -> dict[str, Any]:
    """These sides of every axis, as the launchers name them; with two axes the third has none."""
    found: dict[str, Any] = {"AXES": axes}
    for name, side in sides.items():
        found |= {f"{name}_Y": side, f"{name}_X": side}
        found[f"{name}_Z"] = side if axes == 3 else 0 if name == "HALO" else 1
    if axes == 2:
        found |= {f"{of}_{side}z": None for side in "qk" for of in ("size", "cycle", "shift", "seam")}
        found |= {"bias_qz": None, "bias_kz": None, "nz": None}
    return found


def _bias_cases(window: int, axes: int = 2) -> list[Case]:
    """The kernels before and after that of all gradients, which know neither products nor channels."""
    tokens, name = window**axes, str(window) if axes == 2 else f"{window}^{axes}"
    constexprs = _known(kernels.table_gradient_kernel, _of_sides(axes, WINDOW=window, REACH=window, P=1, Q=1), N=1)
    table = Case.of(
        f"table gradient, window {name}", kernels.table_gradient_kernel, TABLE_GRADIENT, torch.float32, constexprs
    )
    if tokens > SMALL:
        return [table]
    constexprs = _known(
        kernels.expand_bias_kernel, _of_sides(axes, WINDOW=window, CORE=window),
        QUERIES=tokens, KEYS=tokens, N=1, BLOCK_M=64, BLOCK_N=64,
    )  # fmt: skip
    return [table, Case.of(f"bias, window {name}", kernels.expand_bias_kernel, EXPAND, torch.float32, constexprs)]


def _known(kernel: Any, *constexprs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Those that the kernel takes."""
    given = {name: value for each in (*constexprs, more) for name, value in each.items()}
    return {name: value for name, value in given.items() if name in kernel.arg_names}
