"""Windowed attention of one map to another through PyTorch's fused attention: the usual chain of copies around it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.identities.transforms import transformed
from msformer_fast.windows import Axis, Roll, Windows


class _Places(NamedTuple):
    """Where the tokens of an axis stand, (windows, tokens of a window) each.

    Attributes:
        row: of the map, clamped into it.
        inside: whether there is such a row.
        past: whether it lies past the seam that the roll made.
    """

    row: Tensor
    inside: Tensor
    past: Tensor


def cross_scale_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Windows,
    scale: float,
    seam: float,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
) -> Tensor:
    """See :func:`msformer_fast.ops.cross_scale_attention`; differentiated by PyTorch."""
    queries = [_query_places(axis, windows, q.device) for axis in windows.axes]
    keys = [_key_places(axis, windows, q.device) for axis in windows.axes]
    mask, some = _mask(queries, keys, windows, seam, q)
    added = None if bias is None else _dense(bias, windows).to(q.dtype)[None]
    if mask is not None:
        added = mask[:, None] if added is None else added + mask[:, None]
        added = added.expand(q.shape[0], *added.shape).flatten(0, 1)
    zero = q.new_zeros(())
    pads = [(zero if pad is None else pad) if windows.pads else None for pad in (pad_k, pad_v)]
    k_w, v_w = (_partition(t, keys, pad) for t, pad in zip((k, v), pads, strict=True))
    out = _attend(_partition(q, queries, None), k_w, v_w, added, scale)
    if some is not None:
        out = out * some.repeat(q.shape[0], 1)[:, None, :, None]
    return _merge(out, q.shape, windows)


def _attend(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """PyTorch's fused attention, or the plain one inside transforms that the fused one lacks."""
    if not transformed():
        return F.scaled_dot_product_attention(q, k, v, added, scale=scale)
    scores = q @ k.mT * scale
    return torch.softmax(scores if added is None else scores + added, -1) @ v


def _query_places(axis: Axis, windows: Windows, device: torch.device) -> _Places:
    rolled = torch.arange(axis.count * axis.window, device=device).view(axis.count, axis.window)
    return _places(rolled, windows.roll(axis))


def _key_places(axis: Axis, windows: Windows, device: torch.device) -> _Places:
    first = torch.arange(axis.count, device=device)[:, None] * axis.core - axis.halo
    rolled = first + torch.arange(axis.reach, device=device)
    return _places(rolled, windows.roll(axis, of_keys=True))


def _places(rolled: Tensor, roll: Roll) -> _Places:
    """Of rows of the rolled axis, which may lie outside of it."""
    row = rolled + roll.shift
    row = torch.where(row >= roll.cycle, row - roll.cycle, row)
    inside = (rolled >= 0) & (rolled < roll.cycle) & (row < roll.size)
    past = torch.zeros_like(inside) if roll.seam is None else rolled >= roll.seam
    return _Places(row.clamp(0, roll.size - 1), inside, past)


def _partition(tokens: Tensor, places: Sequence[_Places], pad: Tensor | None) -> Tensor:
    """(B, H, W, heads, d) to (B * windows, heads, tokens, d); ``pad`` (heads, d), or a scalar, where no token is."""
    axes = len(places)
    for dim, place in enumerate(places, 1):
        tokens = tokens.index_select(dim, place.row.flatten())
    for dim, place in enumerate(places):
        tokens = tokens.unflatten(1 + 2 * dim, place.row.shape)
    if pad is not None:
        inside = torch.ones((), dtype=torch.bool, device=tokens.device)
        for place in places:
            inside = inside[..., None, None] & place.inside
        tokens = torch.where(inside[..., None, None], tokens, pad)
    # From (B, windows, tokens of each axis, ..., heads, d).
    windows, rows = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    tokens = tokens.permute(0, *windows, 2 * axes + 1, *rows, 2 * axes + 2)
    return tokens.flatten(2 + axes, 1 + 2 * axes).flatten(0, axes)


def _mask(
    queries: Sequence[_Places], keys: Sequence[_Places], windows: Windows, seam: float, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the scores (windows, queries, keys), and which queries (windows, queries) have a key at all;
    None where nothing is added, or all have."""
    hides = windows.outside == "ignore" and not windows.whole
    if not (hides or any(axis.shift for axis in windows.axes)):
        return None, None

    region_q = over_axes([(axis.past.long(), 2) for axis in queries])  # (windows, tokens)
    region_k = over_axes([(axis.past.long(), 2) for axis in keys])
    apart = region_q[:, :, None] != region_k[:, None, :]
    mask = torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, seam)
    if hides:
        outside = over_axes([((~axis.inside).long(), 2) for axis in keys]) > 0
        mask = mask.masked_fill(outside[:, None, :], -math.inf)
    aligned = windows.order == "pad_roll" or all((axis.p, axis.q) == (1, 1) for axis in windows.axes)
    if aligned or not hides:
        return mask, None
    some = (mask > -math.inf).any(-1)
    return mask.masked_fill(~some[..., None], 0.0), some.to(like.dtype)


def _merge(out: Tensor, shape: torch.Size, windows: Windows) -> Tensor:
    """(B * windows, heads, queries, d) to the map (B, H, W, heads, d)."""
    axes = len(windows.axes)
    counts, sides = [axis.count for axis in windows.axes], [axis.window for axis in windows.axes]
    out = out.reshape(shape[0], *counts, shape[-2], *sides, shape[-1])
    pairs = [dim for number in range(axes) for dim in (1 + number, 2 + axes + number)]
    out = out.permute(0, *pairs, 1 + axes, 2 + 2 * axes)
    out = out.reshape(shape[0], *(n * side for n, side in zip(counts, sides, strict=True)), *shape[-2:])
    for dim, axis in enumerate(windows.axes, 1):
        roll = windows.roll(axis)
        rows = (torch.arange(roll.size, device=out.device) - roll.shift) % roll.cycle
        out = out.index_select(dim, rows)
    return out


def over_axes(numbers: Iterable[tuple[Tensor, int]]) -> Tensor:
    """Numbers of all axes (rows, columns), from those of each, slowest first, with how many there are on it: what came
    before times as many, and its own."""
    (found, _), *others = numbers
    for number, count in others:
        found = count * found[:, None, :, None] + number[:, None, :]
        found = found.flatten(2).flatten(0, 1)
    return found


def _dense(bias: Tensor, windows: Windows) -> Tensor:
    """(heads, queries, keys), gathered from a table (entries, heads)."""
    if bias.ndim == 3:
        return bias
    offsets = []
    for axis in windows.axes:
        queries = torch.arange(axis.window, device=bias.device)[:, None] * axis.p
        keys = torch.arange(axis.reach, device=bias.device) * axis.q
        offsets.append((queries - keys + (axis.reach - 1) * axis.q, axis.offsets))
    return bias[over_axes(offsets).flatten()].view(windows.queries, windows.keys, -1).permute(2, 0, 1)
