"""Swin blocks of timm and MONAI, whose drop-ins are in :mod:`msformer_fast.nn.swin`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

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


def _timm_calls(block: Any) -> Iterable[Inputs]:
    fixed = any(block.shift_size) and not getattr(block, "dynamic_mask", False)
    size = block.input_resolution if fixed else [2 * side - 1 for side in block.window_size]
    yield (torch.randn(2, *size, block.norm1.weight.numel()),)


def _monai_calls(block: Any) -> Iterable[Inputs]:
    window, shift = block.window_size, block.shift_size
    size = [2 * window[0] - 1, window[1] + 2]
    mask = seam_mask((2, 2), window, shift).double()
    yield torch.randn(2, *size, block.norm1.weight.numel()), nn.Buffer(mask)


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
