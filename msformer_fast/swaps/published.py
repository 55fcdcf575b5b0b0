"""The published block: what makes a module one of its three kinds, and what each copy of it may compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.nn.drop_in import is_drop_path
from msformer_fast.nn.published import (
    AttentionForm,
    BlockForm,
    FeedForwardForm,
    PublishedEfficientAttention,
    PublishedMixFFN,
    PublishedTransformerBlock,
    depthwise,
    linear_maps,
)
from msformer_fast.swaps.kinds import SwapKind
from msformer_fast.swaps.probe import Inputs, Make

_ATTENTION = ("keys", "queries", "values", "reprojection")
_FEED_FORWARD = (("fc1", "dwconv", "fc2"), ("dense1", "dwconv", "dense2"))
_BLOCK = ("norm1", "attn", "norm2", "mlp")
_HEADS = ("head_count", "heads", "num_heads", "n_heads")
#: Names of an argument that holds rows and columns.
_SIZE = ("feat_size", "hw_shape", "hw", "size")
_NO_OP = (nn.Identity, nn.modules.dropout._DropoutNd)

#: Batch, rows and columns in the trial: rows differ from columns, and tokens from both; and of a map that is tried in
#: evaluation alone, larger than most windows, grids of a pooling, and tables of positions.
_SIZES = ((2, 4, 5),)
_OTHERS = ((1, 33, 6),)


def _recognise_attention(module: nn.Module) -> bool | str:
    parts: dict[str, Any] = module._modules
    if type(module).__name__ != "EfficientAttention" and not set(_ATTENTION) <= parts.keys():
        return False
    reason = _why_not_made_of(module, _ATTENTION)
    if reason:
        return reason
    for name in _ATTENTION:
        if not _is_plain_1x1(parts[name]):
            return f"its {name} is no plain 1x1 Conv2d"
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
    names = next((names for names in _FEED_FORWARD if set(names) <= parts.keys()), None)
    if names is None and type(module).__name__ not in ("MixFFN", "MixFFN_skip"):
        return False
    names = names or _FEED_FORWARD[0]
    reason = _why_not_made_of(module, names, (nn.LayerNorm, *_activations(module)))
    if reason:
        return reason
    (fc1, fc2), conv = linear_maps(module), depthwise(module)
    if not _is_linear(fc1) or not _is_linear(fc2):
        return f"its {names[0]} or {names[2]} is neither a plain Linear nor a plain 1x1 Conv2d"
    (wide, narrow), back = fc1.weight.shape[:2], fc2.weight.shape[:2]
    if back != (narrow, wide):
        return f"its {names[2]} does not lead back from {names[0]}"
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


def _activations(module: nn.Module) -> set[type]:
    """Classes of parts that may be a GELU, which the trial decides: PyTorch's own, and others without parameters."""
    others = (
        type(part)
        for part in module._modules.values()
        if part is not None and not type(part).__module__.startswith("torch.nn.") and not [*part.parameters()]
    )
    return {nn.GELU, *others}


def _is_linear(part: nn.Module | None) -> bool:
    return type(part) is nn.Linear or (part is not None and _is_plain_1x1(part))


def _is_plain_1x1(part: Any) -> bool:
    return (
        type(part) is nn.Conv2d
        and (part.kernel_size, part.stride, part.groups) == ((1, 1), (1, 1), 1)
        and part.padding in ((0, 0), "valid", "same")
    )


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
    attn = parts["attn"]
    found = attn is not None and _recognise_attention(attn)
    if found is not True:
        why = f": {found}" if found else ""
        return f"its attn, a {type(attn).__name__}, has no drop-in{why}" if named else False
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
    of_mlp = _feed_forward_forms(mlp, (False,)) if _recognise_feed_forward(mlp) is True else [None]
    forms = [
        BlockForm(AttentionForm(_heads(attn)), feed_forward, context)
        for feed_forward, context in product(of_mlp, _contexts(attn))
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
        if not known and not is_drop_path(part):
            return f"it has a {type(part).__name__} besides ({name})"
    own = [name for name, value in (module._parameters | module._buffers).items() if value is not None]
    return f"it has {own[0]} besides, which its drop-in would not read" if own else None


def _why_not_callable(module: nn.Module) -> str | None:
    required = _required(module)
    if len(required) in (1, 3) or (len(required) == 2 and required[1] in _SIZE):
        return None
    return f"its forward takes ({', '.join(required)}), not a map, nor tokens with H and W"


def _required(module: nn.Module) -> list[str]:
    inputs = list(inspect.signature(type(module).forward).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in inputs if each.default is each.empty and each.kind in positional]


def _calls(module: nn.Module, width: int, sizes: Sequence[tuple[int, int, int]] = _SIZES) -> Iterable[Inputs]:
    """Calls of every form that the module takes: with a map; or with tokens, or a map, and their size."""

    def call(batch: int, rows: int, columns: int, of_map: bool) -> Inputs:
        x = torch.randn((batch, width, rows, columns) if of_map else (batch, rows * columns, width))
        return x, *({1: (), 2: ((rows, columns),), 3: (rows, columns)}[len(_required(module))])

    layouts = [True]
    if len(_required(module)) > 1:
        layouts = [of_map for of_map in (False, True) if _takes(module, *call(1, 2, 3, of_map))] or [False]
    for size, of_map in product(sizes, layouts):
        yield call(*size, of_map)


def _takes(module: nn.Module, x: Tensor, *size: Any) -> bool:
    """Whether a module can be called so."""
    try:
        with torch.no_grad():
            module(x.to(next(module.parameters()).dtype), *size)
    except Exception:  # whatever its code raises for a shape that it was not written for
        return False
    return True


def _kind(name: str, recognise: Any, ways: Any, width: Any) -> SwapKind:
    return SwapKind(
        name,
        recognise,
        ways,
        lambda module: _calls(module, width(module)),
        lambda module: _calls(module, width(module), _OTHERS),
    )


def _channels(module: Any) -> int:
    """Of the map that a Mix-FFN takes."""
    fc1, _ = linear_maps(module)
    return int(fc1.weight.shape[1])


BLOCK = _kind("EfficientTransformerBlock", _recognise_block, _block_ways, lambda block: block.attn.keys.in_channels)
ATTENTION = _kind("EfficientAttention", _recognise_attention, _attention_ways, lambda attn: attn.keys.in_channels)
FEED_FORWARD = _kind(
    "MixFFN", _recognise_feed_forward, _feed_forward_ways, lambda mlp: linear_maps(mlp)[0].weight.shape[1]
)
