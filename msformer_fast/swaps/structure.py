"""What two modules have in common that compute the same function of their parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.nn.drop_in import OF_EVERY_MODULE, frozen, is_drop_path, is_setting


def structure_of(module: nn.Module) -> Hashable:
    """Equal for modules of the same classes and options, with parameters of the same shapes and equal buffers.

    Only modules that are alive together may be compared: an attribute that is no number, text or function counts as
    itself, which is told by its address.
    """
    numbers: dict[int, int] = {}  # of each parameter, so that tied ones are told from others
    return tuple(
        (
            name,
            type(part),
            tuple(sorted((key, _value(value)) for key, value in part.__dict__.items() if _counts(part, key))),
            tuple((key, _parameter(value, numbers)) for key, value in part._parameters.items()),
            tuple((key, _buffer(value)) for key, value in part._buffers.items()),
        )
        for name, part in module.named_modules()
    )


def _counts(part: nn.Module, attribute: str) -> bool:
    """Probabilities do not: the trial has no dropout, and draws paths with one seed."""
    if isinstance(part, nn.modules.dropout._DropoutNd) or is_drop_path(part):
        return False
    return attribute not in OF_EVERY_MODULE


def _value(value: Any) -> tuple[str, Hashable]:
    return (type(value).__name__, repr(frozen(value))) if is_setting(value) else ("object", id(value))


def _parameter(value: Tensor | None, numbers: dict[int, int]) -> Hashable:
    if value is None or nn.parameter.is_lazy(value):
        return None
    return tuple(value.shape), numbers.setdefault(id(value), len(numbers))


def _buffer(value: Tensor | None) -> Hashable:
    if value is None or value.is_meta:
        return None
    numbers = value.detach().cpu().contiguous()
    return tuple(value.shape), str(value.dtype), hashlib.sha1(numbers.view(torch.uint8).numpy().tobytes()).hexdigest()
