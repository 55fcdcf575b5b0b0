"""Swin blocks of timm and MONAI, whose drop-ins are in :mod:`msformer_fast.nn.swin`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.errors import InputError
from msformer_fast.nn.swin import MonaiSwinBlock, TimmSwinBlock
from msformer_fast.nn.swin_structure import seam_mask
from msformer_fast.swaps.kinds import SwapKind
from msformer_fast.swaps.probe import Inputs

_Kind = type[TimmSwinBlock] | type[MonaiSwinBlock]


def _recognise(kind: _Kind, other: _Kind, module: nn.Module) -> bool | str:
    if type(module).__name__ != "SwinTransformerBlock" or other.structure.why_not(module) is None:
        return False
    reason = kind.structure.why_not(module)
    if reason is not None:
        return reason if kind is TimmSwinBlock else False  # told once
    try:
        kind.check(module)
    except InputError as error:
        return str(error).removeprefix(f"{kind.__name__}: block must ").join(("it must ", ""))
    return True


def _map_for(block: Any) -> Tensor:
    """A map (B, H, W, C) of two windows each way, for a copy of a block that is prepared for a quick trial.

    Its MLP, two thirds of the work, is the block's own in the drop-in too, and left out.
    """
    block.mlp = nn.Identity()
    (rows, columns), channels = block.window_size, block.norm1.weight.numel()
    return torch.randn(2 if channels < 256 else 1, 2 * rows - 1, columns + 2, channels)


def _timm_calls(block: Any) -> Iterable[Inputs]:
    x = _map_for(block)
    if any(block.shift_size) and not getattr(block, "dynamic_mask", False):
        # The mask that it was made with is Swin's, which the recognition has seen; here that of the small map.
        block.input_resolution = tuple(x.shape[1:3])
        block.attn_mask = seam_mask((2, 2), block.window_size, block.shift_size).double()
    yield (x,)


def _monai_calls(block: Any) -> Iterable[Inputs]:
    mask = seam_mask((2, 2), block.window_size, block.shift_size).double()
    yield _map_for(block), nn.Buffer(mask)


TIMM = SwapKind(
    "SwinTransformerBlock of timm",
    lambda module: _recognise(TimmSwinBlock, MonaiSwinBlock, module),
    lambda module: [lambda block, backend: TimmSwinBlock(block, backend=backend)],
    _timm_calls,
)
MONAI = SwapKind(
    "SwinTransformerBlock of MONAI",
    lambda module: _recognise(MonaiSwinBlock, TimmSwinBlock, module),
    lambda module: [lambda block, backend: MonaiSwinBlock(block, backend=backend)],
    _monai_calls,
)
