"""The least that efficient attention with its norm and residual must move and compute."""

from __future__ import annotations

import torch


def bytes_moved(
    images: int,
    height: int,
    width: int,
    channels: int,
    dtype: torch.dtype,
    *,
    key_channels: int | None = None,
    value_channels: int | None = None,
    batch_norm: bool = False,
) -> dict[str, int]:
    """Bytes, in the dtype of ``x``; an image's tokens do not fit on the chip.

    forward: the context needs all tokens before the first result, so ``x`` is read twice; the result is written, the
    four weights are read. backward: the context's gradient needs all tokens before the first gradient of ``x``, so
    ``x`` and the result's gradient are read twice, and a third time where a batch norm's two sums are needed first;
    the gradient of ``x`` is written, the weights are read and their gradients written.
    """
    keys, values = key_channels or channels, value_channels or channels
    tokens, weights = images * height * width * channels, 2 * channels * (keys + values)
    maps = 7 if batch_norm else 5
    return {
        "forward": (3 * tokens + weights) * dtype.itemsize,
        "backward": (maps * tokens + 2 * weights) * dtype.itemsize,
    }


def flops(images: int, height: int, width: int, channels: int, *, key_channels: int | None = None) -> dict[str, int]:
    """Operations of the products over the tokens.

    forward: keys, ``p^T n``, queries, ``q M``. backward, nothing of the tokens' size kept: keys and queries again, and
    two products for the gradients of the operands of each of the four.
    """
    product = 2 * images * height * width * channels * (key_channels or channels)
    return {"forward": 4 * product, "backward": 10 * product}
