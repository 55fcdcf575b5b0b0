"""Launch settings of windowed cross-scale attention, and the arguments that its launches share."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.launch import (
    Row,
    accumulator,
    choose,
    compile_options,
    multiprocessors_of,
    padded,
    product_kind,
    target_of,
    vector_length,
)
from msformer_fast.windows import Windows

LIMIT_D = 128
SMALL = 64  # tokens: windows of no more go into one tile
#: Programs a multiprocessor that share the windows, where each reads the bias once or leaves a partial sum.
PROGRAMS = 4
NEVER = 2**30  # rolled row past which nothing is, where there is no seam

# (kernel, kind of product, windows): {(targets, largest padded D): (queries, keys, num_warps)}, tiles at most that
# large; "" is any target. "small" windows have at most 64 queries and 64 keys; a part without rows for them has those
# of "large". "fused" gives all gradients; where it has no row, the kernels of the other parts do.
# Found by compiling ahead of time: no spill. Nobody has timed them.
TABLE: dict[tuple[str, str, str], dict[tuple[str, int], Row]] = {
    ("forward", "ieee", "small"): {
        ("", 32): (64, 64, 8),
        ("", 64): (32, 32, 4),
        ("sm_90", 64): (32, 16, 4),
        ("", 128): (16, 32, 4),
    },
    ("forward", "tf32", "small"): {
        ("", 32): (64, 64, 4),
        ("sm_90", 32): (64, 64, 8),
        ("", 64): (64, 32, 4),
        ("", 128): (32, 32, 4),
        ("sm_90", 128): (32, 32, 8),
    },
    ("forward", "half", "small"): {("", 64): (64, 64, 4), ("sm_90", 64): (64, 64, 8), ("", 128): (32, 32, 4)},
    ("forward", "ieee", "large"): {("", 64): (32, 32, 4), ("sm_90", 64): (32, 16, 4), ("", 128): (16, 32, 4)},
    ("forward", "tf32", "large"): {("sm_90", 16): (64, 32, 8), ("", 64): (64, 32, 4), ("", 128): (32, 32, 4)},
    ("forward", "half", "large"): {
        ("sm_80", 16): (64, 32, 4),
        ("", 32): (64, 64, 4),
        ("", 64): (64, 32, 4),
        ("", 128): (32, 32, 4),
    },
    ("fused", "ieee", "small"): {("gfx942", 64): (64, 64, 4)},
    ("fused", "tf32", "small"): {("gfx942", 64): (64, 64, 4)},
    ("fused", "half", "small"): {
        ("", 32): (64, 64, 4),
        ("sm_90 sm_100", 32): (64, 64, 8),
        ("gfx942", 64): (64, 64, 4),
    },
    ("query", "ieee", "small"): {
        ("", 32): (32, 64, 8),
        ("sm_90", 32): (16, 64, 8),
        ("", 64): (16, 64, 8),
        ("sm_80", 64): (16, 64, 8),
        ("sm_90", 64): (32, 32, 8),
        ("", 128): (32, 32, 8),
        ("sm_80", 128): (16, 16, 8),
        ("gfx942", 128): (32, 32, 4),
    },
    ("query", "tf32", "small"): {("", 64): (16, 64, 4), ("", 128): (32, 16, 4)},
    ("query", "half", "small"): {("", 32): (64, 64, 4), ("", 64): (32, 64, 8), ("", 128): (32, 32, 4)},
    ("query", "ieee", "large"): {
        ("", 64): (32, 16, 4),
        ("sm_80", 32): (32, 16, 8),
        ("sm_80", 64): (32, 16, 4),
        ("", 128): (32, 32, 8),
        ("sm_80", 128): (16, 16, 8),
        ("gfx942", 128): (32, 32, 4),
    },
    ("query", "tf32", "large"): {
        ("", 64): (64, 32, 4),
        ("sm_90", 64): (64, 32, 8),
        ("sm_86 sm_89", 16): (32, 32, 4),
        ("sm_86 sm_89", 32): (64, 32, 4),
        ("sm_86 sm_89", 64): (32, 16, 4),
        ("", 128): (32, 16, 4),
    },
    ("query", "half", "large"): {
        ("", 64): (64, 32, 4),
        ("sm_90", 32): (64, 32, 4),
        ("sm_90", 64): (64, 32, 8),
        ("", 128): (32, 32, 4),
    },
    ("bias", "ieee", "large"): {("", 64): (32, 16, 4), ("", 128): (16, 16, 4)},
    ("bias", "tf32", "large"): {
        ("", 32): (64, 32, 4),
        ("sm_80", 32): (64, 32, 8),
        ("sm_120", 32): (64, 32, 4),
        ("", 64): (32, 16, 4),
        ("sm_80", 64): (32, 16, 4),
        ("sm_120", 64): (64, 32, 8),
        ("", 128): (32, 16, 4),
        ("sm_80", 128): (16, 16, 4),
    },
    ("bias", "half", "large"): {("", 128): (64, 32, 4)},
    ("key", "ieee", "large"): {
        ("", 32): (32, 32, 8),
        ("gfx942", 32): (32, 32, 4),
        ("sm_86 sm_89", 32): (16, 32, 4),
        ("sm_80", 32): (16, 16, 4),
        ("sm_90", 16): (32, 32, 8),
        ("sm_90", 32): (16, 32, 4),
        ("", 64): (16, 16, 4),
        ("sm_90", 64): (16, 16, 8),
        ("gfx942", 64): (16, 32, 4),
        ("", 128): (16, 16, 4),
        ("sm_90", 128): (16, 16, 8),
    },
    ("key", "tf32", "large"): {
        ("sm_86 sm_89", 16): (32, 32, 8),
        ("sm_120", 16): (16, 32, 4),
        ("", 64): (32, 32, 4),
        ("sm_80", 32): (32, 32, 4),
        ("sm_80", 64): (16, 32, 4),
        ("", 128): (16, 16, 4),
    },
    ("key", "half", "large"): {("", 64): (64, 32, 4), ("", 128): (16, 32, 4)},
}
# Few large tiles of many windows: what a program costs in the interpreter is its operations, whatever their size.
# Smaller where partial sums are stored in whole tiles, which others add up.
INTERPRETER = {"forward": (256, 256, 4), "key": (256, 256, 4), "": (64, 64, 4)}
EXPAND = compile_options(num_warps=8)
TABLE_GRADIENT = dict(BLOCK_A=64, BLOCK=16, **compile_options(num_warps=4))


class Tile(NamedTuple):
    """Blocks and options of one launch; ``N`` windows share a tile, or one has several."""

    BLOCK_M: int
    BLOCK_N: int
    N: int
    num_warps: int

    def tiles(self, queries: int, keys: int) -> tuple[int, int]:
        """Tiles of the queries and of the keys of a group of N windows."""
        return -(-self.N * queries // self.BLOCK_M), -(-self.N * keys // self.BLOCK_N)

    @property
    def settings(self) -> dict[str, int]:
        return {**self._asdict(), **compile_options(self.num_warps)}


def tile_of(
    part: str, queries: int, keys: int, D: int, dtype: torch.dtype, input_precision: str, target: str | None
) -> Tile | None:
    """Tile of a kernel: "forward", "fused", "query", "bias", "key"; None for a fused kernel that the card has not.

    Args:
        queries, keys: tokens of a window; its halo counts for all parts but "key".
        target: name of the card; None is the interpreter.
    """
    size = "small" if queries <= SMALL and keys <= SMALL else "large"
    kind = product_kind(dtype, input_precision)
    rows = TABLE.get((part, kind, size)) or (TABLE.get((part, kind, "large")) if part != "fused" else None)
    if target is None:
        most_m, most_n, warps = INTERPRETER.get(part, INTERPRETER[""])
    elif rows is None or not any(padded(D) <= limit and target in (t.split() or [target]) for t, limit in rows):
        return None
    else:
        most_m, most_n, warps = choose(rows, padded(D), target)
    n = 1 if part == "bias" else max(1, min(most_m // queries, most_n // keys))
    block_m = block_of(n * queries, most_m)
    if block_m <= 16 < most_m and part != "fused":
        warps = min(warps, 4)  # more would repeat each other's rows; one kernel for all needs their registers
    tile = Tile(block_m, block_of(n * keys, most_n), n, warps)
    return None if part == "fused" and tile.tiles(queries, keys) != (1, 1) else tile


def block_of(tokens: int, most: int) -> int:
    """The block that wastes least on tokens, of those the largest; under 32 only where there are no more tokens."""
    blocks = [block for block in (16, 32, 64, 128, 256) if block <= most and (block >= 32 or tokens <= 16 or most < 32)]
    return min(blocks, key=lambda block: (-(-tokens // block) * block, -block))


def chunks_of(groups: int, programs: int, share: bool, multiprocessors: int) -> tuple[int, int]:
    """Groups that a program goes through, and how many such chunks there are.

    Args:
        programs: of one chunk; share: whether a program has something to share among its groups.
    """
    chunk = max(1, triton.cdiv(groups, max(1, PROGRAMS * multiprocessors // programs))) if share else 1
    return chunk, triton.cdiv(groups, chunk)


class Arguments:
    """What the launches of one call share."""

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
        self.B, _, _, self.heads, self.D = q.shape
        if self.D > LIMIT_D:
            raise ValueError(f"cross_scale_attention: {self.D} channels a head; at most {LIMIT_D} are supported")
        y, x = self.axes = windows.y, windows.x
        self.like, self.windows, self.precision = q, windows, input_precision
        self.count = self.B * y.count * x.count
        pads = tuple(
            q if not windows.pads else q.new_zeros(self.heads, self.D) if pad is None else pad.contiguous()
            for pad in pads
        )
        self.tensors = (q, k, v, q if bias is None else bias, *pads)
        self.strides = (*q.stride(), *k.stride(), *v.stride())
        self.bias_steps = (0,) * 6 if bias is None else _bias_steps(bias, windows)
        rolls = [windows.roll(axis, of_keys) for of_keys in (False, True) for axis in (y, x)]
        rolled = [(*roll[:3], NEVER if roll.seam is None else roll.seam) for roll in rolls]
        self.sizes = (*(size for axis in rolled for size in axis), y.count, x.count)
        soft = math.isfinite(seam)
        self.numbers = (*_split(scale), *_split(seam if soft else 0.0))
        self.constants: dict[str, Any] = dict(
            D=self.D,
            BLOCK_D=padded(self.D),
            WY=y.window,
            WX=x.window,
            KY=y.core,
            KX=x.core,
            HY=y.halo,
            HX=x.halo,
            BIAS=bias is not None,
            PAD=windows.pads,
            SOFT=soft,
            ACC=accumulator(q.dtype),
            PREC=input_precision,
        )

    def tile(self, part: str) -> Tile | None:
        keys = self.axes[0].core * self.axes[1].core if part == "key" else self.windows.keys
        target = target_of(self.like.device)
        return tile_of(part, self.windows.queries, keys, self.D, self.like.dtype, self.precision, target)

    def chunks(self, groups: int, programs: int, share: bool) -> tuple[int, int]:
        """Groups that a program goes through, and how many such chunks there are."""
        return chunks_of(groups, programs, share, multiprocessors_of(self.like.device))

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=sum_dtype(self.like.dtype), device=self.like.device)

    def bias_slots(self, chunks: int, tile: Tile) -> Tensor:
        """Partial sums of the gradients of a group's scores, in whole tiles."""
        tiles, key_tiles = tile.tiles(self.windows.queries, self.windows.keys)
        return self.new(chunks, self.heads, tiles * tile.BLOCK_M, key_tiles * tile.BLOCK_N)

    def without(self, *names: str) -> dict[str, Any]:
        return {name: value for name, value in self.constants.items() if name not in names}


def _bias_steps(bias: Tensor, windows: Windows) -> tuple[int, ...]:
    """Where the lowest query and key lie in a bias; its steps along heads, rows and columns of queries, of keys."""
    y, x = windows.y, windows.x
    if bias.ndim == 3:
        head, query, key = bias.stride()
        return 0, head, x.window * query, query, x.reach * key, key
    entry, head = bias.stride()
    row = x.offsets * entry
    start = y.q * (y.reach - 1) * row + x.q * (x.reach - 1) * entry
    return start, head, y.p * row, x.p * entry, -y.q * row, -x.q * entry


def _split(number: float) -> tuple[float, float]:
    """A float64 as two float32, which is what a kernel's numbers are."""
    high = float(torch.tensor(number, dtype=torch.float32))
    return high, number - high


def vector_of(*tensors: Tensor) -> int:
    """Elements that a 128-bit access to rows of channels may take."""
    outer = [stride for t in tensors for stride in t.stride()[:-1]]
    return vector_length(tensors[0].dtype, *outer)
