"""The overlapping 3x3 embedding of the image, at full or half resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.ops.batch_norm import statistics_of_two
from msformer_fast.ops.mix_ffn import WithStatistics
from msformer_fast.ops.overlap_embedding import backend_of, overlap_embedding_of_two
from msformer_fast.reference.overlap_embedding import channels_last


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


def project_two(
    image: Tensor, first: OverlapEmbedding, second: OverlapEmbedding, backend: str | None
) -> list[WithStatistics]:
    """What each makes of an image before its batch norm, with the statistics that the norm applies."""
    convolutions = [embed.proj for embed in (first, second)]
    if backend in (None, "triton", "native") and all(_is_plain(each) for each in convolutions):
        chosen = [backend_of(image, each.weight, each.bias, backend) for each in convolutions]
        if "reference" not in chosen:
            parameters = ((each.weight, each.bias, each.stride[0]) for each in convolutions)
            return overlap_embedding_of_two(image, *zip(*parameters, strict=True), chosen=chosen)
    image = channels_last(image)  # once for both
    maps = [embed.project(image) for embed in (first, second)]
    return [WithStatistics(x, *found) for x, found in zip(maps, statistics_of_two(*maps, backend=backend), strict=True)]


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether kernels do what a convolution does, which may have been put in another's place."""
    usual = convolution.kernel_size == (3, 3) and convolution.padding == convolution.dilation == (1, 1)
    usual &= convolution.padding_mode == "zeros" and convolution.groups == 1
    return usual and len(set(convolution.stride)) == 1
