"""A batch norm through which the CPU kernels read a map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MapNorm(NamedTuple):
    """A batch norm through which a map is read.

    Attributes:
        vectors: (4, C), mean, 1 / standard deviation, weight and bias.
    """

    vectors: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> MapNorm:
        return cls(torch.stack([mean.float(), (var + eps).rsqrt().float(), weight, bias]))
