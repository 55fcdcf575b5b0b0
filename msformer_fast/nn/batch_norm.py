"""Batch norms that the next op applies where it reads, in place of the module's own pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from msformer_fast.ops.batch_norm import BatchNorm


def can_fold(norms: Iterable[nn.Module]) -> bool:
    """Whether these are plain batch norms in training, alike in how they average."""
    norms = list(norms)
    plain = all(type(n) is nn.BatchNorm2d and n.training and n.affine and n.track_running_stats for n in norms)
    momenta = {getattr(norm, "momentum", None) for norm in norms}
    return plain and len(momenta) == 1 and None not in momenta


class Folded(NamedTuple):
    """A batch norm, and the statistics of the batch that it is applied to.

    Attributes:
        norm: a training :class:`torch.nn.BatchNorm2d` with affine parameters and running statistics.
        mean, var: (C) of this batch, ``var`` biased.
        values: how many each channel has.
    """

    norm: nn.BatchNorm2d
    mean: Tensor
    var: Tensor
    values: int

    def for_op(self) -> BatchNorm:
        """What an op takes to apply it."""
        return BatchNorm(self.norm.weight, self.norm.bias, self.mean, self.var, self.norm.eps)


def update_running(folded: list[Folded]) -> None:
    """Update the running statistics of these batch norms as the modules would, with three launches for all."""
    norms = [entry.norm for entry in folded]
    running = [stats for norm in norms for stats in (norm.running_mean, norm.running_var) if stats is not None]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    with torch.no_grad():
        # The running variance is the unbiased one.
        scales = [scale for entry in folded for scale in (1.0, entry.values / max(entry.values - 1, 1))]
        scaled = torch._foreach_mul([stats for entry in folded for stats in (entry.mean, entry.var)], scales)
        batch = [stats.to(old.dtype) for stats, old in zip(scaled, running, strict=True)]
        torch._foreach_lerp_(running, batch, norms[0].momentum or 0.0)
        torch._foreach_add_(counts, 1)
