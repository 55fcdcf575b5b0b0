"""The drop-in for the attention of torchvision's Swin blocks (v1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msformer_fast.errors import InputError
from msformer_fast.nn.swin_attention import WindowDropIn, attend_windows
from msformer_fast.nn.swin_structure import SEAM, standard_index


class TorchvisionShiftedWindowAttention(WindowDropIn):
    """A stand-in for torchvision's ``ShiftedWindowAttention``, equal to it up to rounding.

    The map is padded, then rolled; on an axis that a window covers nothing is shifted, all as in torchvision. Where
    attention dropout is at work, something was changed on the module since, and on the CPU, where that is faster, its
    own code runs.

    Shape: (B, H, W, C) -> (B, H, W, C), any floating dtype.

    Raises:
        InputError: a module of another class, or with an index of its own (v2 has a logit scale).
        BackendError: from a call, the backend asked for cannot run it.

    Source: Liu et al., "Swin Transformer", ICCV 2021; torchvision.models.swin_transformer.
    """

    def __init__(self, module: nn.Module, *, backend: str | None = None) -> None:
        reason = self.why_not(module)
        if reason is not None:
            raise InputError(f"TorchvisionShiftedWindowAttention: module must be torchvision's: {reason}")
        super().__init__(module, backend=backend)

    @staticmethod
    def why_not(module: Any) -> str | None:
        """Why this is not such a module, as the end of a sentence, or ``None``."""
        if type(module).__name__ != "ShiftedWindowAttention":
            return f"the class {type(module).__name__} may compute something else"
        names = ("window_size", "shift_size", "num_heads", "attention_dropout", "dropout", "relative_position_index")
        lacking = [name for name in names if not hasattr(module, name)]
        if lacking:
            return f"it has no {', '.join(lacking)}"
        parts = {*module._modules, *module._parameters}
        if parts != {"qkv", "proj", "relative_position_bias_table"}:
            return f"it is made of {', '.join(sorted(parts))}, not of proj, qkv and relative_position_bias_table"
        index = module.relative_position_index
        if not index.is_meta and not torch.equal(index.cpu(), standard_index(module.window_size).flatten()):
            return "it has another relative_position_index than Swin's"
        return None

    def forward(self, x: Tensor) -> Tensor:
        self.note_call()
        drops = self.training and self.attention_dropout > 0
        if x.ndim != 4 or drops or not (self.may_gain(x) and self.is_unchanged()):
            result: Tensor = self.own_code(x)
            return result
        axes = zip(x.shape[1:3], self.window_size, self.shift_size, strict=True)
        shift = [0 if size <= window else moved for size, window, moved in axes]
        y = attend_windows(
            [self.qkv],
            x,
            self.window_size,
            shift,
            heads=self.num_heads,
            scale=(x.shape[3] // self.num_heads) ** -0.5,
            bias=self.relative_position_bias_table,
            order="pad_roll",
            seam=SEAM,
            backend=self.backend,
        )
        return F.dropout(F.linear(y, self.proj.weight, self.proj.bias), self.dropout, self.training)
