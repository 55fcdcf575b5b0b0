"""Mean and variance of every channel, strip by strip, each strip read once while it is in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.identities.strips import strips


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of (B, C, H, W), strip by strip about each strip's own mean: a channel
    whose mean is large beside its spread keeps its digits."""
    dtype, channels = sum_dtype(x.dtype), x.shape[1]
    count, mean = 0, torch.zeros(channels, dtype=torch.float64, device=x.device)
    squares = torch.zeros_like(mean)

    for image in x.permute(0, 2, 3, 1):
        for first, last in strips(image.shape[0], image.shape[1] * channels * dtype.itemsize):
            rows = image[first:last].to(dtype).reshape(-1, channels)  # [n, C]
            middle = rows.mean(0)  # [C]
            centred = rows - middle
            # The rounding of the middle itself is taken out again.
            rest = centred.mean(0).double()
            size = rows.shape[0]
            strip_squares = centred.square_().sum(0).double() - size * rest.square()

            change = middle.double() + rest - mean
            total = count + size
            mean += change * (size / total)
            squares += strip_squares + change.square() * (count * size / total)
            count = total

    return mean.to(dtype), (squares / max(count, 1)).to(dtype)
