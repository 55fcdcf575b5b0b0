"""How float32 products are computed, and in which dtype under autocast: as PyTorch's own operators do it."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from msformer_fast import float32_products
from msformer_fast.errors import InputError

#: Cards whose tensor cores multiply tf32 more than three times as fast as other units multiply float32.
TF32X3_TARGETS = ("sm_80", "sm_90", "sm_100")


def use_ieee_products(enabled: bool = True) -> None:
    """Whether the kernels multiply float32 by fused multiply-adds alone, on tensor cores never.

    By default, where :func:`torch.get_float32_matmul_precision` is ``"highest"``, products on an A100, H100, H200 or
    B200 are sums of three products of tf32 parts: ``a b = a1 b1 + a1 b2 + a2 b1``, where ``a1`` is ``a`` rounded to
    tf32 and ``a2`` what is left. Their error is no larger than that of fused multiply-adds, and they issue about half
    of the instructions. What differs: of operands below 1e-34 parts may be lost, and an infinite one gives NaN. Other
    cards, and ``cross_scale_attention``, ``linear_clustering_loss`` and ``stability_loss`` on all, use fused
    multiply-adds in any case; so does ``efficient_attention`` for what two of its kernels must make alike. On a CPU
    with a matrix unit (AMX) large products are sums of six products of bfloat16 parts, three of an operand, and of
    three where the precision is lower: two parts, more exact than tf32.

    It holds for the whole process, from the next call on.

    Args:
        enabled: ``True`` for fused multiply-adds everywhere, ``False`` for the default.

    Raises:
        InputError: ``enabled`` is not a bool.

    Source: H. Ootomo and R. Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32
    theoretical peak performance", 2022; there too sums leave the tensor cores before they are rounded often.
    """
    if not isinstance(enabled, bool):
        raise InputError(f"use_ieee_products: enabled must be True or False; got {enabled!r}")
    float32_products.ieee_everywhere = enabled


def input_precision(dtype: torch.dtype, target: str | None = None) -> str:
    """Triton's ``input_precision`` that follows :func:`torch.set_float32_matmul_precision`, or ``fp32_precision`` of
    ``torch.backends``.

    Args:
        dtype: of the operands.
        target: name of the card, of kernels that have rows for tf32x3 in their launch table; ``None`` of others, and on
            the CPU.
    """
    if dtype != torch.float32:
        return "ieee"
    if float32_products.lower_allowed("cuda"):
        return "tf32"
    return "tf32x3" if target in TF32X3_TARGETS and not float32_products.ieee_everywhere else "ieee"


def kernel_precision(dtype: torch.dtype, device: torch.device) -> str:
    """:func:`input_precision` of kernels that have rows for tf32x3, on a device."""
    from msformer_fast.kernels.launch import target_of

    return input_precision(dtype, target_of(device))


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


def seen_by_products(first: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """Tensors of the dtypes that autocast hands to products, to be asked for these alone: under it of no element."""
    tensors = [first, *others]
    if autocast_dtype(first.device) is None:
        return tensors
    return [None if tensor is None else cast_product(tensor[:0]) for tensor in tensors]
