"""Compilations of the ordered sums across programs."""

from __future__ import annotations

import torch
import triton.language as tl

from msformer_fast.kernels import partial_sums as kernels
from tests.harness.aot import Case, short


def cases(target: str, small: bool) -> list[Case]:
    """Into every dtype, with a bias and without."""
    return [
        Case.of(
            f"sum, {short(dtype)}{', bias' * bias}",
            kernels.add_partial_sums_kernel,
            kernels.SUMS,
            dtype,
            {"HAS_BIAS": bias, "ACC": tl.float32},
            p_partials="*fp32",
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for bias in (True, False)
    ]
