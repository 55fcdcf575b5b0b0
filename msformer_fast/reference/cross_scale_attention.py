"""Windowed attention of one map to another, window by window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.windows import Axis, Windows


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
    y, x = windows.y, windows.x
    rows_q, rows_k = _rolled(y, windows, q.device)
    columns_q, columns_k = _rolled(x, windows, q.device)
    if bias is not None and bias.ndim == 2:
        bias = _dense(bias, windows)
    results, pixels = [], []
    for i in range(y.count):
        for j in range(x.count):
            q_w, inside_q, past_q = _tokens(q, None, _window(rows_q, i, y.window), _window(columns_q, j, x.window))
            at_k = _window(rows_k, i, y.core, y.halo), _window(columns_k, j, x.core, x.halo)
            k_w, inside_k, past_k = _tokens(k, pad_k, *at_k)
            v_w, _, _ = _tokens(v, pad_v, *at_k)
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
            pixel = _pixels(rows_q, i, y.window, columns_q, j, x.window, q.shape[2])
            pixels.append(torch.where(inside_q, pixel, q.shape[1] * q.shape[2]))
    # Every pixel stands in one window.
    order = torch.cat(pixels).argsort()[: q.shape[1] * q.shape[2]]
    return torch.cat(results, 1)[:, order].unflatten(1, q.shape[1:3])


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


def _tokens(tokens: Tensor, pad: Tensor | None, rows: Rolled, columns: Rolled) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of a window (B, n, heads, d), whether each is one of the map, and its region (n)."""
    (y, past_y), (x, past_x) = rows, columns
    inside = ((y >= 0)[:, None] & (x >= 0)).flatten()
    found = tokens[:, y.clamp(min=0)][:, :, x.clamp(min=0)].flatten(1, 2)
    outside = torch.zeros_like(found) if pad is None else pad
    region = (2 * past_y.long()[:, None] + past_x.long()).flatten()
    return torch.where(inside[:, None, None], found, outside), inside, region


def _pixels(rows: Rolled, i: int, height: int, columns: Rolled, j: int, width: int, size: int) -> Tensor:
    (y, _), (x, _) = _window(rows, i, height), _window(columns, j, width)
    return (y[:, None] * size + x).flatten()


def _dense(table: Tensor, windows: Windows) -> Tensor:
    """(entries, heads) to (heads, queries, keys): one entry for each p * query row - q * key row, the lowest first."""
    offsets = []
    for axis in (windows.y, windows.x):
        queries = torch.arange(axis.window, device=table.device)
        keys = torch.arange(-axis.halo, axis.core + axis.halo, device=table.device)
        difference = axis.p * queries[:, None] - axis.q * keys
        offsets.append(difference - difference.min())
    y, x = offsets
    entry = y[:, None, :, None] * windows.x.offsets + x[None, :, None, :]
    return table[entry.reshape(windows.queries, windows.keys)].permute(2, 0, 1)
