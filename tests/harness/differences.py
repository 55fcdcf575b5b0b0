"""How far two sets of named tensors are apart."""

from __future__ import annotations

from torch import Tensor


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Of each tensor, over its largest value, or a thousandth of the largest of all: a key bias has a gradient of
    rounding alone."""
    assert ours.keys() == theirs.keys()
    least = 1e-3 * max(float(value.abs().max()) for value in theirs.values())
    return {
        name: float((ours[name] - want).abs().max()) / max(float(want.abs().max()), least)
        for name, want in theirs.items()
    }


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """No difference is above the tolerance; NaN never passes."""
    for name, difference in differences(ours, theirs).items():
        assert difference <= tolerance, f"{name}: {difference}"
