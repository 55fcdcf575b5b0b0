"""Whether a provider computes what it should: nothing is timed that does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Error that any provider may have, by dtype.
ALLOWED = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 5e-3}

#: The same for float32 where products may use tf32.
ALLOWED_TF32 = 5e-3

#: And how many times the plain code's own error, in the same dtype; but never more than this.
TIMES_PLAIN, MOST = 4.0, 0.1


def error_of(found: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, str]:
    """The largest error over all tensors, ``norm(found - true) / norm(true)``, and where it is.

    A norm, not the largest element: a pixel whose two best clusters are equal up to rounding may have another label,
    and with it another gradient. Infinite where a tensor is missing, has another shape, or is not finite.
    """
    worst, where = 0.0, ""
    for name, true in truth.items():
        value = found.get(name)
        if value is None or value.shape != true.shape:
            return math.inf, f"{name} is {'missing' if value is None else tuple(value.shape)}, not {tuple(true.shape)}"
        if true.numel() == 0:
            continue
        error = float((value.to(true) - true).norm()) / (float(true.norm()) or 1.0)
        if not math.isfinite(error):
            return math.inf, name
        if error > worst:
            worst, where = error, name
    return worst, where


def allowed(dtype: str, plain: float | None, lower: bool = False) -> float:
    """The largest error that is reported as right.

    Args:
        plain: that of the plain code in the same dtype, where it was run.
        lower: products of float32 are of tf32, or at least as exact, whatever is asked for at the moment.
    """
    tf32 = dtype == "float32" and (lower or torch.get_float32_matmul_precision() != "highest")
    least = ALLOWED_TF32 if tf32 else ALLOWED[dtype]
    return least if plain is None or not math.isfinite(plain) else max(least, min(TIMES_PLAIN * plain, MOST))
