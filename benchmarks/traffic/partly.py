"""Arguments of kernels that move fewer bytes than they hold, or write some more than once.

Tests hold these to what Triton's interpreter counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from msformer_fast.benchmarks.aten_traffic import size_of
from msformer_fast.benchmarks.traffic import Launch

Bytes: TypeAlias = Callable[[Launch], int]

#: Row buffers of Mix-FFN: hidden activations and their gradient.
BUFFERS = "p_u", "p_dv"


def _half(name: str) -> Bytes:
    return lambda launch: size_of(launch.arguments[name]) // 2


def _flags(launch: Launch) -> int:
    """Every pixel writes the flag of its label: a byte each."""
    return int(launch.arguments["p_labels"].numel())


def _windows(launch: Launch) -> int:
    """Pixels that a query or a key sees: two windows of rows x columns patches of P x P pixels, a pixel apart."""
    given = launch.arguments
    height, width = given["rows"] * given["P"], given["columns"] * given["P"]
    pixels = 2 * height * width - (height - 1) * (width - 1)
    return int(given["B"] * given["K"] * pixels * given["p_logits"].element_size())


def _if_normed(name: str) -> Bytes:
    """All of it where the grid has programs for the batch norms' gradients, else nothing."""

    def count(launch: Launch) -> int:
        given = launch.arguments
        rows, columns = (-(-given[size] // given["BLOCK"]) for size in "CK")
        return size_of(given[name]) if launch.programs > rows * (4 * rows + columns) else 0

    return count


def _norms(*given: str) -> Bytes:
    """Of (programs, 4, C) sums for two norms, equal shares for each of these arguments that is there."""

    def count(launch: Launch) -> int:
        there = sum(launch.arguments[name] is not None and launch.arguments[name] is not False for name in given)
        return size_of(launch.arguments["p_partial_norms"]) * there // len(given)

    return count


def _pairs(launch: Launch) -> int:
    """Scores that belong to a pair of a query and a key of one window."""
    given = launch.arguments
    queries, keys = given["WINDOW_Y"] * given["WINDOW_X"], given["REACH_Y"] * given["REACH_X"]
    return int(given["N"] * queries * keys * given["heads"] * given["p_tiles"].element_size())


def _rows(name: str, beside: int = 0) -> Bytes:
    """Rows that a launch of Mix-FFN computes, with as many beside them on either side as the image has."""

    def count(launch: Launch) -> int:
        given = launch.arguments
        first, end = max(given["row_begin"] - beside, 0), min(given["row_end"] + beside, given["H"])
        held = given["R"] if name in BUFFERS else given["H"]
        return size_of(given[name]) * (end - first) // held

    return count


def _before(name: str) -> Bytes:
    """Partial sums of the strips before."""
    return lambda launch: 0 if launch.arguments["first"] else size_of(launch.arguments[name])


# Tokens, results and gradients of a strip; hidden activations and their gradient with the rows that taps reach.
_STRIPS: dict[str, dict[str, Bytes]] = {
    "expand_kernel": {"p_t": _rows("p_t")},
    "contract_kernel": {"p_t": _rows("p_t"), "p_u": _rows("p_u", beside=1), "p_moments": _before("p_moments")},
    "hidden_gradient_kernel": {
        "p_dy": _rows("p_dy"),
        "p_u": _rows("p_u", beside=1),
        "p_inner": _rows("p_inner"),
        "p_partials": _before("p_partials"),
    },
    "token_gradient_kernel": {
        "p_dy": _rows("p_dy"),
        "p_t": _rows("p_t"),
        "p_dv": _rows("p_dv", beside=1),
        "p_partials": _before("p_partials"),
    },
    "product_gradient_kernel": {
        "p_dy": _rows("p_dy"),
        "p_t": _rows("p_t"),
        "p_u": _rows("p_u", beside=1),
        "p_dv": _rows("p_dv", beside=1),
        "p_inner": _rows("p_inner"),
        "p_partials": _before("p_partials"),
    },
}

#: Mix-FFN in strips, where the row buffers of hidden activations and of their gradient stay in a card's last cache.
RESIDENT: dict[tuple[str, str], Bytes] = {(kernel, name): lambda launch: 0 for kernel in _STRIPS for name in BUFFERS}

#: Bytes that an argument's loads move, by kernel and argument.
LOADED: dict[tuple[str, str], Bytes] = {
    ("embed_kernel", "p_logits"): _windows,
    ("weight_gradient_kernel", "p_logits"): _windows,
    ("unfold_kernel", "p_head"): _half("p_head"),  # the coarse columns
    ("unfold_kernel", "p_partials"): _if_normed("p_partials"),
    ("finish_kernel", "p_partial_norms"): _norms("p_dgamma", "p_dbeta", "p_bn_sums", "p_bn_sums"),
    ("table_gradient_kernel", "p_tiles"): _pairs,
    **{(kernel, name): count for kernel, counts in _STRIPS.items() for name, count in counts.items()},
}

#: Bytes that an argument's stores move.
STORED: dict[tuple[str, str], Bytes] = {
    ("loss_kernel", "p_present"): _flags,
    ("linear_loss_kernel", "p_present"): _flags,
    ("scores_kernel", "p_present"): _flags,
    ("weight_finish_kernel", "p_dhead"): _half("p_dhead"),  # the fine columns; unfold_kernel writes the others
    ("unfold_kernel", "p_dhead"): _half("p_dhead"),
    ("unfold_kernel", "p_dnorm"): _if_normed("p_dnorm"),
    ("token_gradients_kernel", "p_partial_norms"): _norms("NORM", "p_raw"),
    ("expand_kernel", "p_u"): _rows("p_u"),
    ("contract_kernel", "p_y"): _rows("p_y"),
    ("contract_kernel", "p_inner"): _rows("p_inner"),
    ("hidden_gradient_kernel", "p_dv"): _rows("p_dv"),
    ("token_gradient_kernel", "p_dt"): _rows("p_dt"),
}
