"""Launchers of windowed cross-scale attention. Its kernels and the launch table have files of their own."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from msformer_fast.kernels.cross_scale_attention_gradient_kernels import (
    expand_bias_kernel,
    fused_gradient_kernel,
    table_gradient_kernel,
)
from msformer_fast.kernels.cross_scale_attention_kernels import attention_kernel
from msformer_fast.kernels.cross_scale_attention_split_kernels import (
    bias_gradient_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from msformer_fast.kernels.cross_scale_attention_table import EXPAND, TABLE_GRADIENT, Arguments, Tile, vector_of
from msformer_fast.kernels.partial_sums import add_partial_sums
from msformer_fast.windows import Windows


class Gradients(NamedTuple):
    """Of each argument in its dtype; None for what was not given."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    pad_k: Tensor | None
    pad_v: Tensor | None


def cross_scale_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Windows,
    scale: float,
    seam: float = -math.inf,
    bias: Tensor | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
    input_precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """Result (B, Hq, Wq, heads, d), contiguous, and the logarithms of the sums of its softmax.

    Args:
        q: (B, Hq, Wq, heads, d); k, v: (B, Hk, Wk, heads, d); any strides, read in place; d is at most 128.
        scale: of the products; seam: added to the score of a query and a key on different sides of the seam that the
            roll made in their window; minus infinity hides them from each other.
        bias: a table (windows.table, heads) of relative positions, or dense (heads, windows.queries, windows.keys).
        pad_k, pad_v: (heads, d), at positions outside the map where ``windows.pads``; None is zeros.
        input_precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.

    Returns:
        The result, and (B, heads, Hq, Wq) in float32 or better, to base 2: times log(2) is natural. A query without a
        key has zeros and minus infinity.
    """
    shared = Arguments(q, k, v, windows, scale, seam, bias, (pad_k, pad_v), input_precision)
    B, H, W, heads, _ = q.shape
    out, lse = q.new_empty(q.shape), shared.new(B, heads, H, W)
    tile = shared.tile("forward")
    tiles, key_tiles = tile.tiles(windows.queries, windows.keys)
    groups = triton.cdiv(shared.count, tile.N)
    chunk, chunks = shared.chunks(groups, heads * tiles, bias is not None and key_tiles == 1)
    if out.numel():
        attention_kernel[(heads * tiles * chunks,)](
            *shared.tensors,
            out,
            lse,
            *shared.strides,
            *shared.bias_steps,
            *shared.sizes,
            shared.count,
            heads,
            chunk,
            groups,
            *shared.numbers,
            VEC=vector_of(q, k, v),
            **shared.constants,
            **tile.settings,
        )
    return out, lse


def cross_scale_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    windows: Windows,
    scale: float,
    seam: float = -math.inf,
    bias: Tensor | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
    input_precision: str = "ieee",
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Gradients:
    """Gradients from that of the result, of any strides; ``out`` and ``lse`` are those of the forward.

    Args:
        into: what the gradients of q, k and v are written to, of any strides, as views of one packed tensor.
    """
    shared = Arguments(q, k, v, windows, scale, seam, bias, (pad_k, pad_v), input_precision)
    dq, dk, dv = into if into is not None else (t.new_empty(t.shape) for t in (q, k, v))
    if not out.numel():
        rest = (None if t is None else torch.zeros_like(t) for t in (bias, pad_k, pad_v))
        return Gradients(dq, dk, dv, *rest)
    vectors = dict(VEC=vector_of(q, k, v, dq, dk, dv), GVEC=vector_of(grad))
    strides, dk_strides = (*shared.strides, *grad.stride()), (*dk.stride(), *dv.stride())
    fused = shared.tile("fused") if windows.keys == windows.y.core * windows.x.core else None
    tile = fused or shared.tile("query")
    tiles, key_tiles = tile.tiles(windows.queries, windows.keys)
    groups = triton.cdiv(shared.count, tile.N)
    sums_bias = bias is not None and key_tiles == 1
    programs = shared.heads * (1 if fused else tiles)
    chunk, chunks = shared.chunks(groups, programs, sums_bias or bool(fused and windows.pads))
    dbias = shared.bias_slots(chunks, tile) if sums_bias else lse
    dpad = shared.new(chunks, 2, shared.heads, shared.D) if fused and windows.pads else lse
    sizes = (*shared.sizes, shared.count, shared.heads, chunk, groups, *shared.numbers)
    if fused:
        q, k, v, _, *pads = shared.tensors
        fused_gradient_kernel[(programs * chunks,)](
            q,
            k,
            v,
            lse if bias is None else _expand_bias(shared, tile, bias),
            *pads,
            lse,
            grad,
            dq,
            dk,
            dv,
            dbias,
            dpad,
            *strides,
            *dq.stride(),
            *dk_strides,
            *sizes,
            **vectors,
            **shared.without("HY", "HX"),
            **tile.settings,
        )
    else:
        delta = shared.new(2, *lse.shape)
        query_gradient_kernel[(programs * chunks,)](
            *shared.tensors,
            out,
            lse,
            grad,
            dq,
            delta,
            dbias,
            *strides,
            *dq.stride(),
            *shared.bias_steps,
            *sizes,
            lse.numel(),
            DBIAS=sums_bias,
            **vectors,
            **shared.constants,
            **tile.settings,
        )
        if bias is not None and not sums_bias:
            tile = shared.tile("bias")
            dbias = _bias_gradient(shared, tile, lse, grad, delta, strides, vectors)
        dpad = _key_gradients(shared, lse, grad, delta, dk, dv, strides, vectors)
    d_bias = None if bias is None else _sum_bias(dbias, tile, bias, windows)
    if windows.pads:
        d_pads = _sum_pads(dpad, pad_k, pad_v)
    else:
        d_pads = [None if pad is None else torch.zeros_like(pad) for pad in (pad_k, pad_v)]
    return Gradients(dq, dk, dv, d_bias, *d_pads)


def _expand_bias(shared: Arguments, tile: Tile, bias: Tensor) -> Tensor:
    """Biases of a tile of each head."""
    tiles = shared.new(shared.heads, tile.BLOCK_M, tile.BLOCK_N)
    expand_bias_kernel[(shared.heads,)](
        bias,
        tiles,
        *shared.bias_steps,
        WX=shared.windows.x.window,
        KX=shared.windows.x.core,
        SQ=shared.windows.queries,
        SK=shared.windows.keys,
        **{**tile.settings, **EXPAND},
    )
    return tiles


def _bias_gradient(
    shared: Arguments,
    tile: Tile,
    lse: Tensor,
    grad: Tensor,
    delta: Tensor,
    strides: tuple[int, ...],
    vectors: dict[str, int],
) -> Tensor:
    """Partial sums of the scores' gradients where the keys of a window take several tiles."""
    settings = tile.settings
    del settings["N"]
    programs = shared.heads * math.prod(tile.tiles(shared.windows.queries, shared.windows.keys))
    chunk, chunks = shared.chunks(shared.count, programs, True)
    dbias = shared.bias_slots(chunks, tile)
    bias_gradient_kernel[(programs * chunks,)](
        *shared.tensors,
        lse,
        grad,
        delta,
        dbias,
        *strides,
        *shared.bias_steps,
        *shared.sizes,
        shared.count,
        shared.heads,
        chunk,
        shared.count,
        *shared.numbers,
        lse.numel(),
        **vectors,
        **shared.without("BIAS"),
        **settings,
    )
    return dbias


def _key_gradients(
    shared: Arguments,
    lse: Tensor,
    grad: Tensor,
    delta: Tensor,
    dk: Tensor,
    dv: Tensor,
    strides: tuple[int, ...],
    vectors: dict[str, int],
) -> Tensor:
    """dk and dv; what falls outside the map in partial sums (slots, 2, heads, d)."""
    tile, (y, x), pads = shared.tile("key"), shared.axes, shared.windows.pads
    rim_y, rim_x = (triton.cdiv(axis.halo, axis.core) if pads else 0 for axis in (y, x))
    windows = shared.B * (y.count + 2 * rim_y) * (x.count + 2 * rim_x)
    programs = tile.tiles(shared.windows.queries, y.core * x.core)[1] * triton.cdiv(windows, tile.N)
    dpad = shared.new(programs, 2, shared.heads, shared.D) if pads else lse
    key_gradient_kernel[(shared.heads * programs,)](
        *shared.tensors,
        lse,
        grad,
        dk,
        dv,
        delta,
        dpad,
        *strides,
        *dk.stride(),
        *dv.stride(),
        *shared.bias_steps,
        *shared.sizes,
        windows,
        shared.heads,
        *shared.numbers,
        lse.numel(),
        **vectors,
        **shared.constants,
        **tile.settings,
    )
    return dpad


def _sum_bias(parts: Tensor, tile: Tile, bias: Tensor, windows: Windows) -> Tensor:
    """Gradient of a bias from partial sums in tiles (slots, heads, ..., ...) of the windows of a group."""
    tiles = torch.empty_like(parts[0])
    add_partial_sums(parts, None, tiles, None)
    queries, keys = windows.queries, windows.keys
    if bias.ndim == 3:
        found = [
            tiles[:, slot * queries : (slot + 1) * queries, slot * keys : (slot + 1) * keys] for slot in range(tile.N)
        ]
        return (torch.stack(found).sum(0) if tile.N > 1 else found[0]).to(bias.dtype).contiguous()
    y, x = windows.y, windows.x
    rows, heads = bias.shape
    d_table = bias.new_empty(bias.shape)
    table_gradient_kernel[(triton.cdiv(rows, TABLE_GRADIENT["BLOCK"]), heads)](
        tiles,
        d_table,
        tiles.shape[1],
        tiles.shape[2],
        heads,
        rows,
        WY=y.window,
        WX=x.window,
        RY=y.reach,
        RX=x.reach,
        PY=y.p,
        PX=x.p,
        QY=y.q,
        QX=x.q,
        N=tile.N,
        **TABLE_GRADIENT,
    )
    return d_table


def _sum_pads(parts: Tensor, pad_k: Tensor | None, pad_v: Tensor | None) -> list[Tensor | None]:
    """Gradients of the vectors outside the map from partial sums (slots, 2, heads, d)."""
    shape = parts.shape[2:]
    both = [parts.new_empty(shape) if pad is None else pad.new_empty(shape) for pad in (pad_k, pad_v)]
    add_partial_sums(parts, None, *both)
    return [None if pad is None else found for pad, found in zip((pad_k, pad_v), both, strict=True)]
