"""Swin blocks of timm, MONAI and Microsoft, HuggingFace's Swin layers, the attention of torchvision's blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.errors import InputError
from msformer_fast.nn.swin import MonaiSwinBlock, TimmSwinBlock
from msformer_fast.nn.swin_huggingface import HuggingFaceSwinLayer
from msformer_fast.nn.swin_layer import MonaiSwinLayer
from msformer_fast.nn.swin_microsoft import MicrosoftSwinBlock
from msformer_fast.nn.swin_structure import seam_mask, sides, standard_index, structure_of
from msformer_fast.nn.swin_torchvision import (
    TorchvisionShiftedWindowAttention,
    TorchvisionShiftedWindowAttention3d,
)
from msformer_fast.swaps.kinds import SwapKind
from msformer_fast.swaps.probe import Calls, Inputs

_Kind = type[TimmSwinBlock] | type[MonaiSwinBlock] | type[MicrosoftSwinBlock]


def _recognise(kind: _Kind, module: nn.Module) -> bool | str:
    if type(module).__name__ != "SwinTransformerBlock" or structure_of(module) is not kind.structure:
        return False
    reason = kind.structure.why_not(module)
    if reason is not None:
        return reason
    try:
        kind.check(module)
    except InputError as error:
        return str(error).removeprefix(f"{kind.__name__}: block must ").join(("it must ", ""))
    return True


def _batch(channels: int) -> int:
    """Images of a trial's map."""
    return 2 if channels < 256 else 1


def _map_for(block: Any) -> Tensor:
    """A map (B, [D,] H, W, C) of two windows each way, for a copy of a block that is prepared for a quick trial.

    Its MLP, two thirds of the work, is the block's own in the drop-in too, and left out.
    """
    block.mlp = nn.Identity()
    window, channels = sides(block.window_size), block.norm1.weight.numel()
    size = [side + extra for side, extra in zip(window, (1, 2, 1), strict=False)]
    return torch.randn(_batch(channels), *size, channels)


def _shrink(block: Any, size: tuple[int, ...]) -> None:
    """Have a copy of a block take a small map, with its mask, which is the usual one, as the recognition has seen."""
    window, shift = sides(block.window_size), sides(block.shift_size)
    block.input_resolution = size
    if any(shift):
        block.attn_mask = seam_mask((2, 2), window, shift).double()


def _timm_calls(block: Any) -> Iterable[Inputs]:
    x = _map_for(block)
    if not getattr(block, "dynamic_mask", False):
        _shrink(block, tuple(x.shape[1:3]))
    yield (x,)


def _monai_calls(block: Any) -> Iterable[Inputs]:
    if len(block.window_size) == 3:
        _take_small_windows(block)
    mask = seam_mask((2,) * len(block.window_size), block.window_size, block.shift_size).double()
    yield _map_for(block), nn.Buffer(mask)


def _take_small_windows(block: Any) -> None:
    """Have a copy of a volume's block take windows of 24 tokens: those of 343 make a trial of half a minute."""
    _take_small_window(block.attn)
    window = block.attn.window_size
    block.shift_size = tuple(min(moved, side - 1) for moved, side in zip(block.shift_size, window, strict=True))
    block.window_size = window


def _take_small_window(attn: Any) -> None:
    """The same of an attention.

    Its index is the usual one of its window, as the recognition has seen, and becomes that of the smaller one.
    """
    window = tuple(min(side, least) for side, least in zip(attn.window_size, (2, 3, 4), strict=True))
    attn.window_size = window
    attn.relative_position_index = standard_index(window)
    entries = math.prod(2 * side - 1 for side in window)
    attn.relative_position_bias_table = nn.Parameter(torch.rand(entries, attn.num_heads, dtype=torch.float64))


def _microsoft_calls(block: Any) -> Iterable[Inputs]:
    x = _map_for(block)
    rows, columns = sides(block.window_size)
    _shrink(block, (2 * rows, 2 * columns))  # whole windows alone
    yield (torch.randn(x.shape[0], 4 * rows * columns, x.shape[3]),)


def _kind(drop_in: _Kind, calls: Calls) -> SwapKind:
    return SwapKind(
        f"SwinTransformerBlock of {drop_in.structure.library}",
        lambda module: _recognise(drop_in, module),
        lambda module: [lambda block, backend: drop_in(block, backend=backend)],
        calls,
    )


def _layer_calls(layer: Any) -> Iterable[Inputs]:
    for block in layer.blocks:
        block.mlp = nn.Identity()
        _take_small_windows(block)
    shifted = tuple(min(moved, side - 1) for moved, side in zip(layer.shift_size, block.window_size, strict=True))
    layer.window_size, layer.shift_size = block.window_size, shifted
    yield (torch.randn(1, block.norm1.weight.numel(), 3, 5, 5),)


MONAI_LAYER = SwapKind(
    "BasicLayer of MONAI, on volumes",
    MonaiSwinLayer.knows,
    lambda module: [lambda layer, backend: MonaiSwinLayer(layer, backend=backend)],
    _layer_calls,
    enters=True,
)
TIMM = _kind(TimmSwinBlock, _timm_calls)
MONAI = _kind(MonaiSwinBlock, _monai_calls)
MICROSOFT = _kind(MicrosoftSwinBlock, _microsoft_calls)


def _torchvision_calls(attn: Any) -> Iterable[Inputs]:
    rows, columns = attn.window_size
    channels = attn.proj.weight.shape[1]
    for size in ((rows + 1, columns + 2), (rows, columns + 2)):
        yield (torch.randn(_batch(channels), *size, channels),)


def _torchvision_video_calls(attn: Any) -> Iterable[Inputs]:
    """On a video that windows do not divide, on a short one, and on one that a window covers on another axis too."""
    _take_small_window(attn)
    attn.shift_size = [min(moved, side - 1) for moved, side in zip(attn.shift_size, attn.window_size, strict=True)]
    attn.window_size = [*attn.window_size]
    channels = attn.proj.weight.shape[1]
    for longer in ((1, 2, 1), (-1, 2, 1), (0, -1, 1)):
        size = [max(side + more, 1) for side, more in zip(attn.window_size, longer, strict=True)]
        yield (torch.randn(_batch(channels), *size, channels),)


def _torchvision_kind(drop_in: type[TorchvisionShiftedWindowAttention], calls: Calls) -> SwapKind:
    def recognise(module: nn.Module) -> bool | str:
        return type(module).__name__ == drop_in.stands_for and (drop_in.why_not(module) or True)

    return SwapKind(
        f"{drop_in.stands_for} of torchvision",
        recognise,
        lambda module: [lambda attn, backend: drop_in(attn, backend=backend)],
        calls,
    )


TORCHVISION = _torchvision_kind(TorchvisionShiftedWindowAttention, _torchvision_calls)
TORCHVISION_3D = _torchvision_kind(TorchvisionShiftedWindowAttention3d, _torchvision_video_calls)


def _recognise_huggingface(module: nn.Module) -> bool | str:
    if not type(module).__name__.endswith(("SwinLayer", "ClapAudioLayer")):
        return False
    return HuggingFaceSwinLayer.why_not(module) or True


def _huggingface_calls(layer: Any) -> Iterable[Inputs]:
    for name in ("mlp", "intermediate", "output"):  # most of the work, and its own in the drop-in too
        if name in layer._modules:
            setattr(layer, name, nn.Identity())
    layer.attention.attention_dropout = 0.0
    side, channels = layer.window_size, layer.layernorm_before.weight.numel()
    size = side + 1, side + 2
    yield torch.randn(_batch(channels), size[0] * size[1], channels), size


HUGGINGFACE = SwapKind(
    "SwinLayer of HuggingFace",
    _recognise_huggingface,
    lambda module: [lambda layer, backend: HuggingFaceSwinLayer(layer, backend=backend)],
    _huggingface_calls,
)
