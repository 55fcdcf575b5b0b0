"""The least that the stability loss must move and compute."""

from __future__ import annotations

import torch

from msformer_fast.dtypes import sum_dtype


def bytes_moved(images: int, patches: int, channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes: queries and keys read, two numbers a row written or read, their gradients written, the loss."""
    wide = sum_dtype(dtype).itemsize
    pair, rows = 2 * images * patches * channels * dtype.itemsize, 2 * images * patches * wide
    return {"forward": pair + rows + wide, "backward": 2 * pair + rows + wide}


def flops(images: int, patches: int, channels: int) -> dict[str, int]:
    """Operations of the products: the scores; in the backward the scores again and one product for each gradient."""
    product = 2 * images * patches * patches * channels
    return {"forward": product, "backward": 3 * product}
