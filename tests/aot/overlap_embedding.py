"""Compilations of the overlapping embedding."""

from __future__ import annotations

import torch
import triton.language as tl

from msformer_fast.kernels import overlap_embedding as kernels
from tests.harness.aot import Case, products_on, short

OTHERS = (torch.bfloat16, "ieee"), (torch.float16, "ieee")


def cases(target: str, small: bool) -> list[Case]:
    """Every kernel at the paper's width for one map and for two, with images of neighbouring channels and of planes.

    Other widths for the extremes of these: few channels; many of y; many of the image, whose patches are read in
    blocks. Small: the paper's alone, and bfloat16 for both 16-bit dtypes.
    """
    found = []
    for dtype, precision in products_on(target, *OTHERS[: 1 if small else 2]):
        for N, C in [(3, 100)] if small else [(3, 100), (1, 8), (3, 512), (16, 130)]:
            layouts = [(unit, two) for unit in ("stride_in", "stride_iw") for two in (False, True)]
            for unit, two in layouts if C == 100 else layouts[1:3]:
                found += [_pass(part, N, C, dtype, precision, unit, two) for part in ("project", "gradient")]
            found += [_finish(N, C, dtype, two) for two in (False, True) if not precision.startswith("tf32")]
    return found


def _pass(part: str, N: int, C: int, dtype: torch.dtype, precision: str, unit: str, two: bool) -> Case:
    kernel = kernels.project_kernel if part == "project" else kernels.parameter_gradients_kernel
    constexprs = {"N": N, "C": C, "PREC": precision, "ACC": tl.float32, unit: 1} | _of(kernel, two)
    layout, maps = "channels last" if unit == "stride_in" else "planes", "two maps" if two else "one map"
    name = f"{part}, N {N} C {C}, {short(dtype)} {precision}, {layout}, {maps}"
    sums = {name: "*fp32" for name in ("p_moments", "p_partials") if name in kernel.arg_names}
    return Case.of(name, kernel, kernels.launch_settings(part, N, C, precision), dtype, constexprs, **sums)


def _finish(N: int, C: int, dtype: torch.dtype, two: bool) -> Case:
    kernel = kernels.finish_kernel
    constexprs = {"N": N, "C": C, "ACC": tl.float32} | _of(kernel, two)
    name = f"finish, N {N} C {C}, {short(dtype)}, {'two maps' if two else 'one map'}"
    return Case.of(name, kernel, kernels.FINISH, dtype, constexprs, p_partials="*fp32")


def _of(kernel: object, two: bool) -> dict[str, None]:
    """What is absent with one map: tensors of the second, and here a bias."""
    names: list[str] = [] if two else kernel.arg_names  # type: ignore[attr-defined]
    return {name: None for name in names if name.startswith("p_more") or name in ("p_bias", "p_dbias")}
