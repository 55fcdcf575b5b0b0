"""The overlapping 3x3 embedding of the image, at full or half resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.identities.transforms import transformed


class OverlapEmbedding(nn.Module):
    """``BatchNorm2d(Conv2d(in_channels, channels, 3, stride, padding=1))``.

    Args:
        in_channels: of the image.
        channels: C, of the feature map.
        stride: 1 for full resolution, 2 for half.
        device, dtype: of the parameters, see :class:`torch.nn.Conv2d`.

    Shape: an image, channels first, (B, in_channels, H, W) -> a feature map, channels last,
    (B, ceil(H / stride), ceil(W / stride), C), in the dtype of the parameters.

    Raises: what :class:`torch.nn.Conv2d` raises.

    Source: Xie et al., "SegFormer", NeurIPS 2021, overlapped patch embedding; a batch norm as in MS-Former's code.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.proj = nn.Conv2d(in_channels, channels, 3, stride, 1, **factory)
        self.norm = nn.BatchNorm2d(channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.norm(self.project(x).permute(0, 3, 1, 2))
        return embedded.permute(0, 2, 3, 1)

    def project(self, x: Tensor) -> Tensor:
        """The same before the batch norm."""
        # So that the tokens are contiguous: what reads them next need not copy.
        projected: Tensor = self.proj(channels_last(x))
        return projected.permute(0, 2, 3, 1)


def channels_last(x: Tensor) -> Tensor:
    """A map (B, C, H, W) whose channels are neighbours in memory; itself where they are."""
    # vmap knows no memory format; permuting is no way for all: Inductor fails at it with dynamic sizes (PyTorch 2.13).
    if transformed():
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)
