"""Compilations of the stability loss."""

from __future__ import annotations

import torch
import triton.language as tl

from msformer_fast.kernels import stability_loss as kernels
from tests.harness.aot import Case, short

PRODUCTS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "tf32"), (torch.float16, "tf32"))


def cases(target: str, small: bool) -> list[Case]:
    """Every kernel, product and width of the launch table, rows contiguous and not; small: the paper's width."""
    widths = [(100, True)] if small else [(64, True), (100, True), (100, False), (128, True), (256, True)]
    found = [loss_case(*width, product, part, target) for product in PRODUCTS for width in widths for part in PARTS]
    mean = Case.of("mean", kernels.mean_loss_kernel, kernels.MEAN, torch.float32, {"ACC": tl.float32})
    return [*found, mean]


#: Name of a part: kernel, row of the launch table, further constexprs.
PARTS = {
    "loss": (kernels.stability_kernel, "forward", {}),
    "queries": (kernels.gradient_kernel, "backward", {"ROWS": True}),
    "keys": (kernels.gradient_kernel, "backward", {"ROWS": False}),
}


def loss_case(C: int, contiguous: bool, product: tuple[torch.dtype, str], part: str, target: str) -> Case:
    dtype, precision = product
    kernel, row, flags = PARTS[part]
    settings = kernels.launch_settings(row, C, dtype, precision, target)
    constexprs = {"SCALE": 8.0, "ACC": tl.float32, "PREC": precision, **flags}
    if contiguous:
        constexprs |= {name: 1 for name in kernel.arg_names if name.startswith("stride") and name.endswith("c")}
    # A launch specialises the width and strides on divisibility by 16, the sizes never.
    size = "i32:16" if C % 16 == 0 and contiguous else "i32"
    types = {name: size for name in kernel.arg_names if name == "C" or name.startswith("stride")}
    types |= {name: "*fp32" for name in ("p_others", "p_diagonal", "p_partials", "p_grad_loss")}
    layout = "contiguous" if contiguous else "strided"
    return Case.of(f"{part}, C {C}, {short(dtype)} {precision}, {layout}", kernel, settings, dtype, constexprs, **types)
