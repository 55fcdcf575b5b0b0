"""What is kept between forward and backward."""

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


def will_be_differentiated(*tensors: Tensor | None) -> bool:
    """Whether a backward will come."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def is_kept(memory: str, x: Tensor, *others: Tensor | None) -> bool:
    """Whether ``"torch"`` keeps hidden activations: ``memory`` is ``"fast"``, a backward will come, and ``x`` does not
    have 16 bits (they are in float32, twice its size)."""
    return memory == "fast" and x.dtype == sum_dtype(x.dtype) and will_be_differentiated(x, *others)


def lean(memory: str, call: Callable[..., R], *arguments: object) -> R:
    """``call(*arguments)``; for ``"lean"`` nothing inside is kept for the backward but its inputs, but in transforms,
    which checkpointing lacks."""
    if memory == "fast" or not torch.is_grad_enabled() or transformed():
        return call(*arguments)
    result: R = checkpoint(call, *arguments, use_reentrant=False)
    return result
