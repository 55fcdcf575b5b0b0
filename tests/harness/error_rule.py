"""How large an error may be: no larger than PyTorch's own in that dtype, plus a little, both against float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: What is added to PyTorch's own error, in units of the dtype's epsilon and of the true values' size: of the whole
#: tensor, and of its worst row, where luck decides between two sums of the same terms in another order.
SLACK, ROW_SLACK = 2.0, 4.0


@dataclass(frozen=True)
class Error:
    """Error against the truth: of the whole tensor, and of its worst row, both relative to the truth's norm."""

    whole: float
    row: float

    @classmethod
    def of(cls, value: Tensor, truth: Tensor) -> Error:
        """Rows run along the last axis. The worst row is held against the largest row of the truth."""
        difference = value.detach().double() - truth.detach()
        scale = float(truth.detach().norm())
        if difference.numel() == 0 or scale == 0:
            return cls(float(difference.norm()), float(difference.norm()))
        if difference.ndim == 0:
            return cls(float(difference.abs()) / scale, float(difference.abs()) / scale)
        rows, sizes = difference.norm(dim=-1), truth.detach().norm(dim=-1)
        return cls(float(difference.norm()) / scale, float(rows.max() / sizes.max()))


def assert_no_worse(name: str, ours: Tensor, theirs: Tensor, truth: Tensor) -> tuple[Error, Error]:
    """``ours`` and PyTorch's ``theirs``, both of one dtype, against the float64 ``truth``; returns both errors.

    NaN never passes: neither comparison below holds for it.
    """
    assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype}, PyTorch gives {theirs.dtype}"
    assert ours.shape == theirs.shape == truth.shape, f"{name}: {tuple(ours.shape)}, not {tuple(truth.shape)}"
    mine, yours = Error.of(ours, truth), Error.of(theirs, truth)
    eps = torch.finfo(ours.dtype).eps
    assert mine.whole <= yours.whole + SLACK * eps, f"{name}: error {mine.whole:.3g}, PyTorch's own {yours.whole:.3g}"
    assert mine.row <= yours.row + ROW_SLACK * eps, f"{name}: worst row {mine.row:.3g}, PyTorch's own {yours.row:.3g}"
    return mine, yours
