"""The least that both embeddings of an image must move and compute."""

from __future__ import annotations

import torch


def bytes_moved(
    images: int, height: int, width: int, in_channels: int, channels: int, dtype: torch.dtype
) -> dict[str, int]:
    """Bytes: the image read, maps at full and half resolution written, in the backward their gradients read; weights,
    biases and their gradients."""
    image, parameters = images * in_channels * height * width, 2 * (9 * in_channels + 1) * channels
    return dict.fromkeys(
        ("forward", "backward"), (image + _pixels(images, height, width) * channels + parameters) * dtype.itemsize
    )


def flops(images: int, height: int, width: int, in_channels: int, channels: int) -> dict[str, int]:
    """Operations of the products: the maps; in the backward the gradients of the weights, none of the image."""
    product = 2 * _pixels(images, height, width) * 9 * in_channels * channels
    return {"forward": product, "backward": product}


def _pixels(images: int, height: int, width: int) -> int:
    """Of both maps."""
    return images * (height * width + ((height + 1) // 2) * ((width + 1) // 2))
