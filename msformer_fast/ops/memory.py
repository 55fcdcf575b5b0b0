"""What the ``"torch"`` backend keeps between forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities.transforms import transformed

MEMORY = ("fast", "lean")

R = TypeVar("R")


def check_memory(owner: str, memory: str) -> None:
    """Raises InputError unless ``memory`` is a known name."""
    if memory not in MEMORY:
        raise InputError(f"{owner}: memory must be one of {', '.join(MEMORY)}; got {memory!r}")


def is_kept(memory: str, *tensors: Tensor) -> bool:
    """Whether wide maps are kept: a backward will come, and they are not twice as large as what they are made from."""
    backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return memory == "fast" and backward and tensors[0].dtype == sum_dtype(tensors[0].dtype)


def lean(memory: str, call: Callable[..., R], *arguments: object) -> R:
    """``call(*arguments)``; for ``"lean"`` nothing inside is kept for the backward but its inputs, but in transforms,
    which checkpointing lacks."""
    if memory == "fast" or not torch.is_grad_enabled() or transformed():
        return call(*arguments)
    result: R = checkpoint(call, *arguments, use_reentrant=False)
    return result
