"""Launch table of windowed cross-scale attention: the tile of each kernel, and how many windows share a program."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
import triton

from msformer_fast.kernels.launch import Row, choose, compile_options, padded, product_kind

Key: TypeAlias = tuple[str, str, str]

MANY = 256  # tokens: windows of more fill their last tile nearly, whatever the block
SMALL = 64  # tokens: windows of no more go into one tile
#: Programs a multiprocessor that share the windows, where each reads the bias once or leaves a partial sum.
PROGRAMS = 4

# (kernel, kind of product, windows): {largest padded D: (queries, keys, num_warps)}, tiles at most that large.
# "small" windows have at most 64 queries and 64 keys; a part without rows for them has those of "large". "fused" gives
# all gradients; where it has no row, the kernels of the other parts do.
# Found by compiling ahead of time: no spill. Nobody has timed them.
ANY_CARD: dict[Key, dict[int, Row]] = {
    ("forward", "ieee", "small"): {32: (64, 64, 8), 64: (32, 32, 4), 128: (16, 32, 4)},
    ("forward", "tf32", "small"): {32: (64, 64, 4), 64: (64, 32, 4), 128: (32, 32, 4)},
    ("forward", "half", "small"): {64: (64, 64, 4), 128: (32, 32, 4)},
    ("forward", "ieee", "large"): {64: (32, 32, 4), 128: (16, 32, 4)},
    ("forward", "tf32", "large"): {64: (64, 32, 4), 128: (32, 32, 4)},
    ("forward", "half", "large"): {32: (64, 64, 4), 64: (64, 32, 4), 128: (32, 32, 4)},
    ("fused", "ieee", "small"): {},
    ("fused", "tf32", "small"): {},
    ("fused", "half", "small"): {32: (64, 64, 4)},
    ("query", "ieee", "small"): {32: (32, 64, 8), 64: (16, 64, 8), 128: (32, 32, 8)},
    ("query", "tf32", "small"): {64: (16, 64, 4), 128: (32, 16, 4)},
    ("query", "half", "small"): {32: (64, 64, 4), 64: (32, 64, 8), 128: (32, 32, 4)},
    ("query", "ieee", "large"): {64: (32, 16, 4), 128: (32, 32, 8)},
    ("query", "tf32", "large"): {64: (64, 32, 4), 128: (32, 16, 4)},
    ("query", "half", "large"): {64: (64, 32, 4), 128: (32, 32, 4)},
    ("bias", "ieee", "large"): {64: (32, 16, 4), 128: (16, 16, 4)},
    ("bias", "tf32", "large"): {32: (64, 32, 4), 64: (32, 16, 4), 128: (32, 16, 4)},
    ("bias", "half", "large"): {128: (64, 32, 4)},
    ("key", "ieee", "large"): {32: (32, 32, 8), 64: (16, 16, 4), 128: (16, 16, 4)},
    ("key", "tf32", "large"): {64: (32, 32, 4), 128: (16, 16, 4)},
    ("key", "half", "large"): {64: (64, 32, 4), 128: (16, 32, 4)},
}
# {(cards, largest padded D): row}: where the row for any card spills, on this card or under an older compiler, or one
# without a spill is larger.
EXCEPTIONS: dict[Key, dict[tuple[str, int], Row]] = {
    ("forward", "ieee", "small"): {
        ("sm_86 sm_89", 16): (64, 32, 8),
        ("sm_90", 32): (32, 16, 4),
        ("sm_90", 64): (32, 16, 4),
    },
    ("forward", "tf32", "small"): {
        ("sm_90", 32): (64, 64, 8),
        ("sm_90", 64): (32, 32, 8),
        ("sm_90", 128): (32, 32, 8),
    },
    ("forward", "half", "small"): {("sm_90", 64): (64, 64, 8)},
    ("forward", "ieee", "large"): {("sm_90", 64): (32, 16, 4)},
    ("forward", "tf32", "large"): {("sm_90", 16): (64, 32, 8)},
    ("forward", "half", "large"): {("sm_80", 16): (64, 32, 4)},
    ("fused", "ieee", "small"): {("gfx942", 64): (64, 64, 4)},
    ("fused", "tf32", "small"): {("gfx942", 64): (64, 64, 4)},
    ("fused", "half", "small"): {("sm_86 sm_89 sm_90 sm_100", 32): (64, 64, 8), ("gfx942", 64): (64, 64, 4)},
    ("query", "ieee", "small"): {
        ("sm_80 sm_86 sm_89 sm_90 sm_120", 32): (16, 64, 8),
        ("sm_100", 32): (16, 64, 4),
        ("gfx942", 32): (32, 32, 4),
        ("sm_90", 64): (32, 32, 8),
        ("gfx942", 64): (32, 32, 4),
        ("sm_80", 128): (16, 16, 8),
        ("gfx942", 128): (32, 32, 4),
    },
    ("query", "ieee", "large"): {
        ("sm_80", 32): (32, 16, 8),
        ("sm_80", 128): (16, 16, 8),
        ("gfx942", 128): (32, 32, 4),
    },
    ("query", "tf32", "large"): {
        ("sm_86 sm_89", 16): (32, 32, 4),
        ("sm_86 sm_89", 32): (64, 32, 4),
        ("sm_86 sm_89", 64): (32, 16, 4),
        ("sm_90", 64): (64, 32, 8),
    },
    ("query", "half", "large"): {("sm_90", 32): (64, 32, 4), ("sm_90", 64): (64, 32, 8)},
    ("bias", "tf32", "large"): {
        ("sm_80", 32): (64, 32, 8),
        ("sm_120", 64): (64, 32, 8),
        ("sm_80", 128): (16, 16, 4),
    },
    ("key", "ieee", "large"): {
        ("sm_90", 16): (32, 32, 8),
        ("sm_80", 32): (16, 16, 4),
        ("sm_86 sm_89 sm_90", 32): (16, 32, 4),
        ("gfx942", 32): (32, 32, 4),
        ("sm_90", 64): (16, 16, 8),
        ("gfx942", 64): (16, 32, 4),
        ("sm_90", 128): (16, 16, 8),
    },
    ("key", "tf32", "large"): {
        ("sm_86 sm_89", 16): (32, 32, 8),
        ("sm_120", 16): (16, 32, 4),
        ("sm_80", 32): (32, 32, 4),
        ("sm_80", 64): (16, 32, 4),
    },
}
# The same for windows of volumes, where the row of a map's windows spills: places of three axes take more registers.
VOLUMES: dict[Key, dict[tuple[str, int], Row]] = {
    ("forward", "ieee", "large"): {("sm_86 sm_89", 16): (64, 32, 8)},
    ("query", "tf32", "large"): {("sm_86 sm_89", 32): (64, 16, 4)},
    ("bias", "ieee", "large"): {("sm_80", 32): (16, 32, 4)},
    ("bias", "tf32", "large"): {("sm_100", 32): (64, 32, 8), ("sm_120", 32): (64, 16, 8)},
    ("bias", "half", "large"): {("sm_100", 32): (64, 32, 8)},
    ("key", "ieee", "large"): {("sm_80", 32): (32, 32, 4), ("sm_86 sm_89", 16): (32, 32, 4)},
    ("key", "tf32", "large"): {
        ("sm_86 sm_89", 16): (64, 16, 4),
        ("sm_90", 16): (64, 16, 4),
        ("sm_80", 32): (64, 32, 8),
    },
}
#: {(cards, largest padded D): row} of each key, as ``choose`` takes it; "" is any card.
TABLE: dict[Key, dict[tuple[str, int], Row]] = {
    key: {**{("", limit): row for limit, row in rows.items()}, **EXCEPTIONS.get(key, {})}
    for key, rows in ANY_CARD.items()
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
        """As a launch takes them."""
        return {**self._asdict(), **compile_options(self.num_warps)}


def tile_of(
    part: str,
    queries: int,
    keys: int,
    D: int,
    dtype: torch.dtype,
    input_precision: str,
    target: str | None,
    axes: int = 2,
) -> Tile | None:
    """Tile of a kernel: "forward", "fused", "query", "bias", "key"; None for a fused kernel that the card has not.

    Args:
        queries, keys: tokens of a window; its halo counts for all parts but "key".
        target: name of the card; None is the interpreter.
        axes: of the map.
    """
    size = "small" if queries <= SMALL and keys <= SMALL else "large"
    kind = product_kind(dtype, input_precision)
    key = part, kind, size
    if not TABLE.get(key) and part != "fused":
        key = part, kind, "large"
    rows = TABLE.get(key)
    if rows is not None and axes == 3:
        rows = rows | VOLUMES.get(key, {})
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
    """The block that wastes least on tokens, of those the largest; under 32 only where there are no more tokens.

    Of more than 256 tokens, as windows of volumes have, the largest: it wastes a fifth at the most, and half as large
    a block issues half as many instructions again for every score.
    """
    if tokens > MANY:
        return most
    blocks = [block for block in (16, 32, 64, 128, 256) if block <= most and (block >= 32 or tokens <= 16 or most < 32)]
    return min(blocks, key=lambda block: (-(-tokens // block) * block, -block))


def chunks_of(groups: int, programs: int, share: bool, multiprocessors: int) -> tuple[int, int]:
    """Groups that a program goes through, and how many such chunks there are.

    Args:
        programs: of one chunk.
        share: whether a program has something to share among its groups.
    """
    chunk = max(1, triton.cdiv(groups, max(1, PROGRAMS * multiprocessors // programs))) if share else 1
    return chunk, triton.cdiv(groups, chunk)
