"""The drop-in for Microsoft's Swin block, which went into Swin-Unet, HiFormer, TransDeepLab and others."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from msformer_fast.nn.swin import SwinBlock
from msformer_fast.nn.swin_structure import MICROSOFT, SEAM, needs_the_library, sides


class MicrosoftSwinBlock(SwinBlock):
    """A stand-in for the ``SwinTransformerBlock`` of Microsoft's code, as copied into Swin-Unet, HiFormer and others.

    Norms, projections, MLP and drop path are called as they were; see :class:`TimmSwinBlock`. The map's size is the
    block's ``input_resolution``, which its window divides. Where something was changed on the block since, somebody
    hooks into the attention or attention dropout is at work, the block's own code runs.

    Shape: tokens (B, H * W, C) -> (B, H * W, C), any floating dtype.

    Raises:
        InputError: from :meth:`of`, a block of another class or make, or with a mask or index of its own.
        BackendError: from a call, the backend asked for cannot run it.

    Source: Liu et al., "Swin Transformer", ICCV 2021.
    """

    structure = MICROSOFT

    @classmethod
    def of(cls, block: nn.Module, *, backend: str | None = None) -> MicrosoftSwinBlock:
        """The drop-in for a block, in its mode; see the class for shapes and errors."""
        return cls(block, backend=backend)

    @classmethod
    def check(cls, block: Any) -> None:
        super().check(block)
        cls.check_mask(block)

    def forward(self, x: Tensor) -> Tensor:
        self.note_call()
        height, width = self.input_resolution
        window, shift = sides(self.window_size), sides(self.shift_size)
        fits = x.ndim == 3 and x.shape[1] == height * width and not (height % window[0] or width % window[1])
        if not (fits and self.may_gain(x) and self.is_unchanged()) or needs_the_library(self.attn):
            result: Tensor = self.own_code(x)
            return result
        normed = self.norm1(x).unflatten(1, (height, width))
        table = self.attn.relative_position_bias_table
        attended = self._attend(normed, window, shift, table, "roll_pad", SEAM)  # [B, H, W, C]
        x = x + self.drop_path(attended.flatten(1, 2))
        return x + self.drop_path(self.mlp(self.norm2(x)))
