"""How large an error may be: no larger than PyTorch's own in that dtype, plus a little, both against float64."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: What is added to PyTorch's own error, in units of the dtype's epsilon and of the true values' size: of the whole
#: tensor, and of its worst row, where luck decides between two sums of the same terms in another order.
SLACK, ROW_SLACK = 2.0, 4.0

#: Where a gradient amplifies rounding, one draw says little: either may be a few times the other's. Over several draws
#: the medians are compared, with this factor for what luck is left.
LUCK = 1.5


@dataclass(frozen=True)
class Error:
    """Error against the truth: of the whole tensor, and of its worst row, both relative to the truth's norm; and the epsilon
    of its dtype."""

    whole: float
    row: float
    eps: float

    @classmethod
    def of(cls, value: Tensor, truth: Tensor) -> Error:
        """Rows run along the last axis. The worst row is held against the largest row of the truth."""
        difference = value.detach().double() - truth.detach()
        scale = float(truth.detach().norm())
        eps = torch.finfo(value.dtype).eps
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


def assert_no_worse(name: str, draws: Sequence[Errors]) -> None:
    """Our error is at most PyTorch's plus the slack: in the one draw, or in the median of several, with ``LUCK``.

    NaN never passes: no comparison below holds for it.
    """
    eps, luck = draws[0][0].eps, 1.0 if len(draws) == 1 else LUCK
    for kind, slack in (("whole", SLACK), ("row", ROW_SLACK)):
        values = [[getattr(error, kind) for error in errors] for errors in zip(*draws, strict=True)]
        assert not any(math.isnan(value) for value in values[0]), f"{name}: NaN"
        mine, yours = (statistics.median(errors) for errors in values)
        assert mine <= luck * yours + slack * eps, f"{name}, {kind}: error {mine:.3g}, PyTorch's own {yours:.3g}"
