"""How float32 products are computed, and in which dtype under autocast: as PyTorch's own operators do it."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


def input_precision(dtype: torch.dtype) -> str:
    """Triton's ``input_precision`` that follows :func:`torch.get_float32_matmul_precision`."""
    if dtype != torch.float32:
        return "ieee"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on ``device``, or ``None`` outside of it."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@overload
def cast_product(tensor: Tensor) -> Tensor: ...


@overload
def cast_product(tensor: Tensor | None) -> Tensor | None: ...


def cast_product(tensor: Tensor | None) -> Tensor | None:
    """An operand of a product as autocast would hand it to ``linear``: in its dtype where it is on; None stays.

    The cast is differentiable, so the gradient returns in the dtype that the caller's tensor has.
    """
    dtype = None if tensor is None else autocast_dtype(tensor.device)
    return tensor if tensor is None or dtype is None or tensor.dtype == torch.float64 else tensor.to(dtype)
