"""Arguments of kernels that move fewer bytes than they hold, or write some more than once.

Tests hold these to what Triton's interpreter counts.
"""

from __future__ import annotations

import math

from msformer_fast.benchmarks.aten_traffic import size_of
from msformer_fast.benchmarks.traffic import Bytes, Launch

#: Row buffers of Mix-FFN: hidden activations, their gradient, and those behind the GELU.
BUFFERS = "p_u", "p_dv", "p_a"


def _nothing(launch: Launch, name: str) -> int:
    return 0


def _half(launch: Launch, name: str) -> int:
    return size_of(launch.arguments[name]) // 2


def _flags(launch: Launch, name: str) -> int:
    """Every pixel writes the flag of its label: a byte each."""
    return int(launch.arguments["p_labels"].numel())


def _windows(launch: Launch, name: str) -> int:
    """Pixels that a query or a key sees: two windows of rows x columns patches of P x P pixels, a pixel apart."""
    given = launch.arguments
    height, width = given["rows"] * given["P"], given["columns"] * given["P"]
    pixels = 2 * height * width - (height - 1) * (width - 1)
    return int(given["B"] * given["K"] * pixels * given[name].element_size())


def _if_normed(launch: Launch, name: str) -> int:
    """All of it where the grid has programs for the batch norms' gradients, else nothing."""
    given = launch.arguments
    rows, columns = (-(-given[size] // given["BLOCK"]) for size in "CK")
    return size_of(given[name]) if launch.programs > rows * (4 * rows + columns) else 0


def _norms(*given: str) -> Bytes:
    """Of (programs, 4, C) sums for two norms, equal shares for each of these arguments that is there."""

    def count(launch: Launch, name: str) -> int:
        there = sum(launch.arguments[each] is not None and launch.arguments[each] is not False for each in given)
        return size_of(launch.arguments[name]) * there // len(given)

    return count


def _pairs(launch: Launch, name: str) -> int:
    """Scores that belong to a pair of a query and a key of one window."""
    given = launch.arguments
    queries, keys = (math.prod(given[f"{name}_{axis}"] for axis in "ZYX") for name in ("WINDOW", "REACH"))
    return int(given["N"] * queries * keys * given["heads"] * given[name].element_size())


def _rows(launch: Launch, name: str, beside: int = 0) -> int:
    """Rows that a launch of Mix-FFN computes, with as many beside them on either side as the image has."""
    given = launch.arguments
    first, end = max(given["row_begin"] - beside, 0), min(given["row_end"] + beside, given["H"])
    held = (given["R"] if name in BUFFERS else None) or given["H"]
    return size_of(given[name]) * (end - first) // held


def _taps(launch: Launch, name: str) -> int:
    """Those rows with the neighbours that the taps of the convolution reach."""
    return _rows(launch, name, beside=1)


def _before(launch: Launch, name: str) -> int:
    """Partial sums of the strips before."""
    return 0 if launch.arguments["is_first_strip"] else size_of(launch.arguments[name])


def _twice_if_normed(launch: Launch, name: str) -> int:
    """The inner norm's gradient takes two passes over the rows, of which the second reads what the first has stored."""
    return _rows(launch, name) * (2 if launch.arguments["INNER_NORM"] else 1)


def _scratch_read(launch: Launch, name: str) -> int:
    """Parts of the scratch memory whose program has a tile."""
    return size_of(launch.arguments[name]) * min(launch.programs, launch.arguments["tiles"]) // launch.programs


def _scratch_stored(launch: Launch, name: str) -> int:
    """Of every tile, in its program's part."""
    return size_of(launch.arguments[name]) * launch.arguments["tiles"] // launch.programs


def _vectors(launch: Launch, name: str) -> int:
    """Of each vector of the hidden channels that the kernel has a use for: whole blocks of channels."""
    given = launch.arguments
    rows = 9 if launch.kernel in ("token_gradient_kernel", "product_gradient_kernel") else 10 + 2 * given["INNER_NORM"]
    return int(rows * -(-given["D"] // given["BLOCK_D"]) * given["BLOCK_D"] * given[name].element_size())


# Tokens, results and gradients of a strip; hidden activations and their gradient with the rows that taps reach.
_STRIPS: dict[str, dict[str, Bytes]] = {
    "expand_kernel": {"p_t": _rows},
    "contract_kernel": {
        "p_t": _rows,
        "p_u": _taps,
        "p_vectors": _vectors,
        "p_scratch": _scratch_read,
        "p_moments": _before,
    },
    "hidden_gradient_kernel": {
        "p_dy": _rows,
        "p_u": _taps,
        "p_vectors": _vectors,
        "p_dv": _rows,
        "p_scratch": _scratch_read,
        "p_inner": _rows,
        "p_partials": _before,
    },
    "token_gradient_kernel": {
        "p_dy": _rows,
        "p_t": _rows,
        "p_dv": _taps,
        "p_vectors": _vectors,
        "p_partials": _before,
    },
    "product_gradient_kernel": {
        "p_dy": _rows,
        "p_t": _rows,
        "p_u": _rows,
        "p_dv": _taps,
        "p_a": _rows,
        "p_vectors": _vectors,
        "p_tokens": _rows,
        "p_partials": _before,
    },
}

#: Mix-FFN in strips, where the row buffers of hidden activations and of their gradient stay in a card's last cache.
RESIDENT: dict[tuple[str, str], Bytes] = {(kernel, name): _nothing for kernel in _STRIPS for name in BUFFERS}

#: What a program of Mix-FFN stores and reads back within a tile: nothing reaches memory but its last value, where a
#: card's last cache holds the tiles that its programs are at (of v and n at most 32 MB).
WITHIN_A_TILE_LOADED: dict[tuple[str, str], Bytes] = {
    ("contract_kernel", "p_scratch"): _nothing,
    ("hidden_gradient_kernel", "p_scratch"): _nothing,
    ("hidden_gradient_kernel", "p_dv"): _nothing,
}
WITHIN_A_TILE_STORED: dict[tuple[str, str], Bytes] = {
    ("contract_kernel", "p_scratch"): _nothing,
    ("hidden_gradient_kernel", "p_scratch"): _nothing,
    ("hidden_gradient_kernel", "p_dv"): _rows,
}

#: Bytes that an argument's loads move, by kernel and argument.
LOADED: dict[tuple[str, str], Bytes] = {
    ("embed_kernel", "p_logits"): _windows,
    ("weight_gradient_kernel", "p_logits"): _windows,
    ("fold_kernel", "p_head"): _half,  # the coarse columns
    ("unfold_kernel", "p_head"): _half,
    ("unfold_kernel", "p_partials"): _if_normed,
    ("finish_kernel", "p_partial_norms"): _norms("p_dgamma", "p_dbeta", "p_raw", "p_raw"),
    ("table_gradient_kernel", "p_tiles"): _pairs,
    **{(kernel, name): count for kernel, counts in _STRIPS.items() for name, count in counts.items()},
}

#: Bytes that an argument's stores move.
STORED: dict[tuple[str, str], Bytes] = {
    ("loss_kernel", "p_present"): _flags,
    ("linear_loss_kernel", "p_present"): _flags,
    ("scores_kernel", "p_present"): _flags,
    ("weight_finish_kernel", "p_dhead"): _half,  # the fine columns; unfold_kernel writes the others
    ("unfold_kernel", "p_dhead"): _half,
    ("unfold_kernel", "p_dnorm"): _if_normed,
    ("token_gradients_kernel", "p_partial_norms"): _norms("NORM", "p_raw"),
    ("expand_kernel", "p_u"): _rows,
    ("contract_kernel", "p_y"): _rows,
    ("contract_kernel", "p_inner"): _rows,
    ("contract_kernel", "p_scratch"): _scratch_stored,
    ("hidden_gradient_kernel", "p_dv"): _twice_if_normed,
    ("hidden_gradient_kernel", "p_a"): _rows,
    ("hidden_gradient_kernel", "p_scratch"): _scratch_stored,
    ("token_gradient_kernel", "p_dt"): _rows,
    ("token_gradient_kernel", "p_tokens"): _rows,
}
