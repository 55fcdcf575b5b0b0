"""A batch norm that an op applies to a map where it reads it, so that the normed map needs no pass of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.identities import batch_statistics as identity
from msformer_fast.ops.backend import choose, runs_in_strips, why_not_torch, why_not_triton
from msformer_fast.ops.launch import in_strips, launching
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.batch_statistics import batch_statistics as _reference

OP = "batch_statistics"


class BatchNorm(NamedTuple):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` of a map (B, H, W, C) by its own statistics.

    Attributes:
        weight, bias: (C).
        mean, var: (C), of the very map that is read, over batch and pixels, ``var`` biased; float32 or better. No
            gradient goes to them: that of the map holds their part.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float

    def apply(self, x: Tensor) -> Tensor:
        """The same as an expression that PyTorch differentiates; it takes the statistics anew."""
        normed = F.batch_norm(x.permute(0, 3, 1, 2), None, None, self.weight, self.bias, True, 0.0, self.eps)
        return normed.permute(0, 2, 3, 1)


def check_batch_norm(shapes: Shapes, name: str, norm: BatchNorm | None) -> None:
    """Check the vectors of an argument against the size C.

    Raises:
        InputError: one does not fit, named.
    """
    for field in () if norm is None else ("weight", "bias", "mean", "var"):
        shapes(f"{name}.{field}", getattr(norm, field), "C")


def packed(norm: BatchNorm | None) -> tuple[list[Tensor], float]:
    """A batch norm as a registered op takes it."""
    return ([], 0.0) if norm is None else ([norm.weight, norm.bias, norm.mean, norm.var], norm.eps)


def packed_gradients(found: Sequence[Tensor]) -> list[Tensor | None]:
    """Of a packed batch norm, from its weight's and bias's: none for mean and var, as the map's holds their part."""
    return [*found, None, None] if found else []


def batch_statistics(x: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of ``x`` (B, H, W, C) over batch and pixels, without a gradient.

    Args:
        x: floating point, any strides.
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        mean and variance, (C) each, float32 or better; zeros of an empty batch.

    Raises:
        InputError: not a floating-point map of four axes.
        BackendError: the backend asked for cannot run this call; the message says why.
    """
    Shapes(OP)("x", x, "B H W C")
    refusals = {"triton": lambda: why_not_triton(OP, x), "torch": lambda: why_not_torch(OP, x)}
    chosen = choose(OP, backend, x.device, refusals)
    x = x.detach()
    if chosen == "triton" or (chosen == "torch" and runs_in_strips(x)):
        mean, var = statistics(x.permute(0, 3, 1, 2), chosen)
        return mean, var
    return _reference(x)


@torch.library.custom_op("msformer_fast::batch_statistics", mutates_args=())
def statistics(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (K) of ``x`` (B, K, H, W), any strides; float32 or better; zeros of an empty batch."""
    if backend == "torch":
        with in_strips("batch_statistics", x):
            return identity.batch_statistics(x)
    from msformer_fast.kernels.batch_statistics import batch_statistics as kernels

    with launching("batch_statistics", x):
        return kernels(x)


@statistics.register_fake
def _(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=sum_dtype(x.dtype))
    return mean, torch.empty_like(mean)
