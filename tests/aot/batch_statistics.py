"""Compilations of the batch norm's statistics."""

from __future__ import annotations

import torch
import triton.language as tl

from msformer_fast.kernels import batch_statistics as kernels
from tests.harness.aot import Case, short

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(target: str, small: bool) -> list[Case]:
    """Both kernels, in both layouts, with strides that 16 divides and strides that it does not; of one map, and of two
    as the embeddings give them."""
    found = []
    for dtype in DTYPES[:2] if small else DTYPES:
        for unit, stride in (
            ("stride_k", "i32"),
            ("stride_k", "i32:16"),
            ("stride_w", "i32"),
            ("stride_w", "i32:16"),
        ):
            names = kernels.moments_kernel.arg_names
            blocks = {"BLOCK_N": kernels.BLOCK_N, "BLOCK_K": kernels.BLOCK_K, "ACC": tl.float32, unit: 1}
            types = {name: stride for name in names if "stride" in name} | {"p_moments": "*fp32"}
            layout = f"{'channels last' if unit == 'stride_k' else 'planes'}, {stride}"
            of_one = {name: None for name in names if "more_" in name and name != "more_programs"} | {"p_more": None}
            of_two = {f"more_{unit}": 1}
            for maps, more in (("", of_one), (", two maps", of_two))[: 2 if unit == "stride_k" else 1]:
                name = f"moments, {short(dtype)}, {layout}{maps}"
                constexprs = blocks | more
                given = {each: kind for each, kind in types.items() if each not in constexprs}
                found.append(Case.of(name, kernels.moments_kernel, kernels.MOMENTS, dtype, constexprs, **given))
    merge = kernels.merge_moments_kernel, kernels.MERGE, torch.float32
    return [*found, Case.of("merge", *merge, {"ACC": tl.float32})]
