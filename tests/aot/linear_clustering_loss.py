"""Compilations of the clustering loss fused with its projection."""

from __future__ import annotations

import torch
import triton.language as tl

from msformer_fast.kernels import linear_clustering_loss as op
from msformer_fast.kernels.launch import vector_length
from tests.harness.aot import Case, short

PRODUCTS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"), (torch.float16, "ieee"))


def cases(target: str, small: bool) -> list[Case]:
    """All, or at the paper's widths in float32 and bfloat16."""
    # One width for every block size of the table, with a row of channels that wide accesses divide and one they do not.
    widths = [(100, 100)] if small else [(100, 100), (1024, 128), (7, 201)]
    products = PRODUCTS[:3] if small else PRODUCTS
    return [
        case for K, D in widths for dtype, precision in products for case in fused_cases(K, D, dtype, precision, target)
    ]


def fused_cases(
    K: int, D: int, dtype: torch.dtype, input_precision: str = "ieee", target: str | None = None
) -> list[Case]:
    """Every compilation that K clusters and D channels ask for, with a bias: both layouts, widest vectors and none."""
    pointers = {"p_loss": "*fp32", "p_labels": f"*{'u8' if K <= 2**8 else 'i16'}", "p_present": "*u8"}
    pointers |= {f"p_{name}": "*fp32" for name in ("max", "others", "grad", "dweight", "dbias")}
    cases = []
    for pixels_inner in (False, True):
        axis = "w" if pixels_inner else "k"
        for VEC in sorted({1, vector_length(dtype, *(() if pixels_inner else (D,)))}):
            shared = dict(
                VEC=VEC,
                WVEC=vector_length(dtype, D),
                PIXELS_INNER=pixels_inner,
                HAS_BIAS=True,
                PREC=input_precision,
                ACC=tl.float32,
            )
            layout = f"{'pixels' if pixels_inner else 'channels'} inner, VEC {VEC}"
            name = f"K {K}, D {D}, {short(dtype)} {input_precision}, {layout}"
            kernels = {
                "loss": (op.linear_loss_kernel, {"PER_PIXEL": False}),
                "features": (op.features_gradient_kernel, {f"out_{axis}": 1}),
                "weight": (op.weight_gradient_kernel, {}),
            }
            for part, (kernel, more) in kernels.items():
                settings = op.launch_settings(part, K, dtype, target, D, input_precision)
                cases.append(
                    Case.of(
                        f"{part}, {name}", kernel, settings, dtype, shared | more | {f"stride_{axis}": 1}, **pointers
                    )
                )
    return cases
