"""Modules that look like ones with a drop-in and have none, so that a report says why they stay."""

from __future__ import annotations

from torch import nn

from msformer_fast.swaps.kinds import SwapKind

_COSINE = "its scores are cosines with a learned scale, and a network computes its bias"
_REDUCED = "its keys and values are of a reduced map, and its cost is that of plain attention"

#: Reason by the name of the class.
REASONS = {
    "SwinTransformerV2Block": _COSINE,  # timm
    "SwinTransformerBlockV2": _COSINE,  # torchvision
    "ShiftedWindowAttentionV2": _COSINE,
    "Swinv2Layer": _COSINE,  # HuggingFace
    "SegformerEfficientSelfAttention": _REDUCED,
    "EfficientSelfAtten": _REDUCED,  # MISSFormer
    "WindowAttention3D": "its windows are of three axes",
}


def _recognise(module: nn.Module) -> bool | str:
    return REASONS.get(type(module).__name__, False)


WITHOUT = SwapKind("without a drop-in", _recognise, lambda module: [], lambda module: [])
