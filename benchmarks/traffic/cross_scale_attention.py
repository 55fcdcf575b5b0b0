"""Bytes of the kernels of windowed cross-scale attention, and of the chain of operators that they stand for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.traffic import Kernels
from msformer_fast.dtypes import sum_dtype
from msformer_fast.ops.precision import input_precision
from msformer_fast.windows import Windows, windows_of

if TYPE_CHECKING:
    from msformer_fast.kernels.cross_scale_attention_table import Tile

#: Channels of a head of the call that is timed.
WIDTH = 32


class _Call:
    """Bytes of what a call reads and writes: maps, a number a query and head, bias, vectors outside the map."""

    def __init__(
        self, images: int, heads: int, channels: int, windows: Windows, dtype: torch.dtype, bias: str | None
    ) -> None:
        y, x = windows.y, windows.x
        self.images, self.heads, self.channels, self.windows, self.dtype = images, heads, channels, windows, dtype
        self.size, self.wide = dtype.itemsize, sum_dtype(dtype).itemsize
        self.queries = images * y.queries * x.queries * heads * channels * self.size
        self.keys = images * y.keys * x.keys * heads * channels * self.size
        self.rows = images * y.queries * x.queries * heads * self.wide
        entries = {None: 0, "table": windows.table, "dense": windows.queries * windows.keys}[bias]
        self.bias, self.table = entries * heads * self.size, bias == "table"
        self.pads = 2 * heads * channels * self.size if windows.pads else 0
        self.count = images * y.count * x.count

    def tile(self, part: str, input_precision: str, target: str | None) -> Tile | None:
        from msformer_fast.kernels.cross_scale_attention_table import tile_of

        windows = self.windows
        keys = windows.y.core * windows.x.core if part == "key" else windows.keys
        return tile_of(part, windows.queries, keys, self.channels, self.dtype, input_precision, target)

    def scores(self, tile: Tile) -> int:
        """Of the scores of a group of windows, in whole tiles."""
        tiles, key_tiles = tile.tiles(self.windows.queries, self.windows.keys)
        return self.heads * tiles * tile.BLOCK_M * key_tiles * tile.BLOCK_N * self.wide


def forward(
    images: int, heads: int, channels: int, windows: Windows, dtype: torch.dtype, *, bias: str | None = None
) -> Kernels:
    """With a bias in the maps' dtype, "table" or "dense"; each key of a halo counted once."""
    call = _Call(images, heads, channels, windows, dtype, bias)
    loaded = call.queries + 2 * call.keys + call.bias + call.pads
    return {"attention_kernel": (1, loaded, call.queries + call.rows)}


def backward(
    images: int,
    heads: int,
    channels: int,
    windows: Windows,
    dtype: torch.dtype,
    *,
    multiprocessors: int,
    bias: str | None = None,
    input_precision: str = "ieee",
    target: str | None = None,
) -> Kernels:
    """Of everything, with vectors outside the map where ``windows.pads``, on a card of that many multiprocessors."""
    from msformer_fast.kernels.cross_scale_attention_table import chunks_of

    call = _Call(images, heads, channels, windows, dtype, bias)
    maps = 2 * (call.queries + call.keys) + call.pads
    pad = 2 * heads * channels * call.wide * windows.pads
    no_halo = windows.keys == windows.y.core * windows.x.core

    fused = call.tile("fused", input_precision, target) if no_halo else None
    tile = fused or call.tile("query", input_precision, target)
    tiles, key_tiles = tile.tiles(windows.queries, windows.keys)
    together = bias is not None and key_tiles == 1
    programs = heads * (1 if fused else tiles)
    share = together or bool(fused and windows.pads)
    _, chunks = chunks_of(-(-call.count // tile.N), programs, share, multiprocessors)

    kernels: Kernels = {}
    if fused:
        expanded = call.scores(tile) if bias else 0
        bias_partials, pad_partials = chunks * expanded, chunks * pad
        if bias:
            kernels["expand_bias_kernel"] = (1, call.bias, expanded)
        stored = call.queries + 2 * call.keys + bias_partials + pad_partials
        kernels["fused_gradient_kernel"] = (1, maps + call.rows + expanded, stored)
    else:
        bias_partials = chunks * call.scores(tile) if together else 0
        result = call.queries if key_tiles > 1 else 0
        loaded = maps + result + call.rows + call.bias
        kernels["query_gradient_kernel"] = (1, loaded, call.queries + 2 * call.rows + bias_partials)

        loaded = maps + 3 * call.rows + call.bias
        if bias and not together:
            tile = call.tile("bias", input_precision, target)
            programs = heads * -(-windows.queries // tile.BLOCK_M) * -(-windows.keys // tile.BLOCK_N)
            _, chunks = chunks_of(call.count, programs, True, multiprocessors)
            bias_partials = chunks * call.scores(tile)
            kernels["bias_gradient_kernel"] = (1, loaded, bias_partials)

        key, y, x = call.tile("key", input_precision, target), windows.y, windows.x
        rims = [2 * -(-axis.halo // axis.core) if windows.pads else 0 for axis in (y, x)]
        count = -(-images * (y.count + rims[0]) * (x.count + rims[1]) // key.N)
        pad_partials = key.tiles(windows.queries, y.core * x.core)[1] * count * pad
        kernels["key_gradient_kernel"] = (1, loaded, 2 * call.keys + pad_partials)

    sums: Counter[str] = Counter()
    if bias:
        sums.update(launches=1, loaded=bias_partials, stored=call.scores(tile))
        if call.table:
            pairs = tile.N * windows.queries * windows.keys * heads * call.wide
            kernels["table_gradient_kernel"] = (1, pairs, call.bias)
    if windows.pads:
        sums.update(launches=1, loaded=pad_partials, stored=call.pads)
    if sums:
        kernels["add_partial_sums_kernel"] = (sums["launches"], sums["loaded"], sums["stored"])
    return kernels


def usual_chain(images: int, heads: int, channels: int, windows: Windows, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the operators around and in the attention of a Swin block, forward, the projections left out.

    Every operator reads its arguments and writes its result. In units of one map, at equal sizes: the roll, the cut
    into windows, their merge and the roll back read one and write one; queries, keys and values are copied out of the
    projection's result, three in, three out; a fused attention reads them and writes one; its heads are put side by
    side again, one in, one out. That is 20. Masks and an expanded bias come on top, and the scores, several times,
    where the attention is not fused. With a second map for the keys, that one is rolled and cut too.
    """
    call = _Call(images, heads, channels, windows, dtype, None)
    queries, keys = call.queries, call.keys
    second = 0 if (windows.y.p, windows.y.q, windows.x.p, windows.x.q) == (1, 1, 1, 1) else keys
    return {
        "roll": 2 * (queries + second),
        "windows": 2 * (queries + second),
        "permute": 2 * (queries + 2 * keys),
        "attention": 2 * queries + 2 * keys,
        "heads": 2 * queries,
        "reverse": 2 * queries,
        "roll back": 2 * queries,
    }


def heads_of(sizes: Sizes) -> int:
    """Heads of the call that is timed."""
    return sizes["channels"] // WIDTH


def windows_of_call(sizes: Sizes) -> Windows:
    """Windows of the call that is timed: shifted by half of their side."""
    map_ = sizes["side"], sizes["side"]
    return windows_of("cross_scale_attention", map_, map_, sizes["window"], 0, sizes["window"] // 2)


def of_call(sizes: Sizes, dtype: torch.dtype, multiprocessors: int, target: str | None) -> dict[str, Kernels]:
    """Of the call that ``benchmarks/cross_scale_attention.py`` times."""
    call = 1, heads_of(sizes), WIDTH, windows_of_call(sizes), dtype
    precision = input_precision(dtype)
    gradients = backward(*call, multiprocessors=multiprocessors, bias="table", input_precision=precision, target=target)
    return {"forward": forward(*call, bias="table"), "backward": gradients}
