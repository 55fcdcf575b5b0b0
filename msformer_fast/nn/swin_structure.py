"""What makes a module one of the Swin blocks that have a drop-in: no library is imported, the structure decides."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.identities.cross_scale_attention import over_axes
from msformer_fast.nn.drop_in import drops
from msformer_fast.nn.hooks import all_are_hooked, is_looked_at
from msformer_fast.windows import product

#: What the libraries add to the score of two tokens on different sides of the seam that the shift made.
SEAM = -100.0

_ATTENTION = {"qkv", "attn_drop", "proj", "proj_drop", "softmax"}


@dataclass(frozen=True)
class Structure:
    """A library's block.

    Attributes:
        library: its name, for messages.
        modules, attributes, methods: names that the block must have.
        inputs: names of the arguments of ``forward``.
        replaced: the method that the drop-in computes by itself.
        axes: how many a window may have.
    """

    library: str
    modules: tuple[str, ...]
    attributes: tuple[str, ...]
    methods: tuple[str, ...]
    inputs: tuple[str, ...]
    replaced: str
    axes: tuple[int, ...] = (2,)

    def why_not(self, block: nn.Module) -> str | None:
        """Why this is not such a block, as the end of a sentence, or ``None``."""
        kind = type(block)
        if kind.__name__ != "SwinTransformerBlock":
            return f"the class {kind.__name__} may compute something else"
        present = {name for name, _ in block.named_children()}
        lacking = [
            *(name for name in self.modules if name not in present),
            *(name for name in self.attributes if not hasattr(block, name)),
            *(name for name in self.methods if not inspect.isfunction(getattr(kind, name, None))),
        ]
        if lacking:
            return f"this SwinTransformerBlock has no {', '.join(lacking)}"
        inputs = _inputs(kind)
        if inputs != self.inputs:
            return f"its forward takes ({', '.join(inputs)}), not ({', '.join(self.inputs)})"
        return _why_not_attention(block.get_submodule("attn"))


TIMM = Structure(
    "timm",
    ("norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"),
    ("window_size", "shift_size", "input_resolution"),
    ("_attn",),
    ("x",),
    "_attn",
)
MICROSOFT = Structure(
    "Microsoft",
    ("norm1", "attn", "drop_path", "norm2", "mlp"),
    ("window_size", "shift_size", "input_resolution", "attn_mask"),
    (),
    ("x",),
    "forward",
)
MONAI = Structure(
    "MONAI",
    ("norm1", "attn", "drop_path", "norm2", "mlp"),
    ("window_size", "shift_size", "use_checkpoint"),
    ("forward_part1", "forward_part2"),
    ("x", "mask_matrix"),
    "forward_part1",
    axes=(2, 3),
)


def structure_of(block: nn.Module) -> Structure:
    """Whose block this is by what tells them apart."""
    if "drop_path1" in block._modules:
        return TIMM
    return MONAI if hasattr(block, "forward_part1") else MICROSOFT


def sides(size: Any) -> tuple[int, ...]:
    """A window or shift that is one number for both axes, or one each."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _why_not_attention(attn: nn.Module) -> str | None:
    """Every part must be known, since none but the projections is called: Swin V2 has a logit scale besides."""
    parts = {name for name, _ in attn.named_children()}
    parameters = {name for name, _ in attn.named_parameters(recurse=False)}
    if type(attn).__name__ != "WindowAttention":
        return f"its attention is a {type(attn).__name__}, not a WindowAttention"
    if parts != _ATTENTION or parameters != {"relative_position_bias_table"}:
        return (
            f"its attention is made of {', '.join(sorted(parts | parameters))}, not of "
            f"{', '.join(sorted(_ATTENTION))} and relative_position_bias_table"
        )
    lacking = [name for name in ("num_heads", "scale", "relative_position_index") if not hasattr(attn, name)]
    if lacking:
        return f"its attention has no {', '.join(lacking)}"
    return None if _inputs(type(attn)) == ("x", "mask") else "its attention does not take (x, mask)"


def _inputs(kind: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def replaced(module: nn.Module, *methods: str) -> list[str]:
    """Those of the methods that were set on the instance, over its class's."""
    return [name for name in methods if name in module.__dict__]


def needs_the_library(attn: Any) -> bool:
    """Whether the library's own code must run: somebody hooks into a module of the attention, which sees windows there;
    or dropout is at work, which would drop other elements of a map, and probabilities that the op never stores."""
    if all_are_hooked() or drops(attn.attn_drop) or drops(attn.proj_drop):
        return True
    return any(is_looked_at(part) for part in attn.modules())


def standard_index(window: Sequence[int]) -> Tensor:
    """Swin's entry in the bias table for every query and key of a window, (tokens, tokens)."""
    places = [torch.arange(size) for size in window]
    return over_axes([(at[:, None] - at + len(at) - 1, 2 * len(at) - 1) for at in places])


def clamped(
    sizes: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift of every axis: on one that is no longer than the window, the axis and 0."""
    axes = zip(sizes, window, shift, strict=True)
    sides = [(n, 0) if n <= size else (size, moved) for n, size, moved in axes]
    return tuple(size for size, _ in sides), tuple(moved for _, moved in sides)


def bias_of(table: Tensor, index: Tensor, whole: Sequence[int], window: Sequence[int]) -> Tensor:
    """The libraries' bias of a window that was clamped: they take the first rows and columns of the whole one's index.

    Where it is clamped on the first axis alone, those are what the smaller window has by itself: a part of the table.
    """
    if tuple(window) == tuple(whole):
        return table
    if tuple(window[1:]) == tuple(whole[1:]):
        entries = table.shape[0] // (2 * whole[0] - 1)  # of one offset on the first axis
        first = whole[0] - window[0]
        return table[first * entries : (first + 2 * window[0] - 1) * entries]
    tokens = product(window)
    index = index.view(product(whole), -1)[:tokens, :tokens]
    return table[index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1)


def seam_mask(counts: Sequence[int], window: Sequence[int], shift: Sequence[int], device: Any = None) -> Tensor:
    """The libraries' mask of shifted windows, (windows, tokens, tokens): 0, or :data:`SEAM` across the seam."""
    past = [
        (torch.arange(count * size, device=device) >= count * size - moved).long().view(count, size)
        for count, size, moved in zip(counts, window, shift, strict=True)
    ]
    side = over_axes([(of_axis, 2) for of_axis in past])  # [windows, tokens]
    return (side[:, :, None] != side[:, None, :]) * SEAM
