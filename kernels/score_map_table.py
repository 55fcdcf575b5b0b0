"""Launch settings of the two-scale head."""

from __future__ import annotations

import torch

from msformer_fast.kernels.launch import choose, compile_options, padded, product_kind

LIMIT_C, LIMIT_K = 256, 256  # channels; clusters of a tile that gathers

# (kernel, kind of product): {(targets, largest padded C): (BLOCK_N, BLOCK_K, BLOCK_C, num_warps, num_stages)}; "" is
# any target, a block of 0 channels is all of them. "gather" is the scores' kernel where a tile holds all clusters.
# Found by compiling ahead of time: no spill. Nobody has timed them.
TABLE = {
    ("scores", "ieee"): {("", 256): (64, 128, 16, 8, 1)},
    ("scores", "tf32"): {("", 256): (64, 128, 32, 8, 1), ("sm_100", 256): (32, 128, 32, 8, 1)},
    ("scores", "half"): {("", 256): (64, 128, 32, 8, 1)},
    ("gather", "ieee"): {
        ("", 128): (32, 128, 16, 8, 1),
        ("sm_86 sm_89", 128): (16, 128, 16, 8, 1),
        ("sm_120", 64): (16, 128, 16, 4, 1),
        ("sm_120", 128): (32, 128, 16, 8, 1),
        ("gfx942", 128): (16, 128, 16, 8, 1),
        ("", 256): (16, 256, 16, 8, 1),
    },
    ("gather", "tf32"): {
        ("", 128): (64, 128, 32, 8, 1),
        ("sm_90 sm_100 sm_120", 128): (32, 128, 32, 8, 1),
        ("", 256): (32, 256, 32, 8, 1),
        ("sm_100 sm_120", 256): (16, 256, 32, 8, 1),
        ("sm_90", 256): (32, 256, 16, 8, 1),
    },
    ("gather", "half"): {
        ("", 128): (64, 128, 32, 8, 1),
        ("sm_90", 128): (32, 128, 64, 8, 1),
        ("", 256): (32, 256, 32, 8, 1),
    },
    ("weight_sums", "ieee"): {("", 128): (16, 32, 0, 8, 1), ("", 256): (16, 16, 0, 8, 1)},
    ("weight_sums", "tf32"): {("", 128): (32, 64, 0, 8, 1), ("", 256): (32, 32, 0, 8, 1)},
    ("weight_sums", "half"): {("", 128): (32, 64, 0, 8, 1), ("", 256): (32, 32, 0, 8, 1)},
    ("map_gradients", "ieee"): {("", 256): (32, 16, 128, 8, 1), ("gfx942", 256): (32, 16, 64, 8, 1)},
    ("map_gradients", "tf32"): {
        ("", 256): (64, 16, 128, 8, 1),
        ("sm_90", 256): (32, 32, 64, 8, 1),
        ("sm_100", 256): (32, 32, 128, 8, 1),
        ("gfx942", 256): (64, 32, 128, 8, 1),
    },
    ("map_gradients", "half"): {("", 256): (64, 32, 128, 8, 1), ("sm_90", 256): (32, 32, 128, 8, 1)},
}
UNFOLD = dict(BLOCK=32, **compile_options(num_warps=8))
# Few large blocks: what a program costs in the interpreter is its operations, whatever their size.
INTERPRETER = {
    "scores": (64, 128, 0, 8, 1),
    "gather": (64, 128, 0, 8, 1),
    "weight_sums": (64, 128, 0, 8, 1),
    "map_gradients": (64, 128, 0, 8, 1),
}
GATHERED = dict(BLOCK_S=128, BLOCK_K=16, BLOCK=1024, **compile_options(num_warps=4))


def launch_settings(
    part: str, K: int, C: int, dtype: torch.dtype, input_precision: str = "ieee", target: str | None = None
) -> dict[str, int]:
    """Launch options of a kernel: "scores", "gather", "weight_sums", "map_gradients". Other cards get those of any.

    Args:
        target: name of the card; None is the interpreter.

    Raises:
        ValueError: more channels, or clusters of one tile, than the table was made for.
    """
    if C > LIMIT_C or (part == "gather" and K > LIMIT_K):
        raise ValueError(f"score_map: K = {K}, C = {C}; at most {LIMIT_K} and {LIMIT_C} are supported")
    size = max(padded(K), padded(C)) if part == "gather" else padded(C)
    rows = TABLE[part, product_kind(dtype, input_precision)]
    row = INTERPRETER[part] if target is None else choose(rows, size, target)
    block_n, block_k, block_c, warps, stages = row
    return dict(
        BLOCK_N=block_n,
        BLOCK_K=padded(K) if part == "gather" else min(block_k, padded(K)),
        BLOCK_C=min(block_c or padded(C), padded(C)),
        **compile_options(warps, stages),
    )


def finish_settings(C: int) -> dict[str, int]:
    """Launch options of the sums over the slots of the weights' gradients."""
    return dict(BLOCK_S=min(2048 // padded(C), 16), BLOCK_C=padded(C), **compile_options(num_warps=8))
