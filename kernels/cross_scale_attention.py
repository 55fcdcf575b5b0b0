"""Launchers of windowed cross-scale attention. Kernels and launch table have files of their own."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.cross_scale_attention_bias_kernels import (
    bias_gradient_kernel,
    expand_bias_kernel,
    table_gradient_kernel,
)
from msformer_fast.kernels.cross_scale_attention_gradient_kernels import (
    fused_gradient_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from msformer_fast.kernels.cross_scale_attention_kernels import attention_kernel
from msformer_fast.kernels.cross_scale_attention_table import EXPAND, TABLE_GRADIENT, Tile, chunks_of, tile_of
from msformer_fast.kernels.launch import accumulator, launch, multiprocessors_of, padded, target_of, vector_length
from msformer_fast.kernels.partial_sums import add_partial_sums
from msformer_fast.limits import CROSS_SCALE_ATTENTION_HEAD_DIM
from msformer_fast.windows import ONE_ROW, Windows

NEVER = 2**30  # rolled row past which nothing is, where there is no seam


class Gradients(NamedTuple):
    """Of each argument in its dtype; None for what was not given."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    pad_k: Tensor | None
    pad_v: Tensor | None


class _Call:
    """The sizes of one call, and the arguments that its launches share, by name."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        windows: Windows,
        scale: float,
        seam: float,
        bias: Tensor | None,
        pads: tuple[Tensor | None, Tensor | None],
        input_precision: str,
    ) -> None:
        self.B, *self.sizes, self.heads, self.D = q.shape
        if self.D > CROSS_SCALE_ATTENTION_HEAD_DIM:
            raise ValueError(
                f"cross_scale_attention: {self.D} channels a head; at most {CROSS_SCALE_ATTENTION_HEAD_DIM} are "
                "supported"
            )
        self.windows, self.dtype, self.device, self.precision = windows, q.dtype, q.device, input_precision
        self.count = self.B * windows.count
        self.three = windows.axes if len(windows.axes) == 3 else (ONE_ROW, *windows.axes)
        z, y, x = self.three

        # What a kernel does not read, because there is no bias, or no position outside the map, is q.
        pad_k, pad_v = (
            q if not windows.pads else q.new_zeros(self.heads, self.D) if pad is None else pad.contiguous()
            for pad in pads
        )
        soft = math.isfinite(seam)
        q, k, v = folded(q), folded(k), folded(v)
        self.maps = q, k, v
        self.arguments: dict[str, Any] = dict(
            p_q=q, p_k=k, p_v=v, p_bias=q if bias is None else bias, p_pad_k=pad_k, p_pad_v=pad_v,
            **_strides("q", q), **_strides("k", k), **_strides("v", v),
            **_bias_steps(bias, windows), **_axes(windows),
            nz=z.count if len(windows.axes) == 3 else None, ny=y.count, nx=x.count,
            windows=self.count, heads=self.heads, AXES=len(windows.axes),
            **_split("scale", scale), **_split("seam", seam if soft else 0.0),
            D=self.D, BLOCK_D=padded(self.D), WINDOW_Z=z.window, WINDOW_Y=y.window, WINDOW_X=x.window,
            CORE_Z=z.core, CORE_Y=y.core, CORE_X=x.core, HALO_Z=z.halo, HALO_Y=y.halo, HALO_X=x.halo,
            BIAS=bias is not None, PAD=windows.pads, SOFT=soft,
            ACC=accumulator(q.dtype), PREC=input_precision,
        )  # fmt: skip

    def tile(self, part: str) -> Tile:
        """Tile of a kernel that every card has."""
        windows = self.windows
        keys = windows.core if part == "key" else windows.keys
        sizes = windows.queries, keys, self.D
        tile = tile_of(part, *sizes, self.dtype, self.precision, target_of(self.device), len(windows.axes))
        assert tile is not None, f"no tile of {part!r}: the launch table has a row for every width"
        return tile

    def fused_tile(self) -> Tile | None:
        """Tile of the kernel of all gradients; None where the card has none, or the keys have a halo."""
        windows, target = self.windows, target_of(self.device)
        if windows.keys != windows.core:
            return None
        sizes = windows.queries, windows.keys, self.D
        return tile_of("fused", *sizes, self.dtype, self.precision, target, len(windows.axes))

    def chunks(self, groups: int, programs: int, share: bool) -> tuple[int, int]:
        """Groups that a program goes through, and how many such chunks there are."""
        return chunks_of(groups, programs, share, multiprocessors_of(self.device))

    def new(self, *shape: int) -> Tensor:
        """An empty tensor in the dtype of sums."""
        return torch.empty(shape, dtype=sum_dtype(self.dtype), device=self.device)

    def bias_partials(self, chunks: int, tile: Tile) -> Tensor:
        """For sums of the gradients of a group's scores, in whole tiles, one of each chunk."""
        tiles, key_tiles = tile.tiles(self.windows.queries, self.windows.keys)
        return self.new(chunks, self.heads, tiles * tile.BLOCK_M, key_tiles * tile.BLOCK_N)


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
    """Result (B, [Dq,] Hq, Wq, heads, d), contiguous, and the logarithms of the sums of its softmax.

    Args:
        q: (B, [Dq,] Hq, Wq, heads, d); k, v: (B, [Dk,] Hk, Wk, heads, d); any strides, read in place, but volumes whose
            depth and height do not fold into one axis are copied; d is at most 128.
        scale: of the products; seam: added to the score of a query and a key on different sides of the seam that the
            roll made in their window; minus infinity hides them from each other.
        bias: a table (windows.table, heads) of relative positions, or dense (heads, windows.queries, windows.keys).
        pad_k, pad_v: (heads, d), at positions outside the map where ``windows.pads``; None is zeros.
        input_precision: of float32 products: ``"ieee"`` or ``"tf32"``.

    Returns:
        The result, and (B, heads, [Dq,] Hq, Wq) in float32 or better, to base 2: times log(2) is natural.
        A query without a key has zeros and minus infinity.
    """
    call = _Call(q, k, v, windows, scale, seam, bias, (pad_k, pad_v), input_precision)
    heads = call.heads
    out, lse = q.new_empty(q.shape), call.new(call.B, heads, *call.sizes)
    if not out.numel():
        return out, lse

    tile = call.tile("forward")
    tiles, key_tiles = tile.tiles(windows.queries, windows.keys)
    groups = triton.cdiv(call.count, tile.N)
    chunk, chunks = call.chunks(groups, heads * tiles, bias is not None and key_tiles == 1)
    launch(
        attention_kernel, (heads * tiles * chunks,), call.arguments, tile.settings,
        p_out=out, p_lse=lse, chunk=chunk, groups=groups, VEC=_vector_of(*call.maps),
    )  # fmt: skip
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
        into: what the gradients of q, k and v are written to, of any strides (of a volume such that depth and height
            fold into one axis), as views of one packed tensor.
    """
    call = _Call(q, k, v, windows, scale, seam, bias, (pad_k, pad_v), input_precision)
    dq, dk, dv = into if into is not None else (t.new_empty(t.shape) for t in (q, k, v))
    if not out.numel():
        rest = (None if t is None else torch.zeros_like(t) for t in (bias, pad_k, pad_v))
        return Gradients(dq, dk, dv, *rest)

    grad = folded(grad)
    folded_dq, folded_dk, folded_dv = (t.view(_folded_shape(t)) for t in (dq, dk, dv))

    # What the kernels of a backward take beyond the forward's; each knows some of it.
    gradients: dict[str, Any] = dict(
        p_lse=lse, p_g=grad, p_dq=dq, p_dk=dk, p_dv=dv,
        **_strides("g", grad), **_strides("dq", folded_dq), **_strides("dk", folded_dk), **_strides("dv", folded_dv),
        VEC=_vector_of(*call.maps, folded_dq, folded_dk, folded_dv), GVEC=_vector_of(grad),
    )  # fmt: skip
    fused = call.fused_tile()
    tile = fused or call.tile("query")
    tiles, key_tiles = tile.tiles(windows.queries, windows.keys)
    groups = triton.cdiv(call.count, tile.N)
    sums_bias = bias is not None and key_tiles == 1
    programs = call.heads * (1 if fused else tiles)
    chunk, chunks = call.chunks(groups, programs, sums_bias or bool(fused and windows.pads))
    grid = (programs * chunks,)

    # Where a kernel leaves no partial sums it gets lse instead, and does not touch it.
    dbias = call.bias_partials(chunks, tile) if sums_bias else lse
    if fused:
        dpad = call.new(chunks, 2, call.heads, call.D) if windows.pads else lse
        tile_bias = lse if bias is None else _expand_bias(call, tile)
        launch(
            fused_gradient_kernel, grid, call.arguments, gradients, tile.settings,
            p_bias=tile_bias, p_dbias=dbias, p_dpad=dpad, chunk=chunk, groups=groups,
        )  # fmt: skip
    else:
        gradients |= dict(p_delta=call.new(2, *lse.shape), delta_size=lse.numel())
        launch(
            query_gradient_kernel, grid, call.arguments, gradients, tile.settings,
            p_out=out, p_dbias=dbias, chunk=chunk, groups=groups, DBIAS=sums_bias,
        )  # fmt: skip
        if bias is not None and not sums_bias:
            tile = call.tile("bias")
            dbias = _bias_gradient(call, tile, gradients)
        dpad = _key_gradients(call, gradients)

    d_bias = None if bias is None else _sum_bias(dbias, tile, bias, call)
    if windows.pads:
        d_pads = _sum_pads(dpad, pad_k, pad_v)
    else:
        d_pads = [None if pad is None else torch.zeros_like(pad) for pad in (pad_k, pad_v)]
    return Gradients(dq, dk, dv, d_bias, *d_pads)


def _expand_bias(call: _Call, tile: Tile) -> Tensor:
    """Biases (heads, BLOCK_M, BLOCK_N) of a tile of each head."""
    tiles = call.new(call.heads, tile.BLOCK_M, tile.BLOCK_N)
    launch(
        expand_bias_kernel, (call.heads,), call.arguments, tile.settings, EXPAND,
        p_tiles=tiles, QUERIES=call.windows.queries, KEYS=call.windows.keys,
    )  # fmt: skip
    return tiles


def _bias_gradient(call: _Call, tile: Tile, gradients: dict[str, Any]) -> Tensor:
    """Partial sums of the scores' gradients where the keys of a window take several tiles."""
    programs = call.heads * math.prod(tile.tiles(call.windows.queries, call.windows.keys))
    chunk, chunks = call.chunks(call.count, programs, True)
    dbias = call.bias_partials(chunks, tile)
    launch(
        bias_gradient_kernel, (programs * chunks,), call.arguments, gradients, tile.settings,
        p_dbias=dbias, chunk=chunk, groups=call.count,
    )  # fmt: skip
    return dbias


def _key_gradients(call: _Call, gradients: dict[str, Any]) -> Tensor:
    """dk and dv; what falls outside the map in partial sums (partials, 2, heads, d)."""
    tile, pads = call.tile("key"), call.windows.pads
    rims = [triton.cdiv(axis.halo, axis.core) if pads else 0 for axis in call.windows.axes]
    windows = call.B * math.prod(axis.count + 2 * rim for axis, rim in zip(call.windows.axes, rims, strict=True))
    programs = tile.tiles(call.windows.queries, call.windows.core)[1] * triton.cdiv(windows, tile.N)
    dpad = call.new(programs, 2, call.heads, call.D) if pads else gradients["p_lse"]
    launch(
        key_gradient_kernel, (call.heads * programs,), call.arguments, gradients, tile.settings,
        p_dpad=dpad, windows=windows,
    )  # fmt: skip
    return dpad


def _sum_bias(partials: Tensor, tile: Tile, bias: Tensor, call: _Call) -> Tensor:
    """Gradient of a bias from partial sums in tiles (partials, heads, ..., ...) of the windows of a group."""
    tiles = partials[0]
    if len(partials) > 1:
        tiles = torch.empty_like(tiles)
        add_partial_sums(partials, None, tiles, None)
    if bias.ndim == 3:
        queries, keys = call.windows.queries, call.windows.keys
        found = [
            tiles[:, slot * queries : (slot + 1) * queries, slot * keys : (slot + 1) * keys] for slot in range(tile.N)
        ]
        return (torch.stack(found).sum(0) if tile.N > 1 else found[0]).to(bias.dtype).contiguous()

    z, y, x = call.three
    rows, heads = bias.shape
    d_table = bias.new_empty(bias.shape)
    launch(
        table_gradient_kernel, (triton.cdiv(rows, TABLE_GRADIENT["BLOCK"]), heads), TABLE_GRADIENT,
        p_tiles=tiles, p_dtable=d_table, tile_rows=tiles.shape[1], tile_columns=tiles.shape[2], heads=heads, rows=rows,
        AXES=len(call.windows.axes), WINDOW_Z=z.window, WINDOW_Y=y.window, WINDOW_X=x.window,
        REACH_Z=z.reach, REACH_Y=y.reach, REACH_X=x.reach, P_Z=z.p, P_Y=y.p, P_X=x.p, Q_Z=z.q, Q_Y=y.q, Q_X=x.q,
        N=tile.N,
    )  # fmt: skip
    return d_table


def _sum_pads(partials: Tensor, pad_k: Tensor | None, pad_v: Tensor | None) -> list[Tensor | None]:
    """Gradients of the vectors outside the map from partial sums (partials, 2, heads, d)."""
    shape = partials.shape[2:]
    both = [partials.new_empty(shape) if pad is None else pad.new_empty(shape) for pad in (pad_k, pad_v)]
    add_partial_sums(partials, None, *both)
    return [None if pad is None else found for pad, found in zip((pad_k, pad_v), both, strict=True)]


def folded(x: Tensor) -> Tensor:
    """A map as it is; a volume (B, D, H, W, heads, d) as a map of D * H rows, a view wherever strides allow."""
    return x.flatten(1, 2) if x.ndim == 6 else x


def _folded_shape(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0], -1, *x.shape[-3:])


def _strides(name: str, x: Tensor) -> dict[str, int]:
    """Strides of a map (B, H, W, heads, d) as kernels name them."""
    return {f"stride_{name}{axis}": stride for axis, stride in zip("byxhd", x.stride(), strict=True)}


def _axes(windows: Windows) -> dict[str, int | None]:
    """All axes of the queries' and of the keys' map as kernels name them."""
    found: dict[str, int | None] = {}
    names = "zyx"[-len(windows.axes) :]
    for side in "qk":
        found |= {f"{of}_{side}z": None for of in ("size", "cycle", "shift", "seam")}
        for name, axis in zip(names, windows.axes, strict=True):
            roll = windows.roll(axis, of_keys=side == "k")
            found[f"size_{side}{name}"] = roll.size
            found[f"cycle_{side}{name}"] = roll.cycle
            found[f"shift_{side}{name}"] = roll.shift
            found[f"seam_{side}{name}"] = NEVER if roll.seam is None else roll.seam
    return found


def _bias_steps(bias: Tensor | None, windows: Windows) -> dict[str, int | None]:
    """Where the lowest query and key lie in a bias; its steps along heads, along the axes of queries and of keys."""
    steps: dict[str, int | None] = {"bias_qz": None, "bias_kz": None}
    table, start = bias is not None and bias.ndim == 2, 0
    of_head, of_q, of_k = 0, 0, 0
    if bias is not None:
        strides = bias.stride()
        of_head, of_q, of_k = (strides[1], strides[0], strides[0]) if table else strides
    for name, axis in zip("xyz", reversed(windows.axes), strict=False):
        if table:
            steps[f"bias_q{name}"], steps[f"bias_k{name}"] = axis.p * of_q, -axis.q * of_k
            start += axis.q * (axis.reach - 1) * of_k
            of_q, of_k = of_q * axis.offsets, of_k * axis.offsets
        else:
            steps[f"bias_q{name}"], steps[f"bias_k{name}"] = of_q, of_k
            of_q, of_k = of_q * axis.window, of_k * axis.reach
    return steps | {"bias_start": start, "bias_h": of_head}


def _split(name: str, number: float) -> dict[str, float]:
    """A float64 as two float32, which is what a kernel's numbers are."""
    high = float(torch.tensor(number, dtype=torch.float32))
    return {name: high, f"{name}_rest": number - high}


def _vector_of(*tensors: Tensor) -> int:
    """Elements that a 128-bit access to rows of channels may take."""
    outer = [stride for t in tensors for stride in t.stride()[:-1]]
    return vector_length(tensors[0].dtype, *outer)
