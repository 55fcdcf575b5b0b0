"""The published block: what makes a module one of its three kinds, and what each copy of it may compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn

from msformer_fast.nn.published import (
    AttentionForm,
    BlockForm,
    FeedForwardForm,
    PublishedEfficientAttention,
    PublishedMixFFN,
    PublishedTransformerBlock,
    depthwise,
)
from msformer_fast.swaps.kinds import SwapKind
from msformer_fast.swaps.probe import Inputs, Make

_ATTENTION = ("keys", "queries", "values", "reprojection")
_FEED_FORWARD = ("fc1", "dwconv", "fc2")
_BLOCK = ("norm1", "attn", "norm2", "mlp")
_HEADS = ("head_count", "heads", "num_heads", "n_heads")
_NO_OP = (nn.Identity, nn.modules.dropout._DropoutNd)

#: Sizes of the trial: rows differ from columns, and tokens from both.
_SIZES = ((2, 5, 4), (1, 3, 7))


def _recognise_attention(module: nn.Module) -> bool | str:
    parts: dict[str, Any] = module._modules
    if type(module).__name__ != "EfficientAttention" and not set(_ATTENTION) <= parts.keys():
        return False
    reason = _why_not_made_of(module, _ATTENTION)
    if reason:
        return reason
    for name in _ATTENTION:
        part = parts[name]
        if type(part) is not nn.Conv2d or part.kernel_size != (1, 1) or part.stride != (1, 1) or part.groups != 1:
            return f"its {name} is no plain 1x1 Conv2d"
        if part.padding not in ((0, 0), "valid", "same"):
            return f"its {name} pads"
    keys, queries, values, reprojection = (parts[name] for name in _ATTENTION)
    widths = {keys.in_channels, queries.in_channels, values.in_channels, reprojection.out_channels}
    if len(widths) > 1:
        return f"its convolutions read and write maps of different widths ({', '.join(map(str, sorted(widths)))})"
    if keys.out_channels != queries.out_channels or values.out_channels != reprojection.in_channels:
        return "its keys and queries, or its values and reprojection, differ in width"
    heads = _heads(module)
    if heads < 1 or keys.out_channels % heads or values.out_channels % heads:
        return f"its {heads} heads do not divide its widths"
    return _why_not_callable(module) or True


def _attention_ways(module: nn.Module) -> Iterable[Make]:
    forms = [
        AttentionForm(_heads(module), residual, context)
        for residual, context in product((False, True), _contexts(module))
    ]
    return [_maker(PublishedEfficientAttention, form) for form in forms]


def _recognise_feed_forward(module: nn.Module) -> bool | str:
    parts: dict[str, Any] = module._modules
    if type(module).__name__ not in ("MixFFN", "MixFFN_skip") and not set(_FEED_FORWARD) <= parts.keys():
        return False
    reason = _why_not_made_of(module, _FEED_FORWARD, (nn.LayerNorm, nn.GELU))
    if reason:
        return reason
    fc1, fc2, conv = parts["fc1"], parts["fc2"], depthwise(module)
    if type(fc1) is not nn.Linear or type(fc2) is not nn.Linear:
        return "its fc1 or fc2 is no plain Linear"
    if (fc2.in_features, fc2.out_features) != (fc1.out_features, fc1.in_features):
        return "its fc2 does not lead back from fc1"
    wide = fc1.out_features
    if type(conv) is not nn.Conv2d or conv.weight.shape != (wide, 1, 3, 3):
        return f"its dwconv is no depthwise 3x3 Conv2d of {wide} channels"
    if (conv.stride, conv.dilation, conv.padding_mode) != ((1, 1), (1, 1), "zeros") or conv.padding not in (
        (1, 1),
        "same",
    ):
        return "its dwconv does not keep the size with one row of zeros on each side"
    if parts["dwconv"] is not conv and [name for name, _ in parts["dwconv"].named_modules() if name] != ["dwconv"]:
        return "its dwconv does more than one convolution"
    for name, part in parts.items():
        if isinstance(part, nn.GELU) and part.approximate != "none":
            return "its GELU is the tanh approximation"
        if isinstance(part, nn.LayerNorm) and part.normalized_shape != (wide,):
            return f"its {name} is not over the {wide} hidden channels"
    return _why_not_callable(module) or True


def _feed_forward_ways(module: nn.Module) -> Iterable[Make]:
    forms = _feed_forward_forms(module, (False, True))
    return [_maker(PublishedMixFFN, form) for form in forms]


def _feed_forward_forms(module: nn.Module, residuals: Sequence[bool]) -> list[FeedForwardForm]:
    norms = [name for name, part in module._modules.items() if isinstance(part, nn.LayerNorm)]
    # A norm comes with the skip in the published code; the first of several is the one that is used.
    choices = product(residuals, [*norms, None], (True, False) if norms else (False, True))
    return [FeedForwardForm(residual, skip, norm) for residual, norm, skip in choices]


def _recognise_block(module: nn.Module) -> bool | str:
    parts: dict[str, Any] = module._modules
    named = type(module).__name__ == "EfficientTransformerBlock"
    if not set(_BLOCK) <= parts.keys():
        return f"it has no {_lacking(module, _BLOCK)}" if named else False
    for name, recognise in (("attn", _recognise_attention), ("mlp", _recognise_feed_forward)):
        part = parts[name]
        found = part is not None and recognise(part)
        if found is not True:
            if not named:
                return False
            return f"its {name}, a {type(part).__name__}, has no drop-in" + (f": {found}" if found else "")
    reason = _why_not_made_of(module, _BLOCK)
    if reason:
        return reason
    width = parts["attn"].keys.in_channels
    for name in ("norm1", "norm2"):
        norm = parts[name]
        if type(norm) is not nn.LayerNorm or norm.normalized_shape != (width,):
            return f"its {name} is no LayerNorm over {width} channels"
    return _why_not_callable(module) or True


def _block_ways(module: nn.Module) -> Iterable[Make]:
    attn: Any = module._modules["attn"]
    mlp: Any = module._modules["mlp"]
    forms = [
        BlockForm(AttentionForm(_heads(attn)), feed_forward, context)
        for feed_forward, context in product(_feed_forward_forms(mlp, (False,)), _contexts(attn))
    ]
    return [_maker(PublishedTransformerBlock, form) for form in forms]


def _maker(kind: Callable[..., nn.Module], form: Any) -> Make:
    return lambda module, backend: kind(module, form, backend=backend)


def _contexts(attention: nn.Module) -> tuple[str, ...]:
    several = ("first",) if _heads(attention) > 1 else ()
    return ("none", "last", "all", *several)


def _heads(module: nn.Module) -> int:
    return next((value for name in _HEADS if isinstance(value := getattr(module, name, None), int)), 1)


def _lacking(module: nn.Module, names: Sequence[str]) -> str:
    return ", ".join(name for name in names if module._modules.get(name) is None)


def _why_not_made_of(module: nn.Module, names: Sequence[str], others: tuple[type, ...] = ()) -> str | None:
    """Why a module is not made of these parts, and besides of what does nothing or of others of these classes."""
    lacking = _lacking(module, names)
    if lacking:
        return f"it has no {lacking}"
    for name, part in module._modules.items():
        known = name in names or part is None or type(part) in others or isinstance(part, _NO_OP)
        if not known and type(part).__name__ != "DropPath":
            return f"it has a {type(part).__name__} besides ({name})"
    own = [name for name, value in (module._parameters | module._buffers).items() if value is not None]
    return f"it has {own[0]} besides, which its drop-in would not read" if own else None


def _why_not_callable(module: nn.Module) -> str | None:
    if len(_required(module)) in (1, 3):
        return None
    return f"its forward takes ({', '.join(_required(module))}), not a map, nor tokens with H and W"


def _required(module: nn.Module) -> list[str]:
    inputs = list(inspect.signature(type(module).forward).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in inputs if each.default is each.empty and each.kind in positional]


def _calls(module: nn.Module, width: int) -> Iterable[Inputs]:
    for batch, rows, columns in _SIZES:
        if len(_required(module)) == 1:
            yield (torch.randn(batch, width, rows, columns),)
        else:
            yield torch.randn(batch, rows * columns, width), rows, columns


def _kind(name: str, recognise: Any, ways: Any, width: Any) -> SwapKind:
    return SwapKind(name, recognise, ways, lambda module: _calls(module, width(module)))


BLOCK = _kind("EfficientTransformerBlock", _recognise_block, _block_ways, lambda block: block.attn.keys.in_channels)
ATTENTION = _kind("EfficientAttention", _recognise_attention, _attention_ways, lambda attn: attn.keys.in_channels)
FEED_FORWARD = _kind("MixFFN", _recognise_feed_forward, _feed_forward_ways, lambda mlp: mlp.fc1.in_features)
