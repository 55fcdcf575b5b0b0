"""Windowed attention of one map to another, window by window."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.windows import Axis, Windows, product


def cross_scale_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Windows,
    scale: float,
    seam: float = -torch.inf,
    bias: Tensor | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
) -> Tensor:
    """See :func:`msformer_fast.ops.cross_scale_attention`."""
    rolled = [_rolled(axis, windows, q.device) for axis in windows.axes]
    sizes = q.shape[1:-2]
    if bias is not None and bias.ndim == 2:
        bias = _dense(bias, windows)
    results, pixels = [], []
    for place in itertools.product(*(range(axis.count) for axis in windows.axes)):
        each = list(zip(rolled, place, windows.axes, strict=True))
        at_q = [_window(rows, i, axis.window) for (rows, _), i, axis in each]
        at_k = [_window(rows, i, axis.core, axis.halo) for (_, rows), i, axis in each]
        q_w, inside_q, past_q = _tokens(q, None, at_q)
        k_w, inside_k, past_k = _tokens(k, pad_k, at_k)
        v_w, _, _ = _tokens(v, pad_v, at_k)
        scores = torch.einsum("bqhd,bkhd->bhqk", q_w, k_w) * scale
        if bias is not None:
            scores = scores + bias
        apart = past_q[:, None] != past_k
        seen = inside_k | (windows.outside == "pad")
        if seam == -torch.inf:
            seen = seen & ~apart
        else:
            scores = torch.where(apart, scores + seam, scores)
            seen = seen.expand_as(apart)
        some = seen.any(1, keepdim=True)  # without any key: zeros, and no gradient
        p = torch.softmax(scores.masked_fill(~seen & some, -torch.inf), -1) * some
        result = torch.einsum("bhqk,bkhd->bqhd", p, v_w.to(p.dtype))
        results.append(result)
        # Behind every pixel what lies outside; to leave it out here would be a size that depends on data.
        pixels.append(torch.where(inside_q, _pixels(at_q, sizes), product(sizes)))
    # Every pixel stands in one window.
    order = torch.cat(pixels).argsort()[: product(sizes)]
    return torch.cat(results, 1)[:, order].unflatten(1, sizes)


Rolled = tuple[Tensor, Tensor]  # row of the map (-1: none), and whether it lies past the seam


def _rolled(axis: Axis, windows: Windows, device: torch.device) -> tuple[Rolled, Rolled]:
    """Of queries and keys: the rolled axis, the keys' with its halo at both ends."""
    rolled = []
    sizes = ((axis.queries, axis.window, axis.shift, 0), (axis.keys, axis.core, axis.key_shift, axis.halo))
    for size, unit, shift, halo in sizes:
        ends = 0, axis.count * unit - size
        row, past = torch.arange(size, device=device), torch.zeros(axis.count * unit, dtype=torch.bool, device=device)
        if windows.order == "pad_roll":
            row = torch.roll(F.pad(row, ends, value=-1), -shift)
        else:
            row = F.pad(torch.roll(row, -shift), ends, value=-1)
        if shift and windows.order == "roll_pad" and windows.outside == "ignore":
            past = F.pad(torch.roll(torch.arange(size, device=device) < shift % size, -shift), ends)
        elif shift:
            past[-shift:] = True  # as Swin counts: the last `shift` rows, whatever stands there
        rolled.append(
            (F.pad(row, (halo, halo), value=-1), F.pad(past[None].double(), (halo, halo), mode="replicate")[0] > 0)
        )
    return rolled[0], rolled[1]


def _window(rolled: Rolled, index: int, unit: int, halo: int = 0) -> Rolled:
    span = slice(index * unit, (index + 1) * unit + 2 * halo)
    return rolled[0][span], rolled[1][span]


def _tokens(tokens: Tensor, pad: Tensor | None, at: Sequence[Rolled]) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of a window (B, n, heads, d), whether each is one of the map, and its region (n)."""
    inside = torch.ones(1, dtype=torch.bool, device=tokens.device)
    region = torch.zeros(1, dtype=torch.long, device=tokens.device)
    found = tokens
    for number, (row, past) in enumerate(at):
        inside = (inside[:, None] & (row >= 0)).flatten()
        region = (2 * region[:, None] + past.long()).flatten()
        found = found.index_select(1 + number, row.clamp(min=0))
    found = found.flatten(1, len(at))
    outside = torch.zeros_like(found) if pad is None else pad
    return torch.where(inside[:, None, None], found, outside), inside, region


def _pixels(at: Sequence[Rolled], sizes: Sequence[int]) -> Tensor:
    """Number of every token of a window in the map, rows first."""
    pixel = torch.zeros(1, dtype=torch.long, device=at[0][0].device)
    for (row, _), size in zip(at, sizes, strict=True):
        pixel = (pixel[:, None] * size + row).flatten()
    return pixel


def _dense(table: Tensor, windows: Windows) -> Tensor:
    """(entries, heads) to (heads, queries, keys): one entry for each p * query row - q * key row, the lowest first."""
    entry = torch.zeros(1, 1, dtype=torch.long, device=table.device)
    for axis in windows.axes:
        queries = torch.arange(axis.window, device=table.device)
        keys = torch.arange(-axis.halo, axis.core + axis.halo, device=table.device)
        difference = axis.p * queries[:, None] - axis.q * keys
        offset = difference - difference.min()
        entry = entry[:, None, :, None] * axis.offsets + offset[:, None, :]
        entry = entry.flatten(2).flatten(0, 1)
    return table[entry].permute(2, 0, 1)
