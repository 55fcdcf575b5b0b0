"""A batch norm that an op applies to a map where it reads it, so that the normed map needs no pass of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.identities import batch_statistics as identity
from msformer_fast.ops.backend import choose, runs_in_strips, why_not_native, why_not_torch, why_not_triton
from msformer_fast.ops.registration import register
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


class BatchStatistics(NamedTuple):
    """Mean and biased variance of every channel, (C) each."""

    mean: Tensor
    var: Tensor


def check_batch_norm(shapes: Shapes, name: str, norm: BatchNorm | None) -> None:
    """Check the vectors of an argument against the size C.

    Raises:
        InputError: one does not fit, named.
    """
    for field in () if norm is None else ("weight", "bias", "mean", "var"):
        shapes(f"{name}.{field}", getattr(norm, field), "C")


def through(norm: BatchNorm | None, x: Tensor) -> Tensor:
    """The map read through the batch norm, where there is one."""
    return x if norm is None else norm.apply(x)


def native_norm(norm: BatchNorm | None) -> Tensor | None:
    """A batch norm as the CPU kernels' launchers take it: (4, C), mean, 1 / standard deviation, weight and bias."""
    if norm is None:
        return None
    return torch.stack([norm.mean.float(), (norm.var + norm.eps).rsqrt().float(), norm.weight, norm.bias])


def norm_gradients(found: tuple[Tensor, Tensor] | Tensor | None, norm: BatchNorm | None) -> list[Tensor]:
    """Of a batch norm's weight and bias, in their dtypes; copies, as a registered op's results may not alias."""
    if found is None or norm is None:
        return []
    return [found[0].to(norm.weight.dtype, copy=True), found[1].to(norm.bias.dtype, copy=True)]


def batch_statistics(x: Tensor, *, backend: str | None = None) -> BatchStatistics:
    """Mean and biased variance of every channel of ``x`` (B, H, W, C) over batch and pixels, without a gradient.

    Args:
        x: floating point, any strides.
        backend: ``"triton"``, ``"native"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        Mean and variance, (C) each, float32 or better; zeros of an empty batch.

    Raises:
        InputError: not a floating-point map of four axes.
        BackendError: the backend asked for cannot run this call; the message says why.
    """
    Shapes(OP)("x", x, "B H W C")
    chosen, x = _choose(backend, x), x.detach()
    if chosen in ("triton", "native") or (chosen == "torch" and runs_in_strips(x)):
        return BatchStatistics(*statistics(x.permute(0, 3, 1, 2), chosen))
    return BatchStatistics(*_reference(x))


def statistics_of_two(first: Tensor, second: Tensor, *, backend: str | None = None) -> list[BatchStatistics]:
    """:func:`batch_statistics` of two maps (B, H, W, C) of one dtype and as many channels; the kernels on a GPU take
    those of both in the same two launches."""
    chosen = _choose(backend, first, second)
    if chosen != "triton":
        return [batch_statistics(x, backend=chosen) for x in (first, second)]
    means, variances = _of_two(*(x.detach().permute(0, 3, 1, 2) for x in (first, second)))
    return [BatchStatistics(*each) for each in zip(means, variances, strict=True)]


def _choose(backend: str | None, *maps: Tensor) -> str:
    refusals = {
        "triton": lambda: why_not_triton(OP, *maps),
        "native": lambda: why_not_native(OP, *maps),
        "torch": lambda: why_not_torch(OP, *maps),
    }
    return choose(OP, backend, maps[0].device, refusals)


def _statistics(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "torch":
        return identity.batch_statistics(x)
    if backend == "native":
        from msformer_fast.kernels.native.batch_statistics import batch_statistics as run

        return run(x)
    from msformer_fast.kernels.batch_statistics import batch_statistics as launch

    return launch(x)


def _shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=sum_dtype(x.dtype))
    return mean, torch.empty_like(mean)


#: Mean and biased variance (K) of (B, K, H, W), any strides, by a backend; float32 or better; zeros of an empty batch.
statistics = register(OP, forward=_statistics, outputs=("mean", "var"), shapes=_shapes)


def _statistics_of_two(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    from msformer_fast.kernels.batch_statistics import batch_statistics as launch

    return launch(first, second)


def _shapes_of_two(first: Tensor) -> tuple[Tensor, Tensor]:
    mean = first.new_empty((2, first.shape[1]), dtype=sum_dtype(first.dtype))
    return mean, torch.empty_like(mean)


#: The same of two maps by the kernels on a GPU, (2, K) each.
_of_two = register(f"{OP}_of_two", forward=_statistics_of_two, outputs=("mean", "var"), shapes=_shapes_of_two)
