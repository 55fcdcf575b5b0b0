"""Fresh memory filled with what no result may hold, so that an element never written shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.utils._device
from torch import Tensor


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """``torch.empty`` and its kin give NaN, and 0x5a in every byte of integers, for the length of a block."""
    # PyTorch keeps a list of what makes tensors, for contexts of devices, from its first use on: not with ours in it.
    torch.utils._device._device_constructors()
    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (Tensor, "new_empty"),
            (Tensor, "new_empty_strided"),
        ):
            stack.enter_context(mock.patch.object(owner, name, _filling(getattr(owner, name))))
        yield


def _filling(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(*args: Any, **kwargs: Any) -> Tensor:
        tensor = empty(*args, **kwargs)
        if tensor.device.type == "meta" or type(tensor) is not Tensor:
            return tensor
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        if tensor.dtype == torch.bool:
            return tensor.fill_(True)
        fill = int.from_bytes(b"\x5a" * tensor.element_size(), "little")
        return tensor.fill_(fill)

    return filled
