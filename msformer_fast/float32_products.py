"""How float32 products are computed: what the user chose, of the whole process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from msformer_fast.errors import InputError

#: What :func:`asked_for` takes: names of :func:`torch.set_float32_matmul_precision`, or None for what that was told.
PRECISIONS = (None, "highest", "high")

#: Whether fused multiply-adds alone multiply float32 (:func:`msformer_fast.ops.use_ieee_products`).
ieee_everywhere = False


def check_precision(precision: str | None) -> None:
    """Raises InputError unless :func:`asked_for` takes it."""
    if precision not in PRECISIONS:
        names = ", ".join(repr(name) for name in PRECISIONS)
        raise InputError(f"precision: got {precision!r}; accepted is one of {names}")


def lower_allowed(device: str) -> bool:
    """Whether products of float32 may be less exact on a kind of device, ``"cpu"`` or ``"cuda"``.

    As PyTorch was told, by :func:`torch.set_float32_matmul_precision` or by ``fp32_precision`` of ``torch.backends``.
    """
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # devices were told different things, which that function does not sum up
        return _backend(device).fp32_precision not in ("ieee", "none")


def told(device: str) -> str:
    """What PyTorch was told of a kind of device, as :func:`asked_for` names it."""
    return "high" if lower_allowed(device) else "highest"


@contextlib.contextmanager
def asked_for(precision: str | None) -> Iterator[None]:
    """Inside, :func:`torch.set_float32_matmul_precision` has been told ``precision``, unless that is None; afterwards
    all is as it was. It holds for the whole process."""
    if precision is None:
        yield
        return
    try:
        before, apart = torch.get_float32_matmul_precision(), {}
    except RuntimeError:
        before, apart = "highest", {device: _backend(device).fp32_precision for device in ("cuda", "cpu")}
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for device, value in apart.items():
            _backend(device).fp32_precision = value


def parts_of_16_bits() -> int:
    """In how many parts the matrix unit of a CPU takes an operand: 3 keep float32's digits, 2 those of tf32 and more,
    where that is allowed; 0 where it is not to be used."""
    if ieee_everywhere:
        return 0
    return 2 if lower_allowed("cpu") else 3


def _backend(device: str) -> Any:
    backends: Any = torch.backends
    return backends.cuda.matmul if device == "cuda" else backends.mkldnn.matmul
