"""Tensors of any strides as kernels take them: the memory that they lie in, and their strides by name."""

from __future__ import annotations

from torch import Tensor

NAMES = {"b": "image", "h": "row", "w": "column", "k": "cluster"}


def memory_of(tensor: Tensor) -> Tensor:
    """All elements from a tensor's first to its last, contiguous."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((last + 1 if tensor.numel() else 0,), (1,))


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The same, contiguous, where there is one."""
    return None if tensor is None else tensor.contiguous()


def strides_of(rows: Tensor, axes: str = "bhwk", prefix: str = "") -> dict[str, int]:
    """Strides of some axes of (B, H, W, K): ``image_stride``, ``row_stride``, ``column_stride``, ``cluster_stride``."""
    return {f"{prefix}{NAMES[axis]}_stride": rows.stride("bhwk".index(axis)) for axis in axes}
