"""Speed of windowed attention: ``pytest benchmarks/cross_scale_attention.py --benchmark-only``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from msformer_fast import ops
from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.floors import cross_scale_attention as floors
from msformer_fast.windows import Windows, windows_of

#: Channels of a head.
WIDTH = 32


def heads_of(s: Sizes) -> int:
    return s["channels"] // WIDTH


def windows_of_call(s: Sizes) -> Windows:
    """Shifted by half of their side."""
    map_ = s["side"], s["side"]
    return windows_of("cross_scale_attention", map_, map_, s["window"], 0, s["window"] // 2)


def draw(s: Sizes, rand: Random) -> Inputs:
    """A packed projection and a bias table, as in a shifted Swin block."""
    side, window = s["side"], s["window"]
    heads = heads_of(s)
    qkv = rand(1, side, side, 3, heads, WIDTH)
    return {"qkv": qkv, "bias": rand((2 * window - 1) ** 2, heads)}


def call(inputs: Inputs, s: Sizes, *, backend: str) -> tuple[Tensor, ...]:
    window = s["window"]
    options: dict[str, Any] = dict(shift=window // 2, bias=inputs["bias"], backend=backend)
    return (ops.cross_scale_attention(inputs["qkv"], None, None, window, **options),)


def sdpa(inputs: Inputs, s: Sizes) -> tuple[Tensor, ...]:
    """Pad, roll, cut into windows, PyTorch's fused attention with bias and mask folded into one, and the way back."""
    qkv, side, window = inputs["qkv"], s["side"], s["window"]
    padded = -(-side // window) * window
    qkv = F.pad(qkv, (0, 0) * 3 + (0, padded - side) * 2)
    qkv = torch.roll(qkv, (-(window // 2),) * 2, (1, 2))
    q, k, v = rearrange(qkv, "b (y p) (x q) three h d -> three (b y x) h (p q) d", p=window, q=window)
    folded = _bias(inputs["bias"], window) + _mask(side, padded, window, qkv)[:, None]
    out = F.scaled_dot_product_attention(q, k, v, folded)
    out = rearrange(out, "(y x) h (p q) d -> 1 (y p) (x q) h d", y=padded // window, p=window)
    return (torch.roll(out, (window // 2,) * 2, (1, 2))[:, :side, :side],)


def _bias(table: Tensor, window: int) -> Tensor:
    """(entries, heads) to (heads, queries, keys)."""
    at = torch.arange(window, device=table.device)
    apart = at[:, None] - at + window - 1
    entry = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
    return table[entry.reshape(window**2, window**2)].permute(2, 0, 1)


def _mask(side: int, padded: int, window: int, like: Tensor) -> Tensor:
    """(windows, queries, keys): minus infinity for a key outside the map, or from the other side of the seam."""
    at = torch.roll(torch.arange(padded, device=like.device), -(window // 2))
    past = torch.arange(padded, device=like.device) >= padded - window // 2
    place = 2 * past[:, None].long() + past
    inside = (at < side)[:, None] & (at < side)
    cut = "(y p) (x q) -> (y x) (p q)"
    place, inside = (rearrange(value, cut, p=window, q=window) for value in (place, inside))
    seen = (place[:, :, None] == place[:, None]) & inside[:, None]
    alone = ~seen.any(-1, keepdim=True)  # a padded query: its row is cut off again, and must not be NaN
    return torch.zeros((), dtype=like.dtype, device=like.device).where(seen | alone, -torch.inf)


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    heads = heads_of(s)
    sizes = 1, heads, WIDTH, windows_of_call(s)
    bias = (2 * s["window"] - 1) ** 2 * heads * dtype.itemsize
    return floors.bytes_moved(*sizes, dtype, bias=bias), floors.flops(*sizes)


BENCH = OpBench(
    "cross_scale_attention",
    "shifted window attention of a packed projection with a relative position bias",
    draw,
    call,
    floor,
    rivals={"sdpa": sdpa},
    compiled_rivals=("sdpa",),
    sizes={"window": 8},
    paper=96,
    multiple=WIDTH,
    truth_backend="torch",
    compiled=False,
    plain="sdpa",
)


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
