"""The drop-in for MONAI's layer of Swin blocks on volumes, which makes their mask no more."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from msformer_fast.errors import InputError
from msformer_fast.nn.drop_in import DropIn
from msformer_fast.nn.hooks import all_are_hooked, is_looked_at
from msformer_fast.nn.swin import STANDARD_MASK, MonaiSwinBlock
from msformer_fast.nn.swin_structure import MONAI, structure_of


class MonaiSwinLayer(DropIn):
    """A stand-in for MONAI's ``BasicLayer`` on volumes, equal to it bit by bit, whose blocks have drop-ins themselves.

    MONAI makes the mask of the shifted windows, windows x tokens x tokens numbers, in every forward: 160 MB for windows
    of 343 tokens in a volume of 48 a side. A :class:`MonaiSwinBlock` needs none; where it runs MONAI's code it makes
    its own. Blocks and downsampling are called as they were; where a block is not (or no more) a drop-in, or somebody
    hooks into one, the layer's own code runs.

    Shape: (B, C, D, H, W) -> (B, C', D', H', W'), any floating dtype.

    Raises:
        InputError: a layer of another class or make, or of maps.

    Source: Hatamizadeh et al., "Swin UNETR", 2022; monai.networks.nets.swin_unetr.
    """

    def __init__(self, layer: nn.Module, *, backend: str | None = None) -> None:
        if not self.knows(layer):
            raise InputError(
                "MonaiSwinLayer: layer must be a BasicLayer of MONAI whose blocks are Swin blocks on volumes"
            )
        super().__init__(layer, backend=backend)
        self.was_called = False

    @staticmethod
    def knows(layer: Any) -> bool:
        """Whether this is such a layer."""
        names = ("window_size", "shift_size", "no_shift", "blocks", "downsample")
        if type(layer).__name__ != "BasicLayer" or not all(hasattr(layer, name) for name in names):
            return False
        return len(tuple(layer.window_size)) == 3 and all(_is_block(block) for block in layer.blocks)

    def forward(self, x: Tensor) -> Tensor:
        self.note_call()
        blocks: list[Any] = list(self.blocks)
        if self.on_trial:
            blocks = [MonaiSwinBlock(block, backend=self.backend) for block in blocks]
            for block in blocks:
                block.on_trial = True
        volume = x.movedim(1, -1)
        usual = x.ndim == 5 and self.may_gain(x) and not all_are_hooked() and all(map(self._needs_no_mask, blocks))
        # A block that runs MONAI's code would make the mask for itself alone.
        if not (usual and all(block.may_gain(volume) for block in blocks)):
            result: Tensor = self.own_code(x)
            return result

        x = volume
        for block in blocks:
            x = block(x, STANDARD_MASK)
        if self.downsample is not None:
            x = self.downsample(x)
        return x.movedim(-1, 1)

    def _needs_no_mask(self, block: Any) -> bool:
        """Whether a block is a drop-in for one whose mask the layer would make."""
        shifts = tuple(self.shift_size), tuple(self.no_shift)
        usual = isinstance(block, MonaiSwinBlock) and tuple(block.window_size) == tuple(self.window_size)
        return usual and tuple(block.shift_size) in shifts and not is_looked_at(block)


def _is_block(block: nn.Module) -> bool:
    return isinstance(block, MonaiSwinBlock) or (
        type(block).__name__ == "SwinTransformerBlock" and structure_of(block) is MONAI
    )
