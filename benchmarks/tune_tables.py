"""Where each op keeps its launch settings, and which row of them serves a card."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from msformer_fast.benchmarks.case import Case

TableRow = tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """Where an op keeps its rows, what they hold, and which half of the op launches which of its kernels.

    Attributes:
        op: benchmark that runs the kernels.
        module: of ``msformer_fast.kernels``, with the name ``TABLE``.
        columns: "block", "warps" or "stages" for each number of a row.
        parts: of the table's keys, by "forward" or "backward".
        kernels: of each part, as ``module.function``; needed where the columns have no stages.
        grids: modules whose launchers size grids by the number of multiprocessors.
        shared: parts whose grids are sized so.
    """

    op: str
    module: str
    columns: tuple[str, ...]
    parts: dict[str, str]
    kernels: dict[str, str] = field(default_factory=dict)
    grids: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


_B, _W, _S = "block", "warps", "stages"
TABLES = (
    Table(
        "mix_ffn",
        "mix_ffn",
        (_B, _B, _B, _B, _W, _S),
        dict(expand="forward", contract="forward", hidden="backward", token="backward", product="backward"),
        grids=("mix_ffn",),
        shared=("hidden", "token", "product"),
    ),
    Table(
        "efficient_attention",
        "efficient_attention_table",
        (_B, _B, _B, _B, _W),
        dict(context="forward", attend="forward", queries="backward", tokens="backward", keys="backward"),
        kernels=dict(
            context="efficient_attention_kernels.context_kernel",
            attend="efficient_attention_kernels.attend_kernel",
            queries="efficient_attention_gradient_kernels.query_gradients_kernel",
            tokens="efficient_attention_gradient_kernels.token_gradients_kernel",
            keys="efficient_attention_gradient_kernels.key_gradients_kernel",
        ),
        grids=("efficient_attention",),
        shared=("context", "queries", "tokens", "keys"),
    ),
    Table(
        "guided_score_map",
        "score_map",
        (_B, _B, _B, _W, _S),
        dict(gather="forward", weight_sums="backward", map_gradients="backward"),
        grids=("score_map",),
        shared=("gather", "weight_sums"),
    ),
    Table(
        "patch_embedding",
        "patch_embedding",
        (_B, _B, _B, _W, _S),
        dict(embed="forward", weight_grads="backward", logit_grads="backward"),
        grids=("patch_embedding",),
        shared=("embed", "weight_grads"),
    ),
    Table(
        "cross_scale_attention",
        "cross_scale_attention_table",
        (_B, _B, _W),
        dict(forward="forward", fused="backward", query="backward", key="backward"),
        kernels=dict(
            forward="cross_scale_attention_kernels.attention_kernel",
            fused="cross_scale_attention_gradient_kernels.fused_gradient_kernel",
            query="cross_scale_attention_gradient_kernels.query_gradient_kernel",
            key="cross_scale_attention_gradient_kernels.key_gradient_kernel",
        ),
        grids=("cross_scale_attention",),
        shared=("forward", "fused", "query"),
    ),
    Table(
        "linear_clustering_loss",
        "linear_clustering_loss",
        (_B, _B, _B, _W),
        dict(loss="forward", features="backward", weight="backward"),
        kernels=dict(
            loss="linear_clustering_loss.linear_loss_kernel",
            features="linear_clustering_loss.features_gradient_kernel",
            weight="linear_clustering_loss.weight_gradient_kernel",
        ),
        grids=("linear_clustering_loss",),
        shared=("weight",),
    ),
    Table("stability_loss", "stability_loss", (_B, _B, _B, _W, _S), dict(forward="forward", backward="backward")),
)


def present(table: Table, part: str, kind: str, target: str | None, channels: int) -> tuple[list[Any], TableRow | None]:
    """Keys of a launch table that serve a part, and the row that a card has now; None where it has none.

    Args:
        kind: of products; target: name of the card; channels: of the map.
    """
    from msformer_fast.kernels.launch import choose, padded

    module = importlib.import_module(f"msformer_fast.kernels.{table.module}")
    keys = [key for key in module.TABLE if key[:2] == (part, kind)]
    if any("small" in key for key in keys):
        keys = [key for key in keys if "large" not in key]  # the windows of a benchmark are small
    width = padded(channels if table.op != "cross_scale_attention" else 32)
    try:
        return keys, choose(module.TABLE[keys[0]], width, target)
    except (IndexError, ValueError):
        return keys, None  # no row for this card: other kernels do the work there


def padded_width(table: Table, case: Case) -> int:
    """Width of the row that serves a case."""
    from msformer_fast.kernels.launch import padded

    return padded(case["channels"] if table.op != "cross_scale_attention" else 32)
