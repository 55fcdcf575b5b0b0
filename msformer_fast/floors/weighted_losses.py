"""The least that the weighted losses must move; they have no products."""

from __future__ import annotations

import torch

from msformer_fast.dtypes import sum_dtype


def bytes_moved(images: int, rows: int, channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes: both contexts read, in the backward their gradients written; two losses and the label counts read; four
    losses and five numbers in float64 written; in the backward the gradient of the total read, those of two losses
    written.

    Args:
        images, rows, channels: sizes (B, Ck, Cv) of a context.
        dtype: of the contexts.
    """
    wide, pair = sum_dtype(dtype).itemsize, 2 * images * rows * channels * dtype.itemsize
    return {"forward": pair + 6 * wide + 4 * images + 5 * 8, "backward": 2 * pair + 3 * wide}
