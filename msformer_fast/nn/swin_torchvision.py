"""The drop-ins for the attention of torchvision's Swin blocks (v1), of images and of videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msformer_fast.errors import InputError
from msformer_fast.nn.swin_attention import WHERE_VOLUMES_GAIN, WindowDropIn, attend_windows, gains_on_volumes
from msformer_fast.nn.swin_structure import SEAM, bias_of, clamped, standard_index


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

    stands_for: ClassVar[str] = "ShiftedWindowAttention"

    def __init__(self, module: nn.Module, *, backend: str | None = None) -> None:
        reason = self.why_not(module)
        if reason is not None:
            raise InputError(f"{type(self).__name__}: module must be torchvision's: {reason}")
        super().__init__(module, backend=backend)

    @classmethod
    def why_not(cls, module: Any) -> str | None:
        """Why this is not such a module, as the end of a sentence, or ``None``."""
        if type(module).__name__ != cls.stands_for:
            return f"the class {type(module).__name__} may compute something else"
        names = ("window_size", "shift_size", "num_heads", "attention_dropout", "dropout", "relative_position_index")
        lacking = [name for name in names if not hasattr(module, name)]
        if lacking:
            return f"it has no {', '.join(lacking)}"
        parts = {*module._modules, *module._parameters}
        if parts != {"qkv", "proj", "relative_position_bias_table"}:
            return f"it is made of {', '.join(sorted(parts))}, not of proj, qkv and relative_position_bias_table"
        index = module.relative_position_index
        if not index.is_meta and not torch.equal(index.flatten().cpu(), standard_index(module.window_size).flatten()):
            return "it has another relative_position_index than Swin's"
        return None

    def forward(self, x: Tensor) -> Tensor:
        self.note_call()
        drops = self.training and self.attention_dropout > 0
        is_map = x.ndim == len(self.window_size) + 2
        if not is_map or drops or not (self.may_gain(x) and self.is_unchanged()):
            result: Tensor = self.own_code(x)
            return result
        window, shift = self._sides(x)
        y = attend_windows(
            [self.qkv],
            x,
            window,
            shift,
            heads=self.num_heads,
            scale=(x.shape[-1] // self.num_heads) ** -0.5,
            bias=bias_of(self.relative_position_bias_table, self.relative_position_index, self.window_size, window),
            order="pad_roll",
            seam=SEAM,
            backend=self.backend,
        )
        return F.dropout(F.linear(y, self.proj.weight, self.proj.bias), self.dropout, self.training)

    def _sides(self, x: Tensor) -> tuple[Sequence[int], Sequence[int]]:
        """Window and shift of every axis."""
        _, shift = clamped(x.shape[1:-1], self.window_size, self.shift_size)
        return self.window_size, shift


class TorchvisionShiftedWindowAttention3d(TorchvisionShiftedWindowAttention):
    """A stand-in for torchvision's ``ShiftedWindowAttention3d``, that of Video Swin, equal to it up to rounding.

    As :class:`TorchvisionShiftedWindowAttention`, but on an axis that is no longer than the window the window becomes
    the axis. Where windows do not divide the video it is padded with tokens of zeros, which take part in the attention
    with the projection's bias as key and value, in torchvision and here.

    Shape: (B, T, H, W, C) -> (B, T, H, W, C), any floating dtype.

    Raises:
        InputError: a module of another class, or with an index of its own.
        BackendError: from a call, the backend asked for cannot run it.

    Source: Liu et al., "Video Swin Transformer", CVPR 2022; torchvision.models.video.swin_transformer.
    """

    stands_for = "ShiftedWindowAttention3d"

    def gains_on_cpu(self, x: Tensor) -> bool:
        return gains_on_volumes(x, *self._sides(x), self.window_size, flash=False)

    def where_it_gains(self) -> str:
        return WHERE_VOLUMES_GAIN

    def _sides(self, x: Tensor) -> tuple[Sequence[int], Sequence[int]]:
        return clamped(x.shape[1:-1], self.window_size, self.shift_size)
