"""Compilations of the patch embedding."""

from __future__ import annotations

import torch
import triton.language as tl

from msformer_fast.kernels import patch_embedding as launch
from msformer_fast.kernels import patch_embedding_kernels as kernels
from tests.harness.aot import Case, products_on, short

PATCH = 32

#: Part of the launch table: kernel, further constexprs.
PARTS = {
    "embed": (kernels.embed_kernel, ({},)),
    "weight_grads": (kernels.weight_gradient_kernel, ({},)),
    "logit_grads": (
        kernels.logits_gradient_kernel,
        (
            {"BATCH_STATS": True, "CLUSTERING": False},
            {"BATCH_STATS": False, "CLUSTERING": False},
            {"BATCH_STATS": True, "CLUSTERING": True},
        ),
    ),
}


def cases(target: str, small: bool) -> list[Case]:
    """Every kernel, product, layout and row of the launch table; small: the paper's widths."""
    found = []
    more = (torch.bfloat16, "ieee"), (torch.float16, "ieee")
    for product in products_on(target, *more[: 1 if small else 2]):
        widths = (
            [(100, 100)] if small or product[0] == torch.float16 else [(100, 100), (128, 128), (130, 64), (1024, 256)]
        )
        for K, C in widths:
            for channels_last in (True, False):
                for part, (kernel, variants) in PARTS.items():
                    for flags in variants if K == 100 else variants[::2]:
                        found.append(_case(part, kernel, flags, K, C, product, channels_last, target))
    for dtype in (torch.float32, torch.bfloat16) if small else (torch.float32, torch.bfloat16, torch.float16):
        sizes = {"C": 100, "ACC": tl.float32}
        name = f"stack, C 100, {short(dtype)}"
        found.append(Case.of(name, kernels.stack_gradients_kernel, launch.STACK, dtype, sizes, p_dbias="*fp32"))
    return found


def _case(part, kernel, flags, K, C, product, channels_last, target) -> Case:  # type: ignore[no-untyped-def]
    dtype, precision = product
    settings = launch.launch_settings(part, K, C, PATCH, dtype, precision, channels_last, target)
    unit = ("stride_lk", "stride_gk", "stride_wj") if channels_last else ("stride_lw", "stride_gw", "stride_wj")
    constexprs = {name: 1 for name in unit if name in kernel.arg_names}
    constexprs |= {"K": K, "C": C, "ACC": tl.float32, "PREC": precision, **flags}
    # A launch specialises strides on divisibility by 16: with channels last, those of the map are as round as K.
    types = {name: "*fp32" for name in FLOAT32}
    for name in kernel.arg_names:
        if name.startswith("stride_w") or (name.startswith(("stride_l", "stride_g")) and K % 16 == 0):
            types[name] = "i32" if name == "stride_wd" and K == 130 else "i32:16"
    layout = "channels last" if channels_last else "planes"
    name = f"{part}, K {K}, C {C}, {short(dtype)} {precision}, {layout}"
    name += ", constants" * (not flags.get("BATCH_STATS", True)) + ", clustering" * flags.get("CLUSTERING", False)
    types["p_labels"] = "*u8"
    return Case.of(name, kernel, settings, dtype, constexprs, **types)


#: Pointers to statistics and sums, which are float32 whatever the logits are.
FLOAT32 = [
    f"p_{name}" for name in ("mean", "rstd", "gamma", "beta", "dbias", "dbeta", "dgamma", "partials", "pixel", "dloss")
]
