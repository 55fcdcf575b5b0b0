"""Compilations of the clustering loss."""

from __future__ import annotations

import torch
import triton.language as tl

from msformer_fast.kernels import clustering_loss as kernels
from msformer_fast.kernels.launch import vector_length
from tests.harness.aot import Case, short

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(target: str, small: bool) -> list[Case]:
    """All, or at the paper's 100 clusters in float32 and bfloat16."""
    if small:
        return [case for dtype in DTYPES[:2] for case in loss_cases(100, dtype, target)]
    # One width for every block size of the table; between them only the number of masked lanes differs.
    narrow = [(100, dtype) for dtype in DTYPES] + [(K, dtype) for K in (7, 130, 1024) for dtype in DTYPES[:2]]
    return [case for K, dtype in narrow for case in loss_cases(K, dtype, target)]


def loss_cases(K: int, dtype: torch.dtype, target: str | None = None) -> list[Case]:
    """Every compilation that K clusters of a dtype can ask for: both layouts, sizes that vectors divide and not."""
    pointers = {
        "p_loss": "*fp32",
        "p_partials": "*fp32",
        "p_labels": f"*{'u8' if K <= 2**8 else 'i16'}",
        "p_present": "*u8",
        "p_count": "*i32",
    }
    cases = [
        Case.of(
            f"finish, K {K}, {short(dtype)}",
            kernels.finish_kernel,
            kernels.launch_settings("finish", K, dtype, target),
            dtype,
            {"SUM": True},
            **pointers,
        )
    ]
    for pixels_inner in (False, True):
        widest = vector_length(dtype, *(() if pixels_inner else (K,)))
        unit = {"stride_w" if pixels_inner else "stride_k": 1}
        for VEC in sorted({1, widest}):
            shared = {**unit, "VEC": VEC, "PIXELS_INNER": pixels_inner, "ACC": tl.float32}
            name = f"K {K}, {short(dtype)}, {'pixels' if pixels_inner else 'clusters'} inner, VEC {VEC}"
            settings = kernels.launch_settings("loss", K, dtype, target, pixels_inner)
            for per_pixel in (False, True) if K == 100 else (False,):
                cases.append(
                    Case.of(
                        f"loss, {name}{', per pixel' * per_pixel}",
                        kernels.loss_kernel,
                        settings,
                        dtype,
                        shared | {"PER_PIXEL": per_pixel},
                        **pointers,
                    )
                )
            settings = kernels.launch_settings("gradient", K, dtype, target, pixels_inner)
            shared |= {"out_w" if pixels_inner else "out_k": 1}
            cases.append(Case.of(f"gradient, {name}", kernels.gradient_kernel, settings, dtype, shared, p_grad="*fp32"))
    return cases
