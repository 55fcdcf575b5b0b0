"""Windowed attention of one map to another through PyTorch's fused attention: the usual chain of copies around it."""

from __future__ import annotations

import math
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
    y, x = windows.y, windows.x
    queries = _query_places(y, windows, q.device), _query_places(x, windows, q.device)
    keys = _key_places(y, windows, q.device), _key_places(x, windows, q.device)
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


def _partition(tokens: Tensor, places: tuple[_Places, _Places], pad: Tensor | None) -> Tensor:
    """(B, H, W, heads, d) to (B * windows, heads, tokens, d); ``pad`` (heads, d), or a scalar, where no token is."""
    y, x = places
    found = tokens.index_select(1, y.row.flatten()).index_select(2, x.row.flatten())
    found = found.unflatten(1, y.row.shape).unflatten(3, x.row.shape)
    if pad is not None:
        inside = y.inside[:, :, None, None] & x.inside
        found = torch.where(inside[..., None, None], found, pad)
    return found.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)


def _mask(
    queries: tuple[_Places, _Places], keys: tuple[_Places, _Places], windows: Windows, seam: float, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the scores (windows, queries, keys), and which queries (windows, queries) have a key at all;
    None where nothing is added, or all have."""
    whole = windows.y.whole and windows.x.whole
    hides = windows.outside == "ignore" and not whole
    if not (hides or windows.y.shift or windows.x.shift):
        return None, None

    def of_tokens(y: Tensor, x: Tensor) -> Tensor:
        """(windows, tokens) of both axes, from each axis's, added."""
        return (y[:, None, :, None] + x[None, :, None, :]).flatten(2, 3).flatten(0, 1)

    region_q = of_tokens(2 * queries[0].past.long(), queries[1].past.long())
    region_k = of_tokens(2 * keys[0].past.long(), keys[1].past.long())
    apart = region_q[:, :, None] != region_k[:, None, :]
    mask = torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, seam)
    if hides:
        outside = of_tokens((~keys[0].inside).long(), (~keys[1].inside).long()) > 0
        mask = mask.masked_fill(outside[:, None, :], -math.inf)
    aligned = windows.order == "pad_roll" or (windows.y.p, windows.y.q, windows.x.p, windows.x.q) == (1, 1, 1, 1)
    if aligned or not hides:
        return mask, None
    some = (mask > -math.inf).any(-1)
    return mask.masked_fill(~some[..., None], 0.0), some.to(like.dtype)


def _merge(out: Tensor, shape: torch.Size, windows: Windows) -> Tensor:
    """(B * windows, heads, queries, d) to the map (B, H, W, heads, d)."""
    y, x = windows.y, windows.x
    heads, d = shape[3:]
    out = out.reshape(shape[0], y.count, x.count, heads, y.window, x.window, d)
    out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(shape[0], y.count * y.window, x.count * x.window, heads, d)
    for dim, axis in ((1, y), (2, x)):
        roll = windows.roll(axis)
        rows = (torch.arange(roll.size, device=out.device) - roll.shift) % roll.cycle
        out = out.index_select(dim, rows)
    return out


def _dense(bias: Tensor, windows: Windows) -> Tensor:
    """(heads, queries, keys), gathered from a table (entries, heads)."""
    if bias.ndim == 3:
        return bias
    entries = []
    for axis in (windows.y, windows.x):
        queries = torch.arange(axis.window, device=bias.device)[:, None] * axis.p
        keys = torch.arange(axis.reach, device=bias.device) * axis.q
        entries.append(queries - keys + (axis.reach - 1) * axis.q)
    entry = entries[0][:, None, :, None] * windows.x.offsets + entries[1][None, :, None, :]
    return bias[entry.flatten()].view(windows.queries, windows.keys, -1).permute(2, 0, 1)
