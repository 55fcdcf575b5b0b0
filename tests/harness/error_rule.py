"""How large an error may be: no larger than PyTorch's own in that dtype, plus a little, both against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tests.harness.tf32 import epsilon

#: What is added to PyTorch's own error, in units of the dtype's epsilon and of the true values' size: of the whole
#: tensor, and of its worst row, where luck decides between two sums of the same terms in another order.
SLACK, ROW_SLACK = 2.0, 4.0

#: Where a gradient amplifies rounding, one draw says little: either error may be a few times the other. A draw that
#: fails is followed by others, most of which must pass, with this factor for what luck is left.
LUCK = 1.5
DRAWS = 9


@dataclass(frozen=True)
class Error:
    """Error against the truth, of the whole tensor and of its worst row, both relative to the truth's norm; and the
    epsilon of its dtype (tf32's where that is allowed)."""

    whole: float
    row: float
    eps: float

    @classmethod
    def of(cls, value: Tensor, truth: Tensor) -> Error:
        """Rows run along the last axis. The worst row is held against the largest row of the truth."""
        difference = value.detach().double() - truth.detach()
        scale = float(truth.detach().norm())
        eps = epsilon(value.dtype)
        if difference.numel() == 0 or scale == 0:
            return cls(float(difference.norm()), float(difference.norm()), eps)
        if difference.ndim == 0:
            return cls(float(difference.abs()) / scale, float(difference.abs()) / scale, eps)
        rows, sizes = difference.norm(dim=-1), truth.detach().norm(dim=-1)
        return cls(float(difference.norm()) / scale, float(rows.max() / sizes.max()), eps)


Errors = tuple[Error, Error]


def errors_of(name: str, ours: Tensor, theirs: Tensor, truth: Tensor) -> Errors:
    """Of ``ours`` and PyTorch's ``theirs``, both of one dtype and shape, against the float64 ``truth``."""
    assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype}, PyTorch gives {theirs.dtype}"
    assert ours.shape == theirs.shape == truth.shape, f"{name}: {tuple(ours.shape)}, not {tuple(truth.shape)}"
    return Error.of(ours, truth), Error.of(theirs, truth)


def assert_no_worse(draw: Callable[[], dict[str, Errors]], luck: float = LUCK) -> None:
    """Our error is at most PyTorch's plus the slack: in one draw, or in most of several, with ``luck``.

    Args:
        draw: draws fresh inputs and gives the errors of every quantity by its name.
        luck: how many times PyTorch's our error may be in one of several draws.

    NaN never passes: no comparison below holds for it.
    """
    first = draw()
    suspects = {name: errors for name, errors in first.items() if not _passes(errors, 1.0)}
    if not suspects:
        return
    most = DRAWS // 2
    worse: dict[str, list[Errors]] = {name: [] for name in suspects}
    for number, errors in enumerate([first, *[None] * (DRAWS - 1)], start=1):
        found = errors or draw()
        for name, seen in worse.items():
            if not _passes(found[name], luck):
                seen.append(found[name])
        if all(number - len(seen) > most for seen in worse.values()):  # the others cannot change it
            return
        for name, seen in worse.items():
            assert len(seen) <= most, (
                f"{name}: worse than PyTorch in {len(seen)} of {number} draws, (ours, PyTorch's) relative to the "
                f"truth: {seen[:3]}"
            )


def _passes(errors: Errors, luck: float) -> bool:
    mine, yours = errors
    whole = mine.whole <= luck * yours.whole + SLACK * mine.eps
    return whole and mine.row <= luck * yours.row + ROW_SLACK * mine.eps
