"""Launchers of the CPU kernels of the overlapping embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from msformer_fast.kernels.native.library import run
from msformer_fast.kernels.native.strides import contiguous


def overlap_embedding_forward(
    image: Tensor, weight: Tensor, bias: Tensor | None, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, ceil(H / stride), ceil(W / stride), C) of an image (B, N, H, W), mean and biased variance (C)."""
    batch, _, height, width = image.shape
    channels = weight.shape[0]
    y = image.new_empty(batch, -(-height // stride), -(-width // stride), channels)
    mean, var = image.new_empty(channels), image.new_empty(channels)
    run(
        "overlap_embedding_forward",
        **_shared(image, weight, stride),
        weight=weight.permute(2, 3, 1, 0).contiguous(), bias=contiguous(bias), y=y, mean=mean, var=var,
    )  # fmt: skip
    return y, mean, var


def overlap_embedding_backward(
    grad_y: Tensor, image: Tensor, weight: Tensor, with_bias: bool, stride: int
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the weight (C, N, 3, 3) and of the bias (C)."""
    channels, in_channels, *window = weight.shape
    d_weight = weight.new_empty(*window, in_channels, channels)
    d_bias = weight.new_empty(channels) if with_bias else None
    run(
        "overlap_embedding_backward",
        **_shared(image, weight, stride),
        grad_y=grad_y.contiguous(), d_weight=d_weight, d_bias=d_bias,
    )  # fmt: skip
    return d_weight.permute(3, 2, 0, 1).contiguous(), d_bias


def _shared(image: Tensor, weight: Tensor, stride: int) -> dict[str, Any]:
    """Arguments that the kernels share."""
    pixels = image.permute(0, 2, 3, 1).contiguous()
    batch, height, width, in_channels = pixels.shape
    return dict(
        image=pixels, batch=batch, height=height, width=width, in_channels=in_channels,
        stride=stride, channels=weight.shape[0],
    )  # fmt: skip
