"""Launch settings of efficient attention, and how many programs share the work."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton

from msformer_fast.kernels.launch import Row, choose, compile_options, padded, served_kind
from msformer_fast.limits import EFFICIENT_ATTENTION_CHANNELS

Rows = dict[tuple[str, int], Row]


def _any(narrow: Row, wide: Row) -> Rows:
    """Rows of every card: for up to 128 channels, and for up to 256."""
    return {("", 128): narrow, ("", 256): wide}


# (part, kind of product): {(targets, largest padded width): (BLOCK_N, BLOCK_D, BLOCK_J, BLOCK_K, num_warps)}: the rule
# for every card, then the cards that need others. A block of 0 is the whole width. "mixed" is "half" with float32 in
# memory, as under autocast: half's rows, but for parts that need others. "attend heads" serves more heads than one.
# A part without rows for "tf32x3" takes those of "ieee", and multiplies so: all would spill.
# Found by compiling ahead of time: no spill. Nobody has timed them.
_ATTEND = _any((64, 32, 0, 0, 8), (64, 32, 0, 32, 8))
_ATTEND_HEADS = {**_ATTEND, ("sm_100", 128): (32, 32, 0, 0, 8)}
_TOKENS = {
    **_any((64, 32, 32, 32, 8), (32, 32, 32, 32, 8)),
    ("sm_100", 128): (32, 32, 32, 32, 4),
    ("gfx942", 128): (64, 32, 32, 32, 4),
    ("gfx942", 256): (32, 16, 16, 16, 8),
}
TABLE: dict[tuple[str, str], Rows] = {
    ("context", "ieee"): _any((32, 128, 0, 32, 8), (16, 64, 0, 32, 8)),
    ("context", "tf32"): _any((32, 128, 0, 0, 8), (32, 64, 0, 32, 8)),
    ("context", "tf32x3"): {
        **_any((32, 128, 0, 32, 8), (32, 64, 0, 32, 8)),
        ("sm_80", 128): (32, 128, 0, 16, 8),
        ("sm_80", 256): (16, 64, 0, 32, 8),
        ("sm_90 before 3.8", 256): (16, 64, 0, 32, 8),
        ("sm_100", 64): (16, 64, 0, 32, 8),
    },
    ("context", "half"): {**_any((32, 128, 0, 0, 8), (32, 64, 0, 32, 8)), ("sm_120", 128): (32, 128, 0, 32, 8)},
    ("attend", "ieee"): {
        **_any((32, 32, 0, 16, 8), (16, 16, 0, 16, 8)),
        ("sm_86 sm_89 sm_100", 64): (64, 32, 0, 16, 8),
        ("sm_86 sm_89", 256): (16, 32, 0, 16, 8),
    },
    ("attend", "tf32"): _ATTEND,
    ("attend", "tf32x3"): {
        **_any((64, 32, 0, 32, 8), (64, 32, 0, 32, 8)),
        ("sm_90", 128): (128, 16, 0, 32, 8),
        ("sm_80 sm_90", 256): (32, 32, 0, 32, 8),
    },
    ("attend", "half"): _ATTEND,
    ("attend heads", "tf32"): _ATTEND_HEADS,
    ("attend heads", "tf32x3"): _any((32, 32, 0, 32, 8), (32, 32, 0, 32, 8)),
    ("attend heads", "half"): _ATTEND_HEADS,
    # Compilers before 3.8 take 90 registers more, and would spill: more is recomputed, but from registers.
    ("queries", "ieee"): {
        **_any((16, 0, 64, 16, 8), (16, 0, 32, 16, 8)),
        ("sm_90 before 3.8", 128): (16, 0, 32, 16, 8),
        ("sm_90 before 3.8", 256): (16, 0, 16, 16, 8),
    },
    ("queries", "tf32"): _any((16, 0, 128, 16, 8), (16, 0, 32, 16, 8)),
    ("queries", "tf32x3"): {
        **_any((16, 0, 64, 16, 8), (16, 0, 32, 16, 8)),
        ("sm_80", 256): (16, 0, 16, 16, 8),
        ("sm_90 before 3.8", 256): (16, 0, 16, 16, 8),
    },
    ("queries", "half"): {**_any((16, 0, 128, 16, 8), (16, 0, 32, 16, 8)), ("sm_120", 128): (16, 0, 64, 16, 8)},
    ("queries", "mixed"): {**_any((16, 0, 32, 16, 8), (16, 0, 32, 16, 8)), ("sm_90", 128): (32, 0, 128, 16, 8)},
    ("tokens", "ieee"): {**_any((32, 16, 16, 16, 8), (16, 16, 16, 16, 8)), ("gfx942", 128): (32, 16, 16, 16, 4)},
    ("tokens", "tf32"): {
        **_TOKENS,
        ("sm_120", 64): (64, 32, 32, 32, 8),
        ("sm_80 sm_120", 128): (32, 32, 32, 32, 4),
        ("sm_80", 256): (32, 16, 16, 16, 8),
        ("sm_90", 128): (32, 64, 128, 0, 8),
    },
    ("tokens", "half"): _TOKENS,
    ("tokens", "mixed"): {
        **_any((32, 32, 32, 32, 8), (32, 32, 32, 32, 8)),
        ("sm_90", 128): (32, 32, 128, 0, 8),
        ("gfx942", 128): (64, 32, 32, 32, 4),
        ("gfx942", 256): (32, 16, 16, 16, 8),
    },
    ("keys", "ieee"): {
        **_any((32, 128, 0, 32, 8), (16, 64, 0, 32, 8)),
        ("sm_90", 64): (16, 64, 0, 32, 8),
        ("gfx942", 128): (16, 128, 0, 16, 8),
    },
    ("keys", "tf32"): {**_any((32, 128, 0, 32, 8), (32, 64, 0, 32, 8)), ("sm_120", 64): (32, 64, 0, 0, 8)},
    ("keys", "tf32x3"): {
        **_any((32, 128, 0, 32, 8), (32, 64, 0, 32, 8)),
        ("sm_80", 128): (32, 64, 0, 32, 8),
        ("sm_80 sm_90", 256): (16, 64, 0, 32, 8),
        ("sm_90 before 3.8", 256): (16, 32, 0, 32, 8),
    },
    ("keys", "half"): _any((32, 128, 0, 0, 8), (32, 64, 0, 32, 8)),
}
# Few large blocks, whole rows: what a program costs in the interpreter is its operations, whatever their size.
INTERPRETER: dict[str, Row] = {
    "context": (32, 64, 0, 0, 8),
    "attend": (64, 64, 0, 0, 8),
    "queries": (32, 0, 64, 0, 8),
    "tokens": (32, 64, 0, 0, 8),
    "keys": (32, 64, 0, 0, 8),
}
SMALL = dict(BLOCK_S=32, **compile_options(num_warps=4))  # of the kernels between and after the passes
FINISH = dict(BLOCK=256, BLOCK_S=32, BLOCK_R=32, **compile_options(num_warps=4))  # of the last kernel of the backward


class Shape(NamedTuple):
    """Sizes of a call: images, tokens of an image, channels of x, of keys, of values, heads."""

    B: int
    N: int
    C: int
    CK: int
    CV: int
    heads: int

    @property
    def arguments(self) -> dict[str, int]:
        """The sizes as kernels name them."""
        of_tokens = dict(N=self.N, C=self.C, c_end=self.C, BLOCK_C=padded(self.C))
        of_heads = dict(heads=self.heads, HEADS=self.heads, DK=self.CK // self.heads, DV=self.CV // self.heads)
        return dict(CK=self.CK, CV=self.CV, **of_tokens, **of_heads)


def launch_settings(part: str, shape: Shape, kind: str, target: str | None = None) -> dict[str, Any]:
    """Launch options of a part: "context", "attend", "queries", "tokens", "keys". An unknown card gets those of any.

    With ``PREC`` among them where a part multiplies otherwise than the kind says.

    Args:
        kind: of products, see ``product_kind``; or "mixed".
        target: name of the card; None is the interpreter.
    """
    widest, limit = max(shape.C, shape.CK, shape.CV), EFFICIENT_ATTENTION_CHANNELS
    if widest > limit:
        raise ValueError(f"efficient_attention: {widest} channels; at most {limit} are supported")
    served = served_kind(TABLE, part, kind)
    many = f"{part} heads", served
    rows = TABLE[many if shape.heads > 1 and many in TABLE else (part, served)]

    row = INTERPRETER[part] if target is None else choose(rows, padded(widest), target)
    block_n, block_d, block_j, block_k, warps = row

    block_c, head = padded(shape.C), padded(shape.CK // shape.heads)
    settings: dict[str, Any] = dict(BLOCK_N=block_n, BLOCK_C=block_c, BLOCK_K=min(block_k or block_c, block_c))
    settings["BLOCK_D"] = min(block_d or head, padded(shape.CK) if part in ("context", "keys") else head)
    if part in ("queries", "tokens"):
        settings["BLOCK_J"] = min(block_j or block_c, block_c)
    if (kind, served) == ("tf32x3", "ieee"):
        settings["PREC"] = "ieee"
    return dict(settings, **compile_options(warps))


def chunks_of(part: str, shape: Shape, settings: dict[str, int]) -> int:
    """How many programs do a part's share of the tokens, each for some of the channels."""
    if part == "queries":
        return shape.heads * triton.cdiv(shape.C, settings["BLOCK_J"])
    return triton.cdiv(shape.CK, settings["BLOCK_D"]) if part in ("context", "keys") else 1


def programs_of(shape: Shape, settings: dict[str, int], chunks: int, multiprocessors: int) -> int:
    """How many share an image's tokens: with the others of the grid, about one a multiprocessor."""
    share = multiprocessors // max(1, shape.B * chunks)
    return max(1, min(share, triton.cdiv(shape.N, settings["BLOCK_N"])))
