"""The 3x3 convolution that embeds an image, channels last, and the statistics of what it makes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.identities.transforms import transformed
from msformer_fast.reference.batch_statistics import batch_statistics


def overlap_embedding(image: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`msformer_fast.ops.overlap_embedding.overlap_embedding`."""
    y = F.conv2d(channels_last(image), weight, bias, stride, padding=1).permute(0, 2, 3, 1)
    return y, *batch_statistics(y.detach())


def channels_last(x: Tensor) -> Tensor:
    """A map (B, C, H, W) whose channels are neighbours in memory; itself where they are."""
    # vmap knows no memory format; permuting is no way for all: Inductor fails at it with dynamic sizes (PyTorch 2.13).
    if transformed():
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)
