"""The table of ops under the contract: one row an op. A new op is a row here, and a file for its special cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from msformer_fast import ops

Inputs = dict[str, Tensor]
Sizes = dict[str, Any]


@dataclass(frozen=True)
class Op:
    """One op as the contract sees it.

    Attributes:
        name: of the op.
        call: runs it on inputs with options and a backend; returns its outputs, those that are differentiable first.
        draw: float64 inputs of given sizes.
        sizes: named variants for values and gradients: sizes that no block divides, batch > 1, other options.
        tiny: sizes for gradcheck, opcheck and compilation.
        other: further sizes of the same kind as ``tiny``, which must not compile anew.
        differentiable: how many outputs are, counted from the first.
        options: keyword options, by the names in the sizes.
    """

    name: str
    call: Callable[..., tuple[Tensor, ...]]
    draw: Callable[[Sizes], Inputs]
    sizes: dict[str, Sizes]
    tiny: Sizes
    other: tuple[Sizes, ...]
    differentiable: int = 1
    options: tuple[str, ...] = field(default=())

    def run(self, inputs: Inputs, sizes: Sizes, backend: str | None) -> tuple[Tensor, ...]:
        options = {name: sizes[name] for name in self.options if name in sizes}
        return self.call(inputs, backend=backend, **options)


def rand(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def _draw_logits(s: Sizes) -> Inputs:
    """Logits with ties, one dominating cluster, and half of the rows nearly equal."""
    logits = rand(s["B"], s["K"], s["H"], s["W"], scale=s.get("spread", 3.0))
    if s["B"] and s.get("ties", True):
        logits[..., : s["W"] // 2] *= 1e-3
        logits[:, 1, 0, 0] = logits[:, 0, 0, 0]
        logits[:, 0, -1, -1] += 30
    return {"logits": logits if s.get("cluster_dim", 1) == 1 else logits.permute(0, 2, 3, 1)}


def _clustering_loss(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    return ops.clustering_loss(inputs["logits"], **options)


def _draw_projection(s: Sizes) -> Inputs:
    features = rand(s["B"], s["H"], s["W"], s["D"])
    weight = rand(s["K"], s["D"], scale=s.get("spread", 3.0) / s["D"] ** 0.5)
    return {"features": features, "weight": weight} | ({"bias": rand(s["K"])} if s.get("with_bias", True) else {})


def _linear_clustering_loss(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    return ops.linear_clustering_loss(inputs["features"], inputs["weight"], inputs.get("bias"), **options)


def _draw_pairs(s: Sizes) -> Inputs:
    queries = rand(s["B"], s["T"], s["C"])
    return {"queries": queries, "keys": s.get("alike", 0.5) * queries + 0.7 * rand(s["B"], s["T"], s["C"])}


def _stability_loss(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    return (ops.stability_loss(inputs["queries"], inputs["keys"], **options),)


def _draw_patches(s: Sizes) -> Inputs:
    """Score maps with offsets, and a channel whose spread is small beside its mean."""
    logits = rand(s["B"], s["K"], s["H"], s["W"]) + 2 * rand(s["K"], 1, 1)
    logits[:, 0] = 5 + 0.2 * logits[:, 0]
    length = s["patch"] ** 2 * s["K"]
    inputs = {"logits": logits, "weight": rand(s["C"], length, scale=length**-0.5), "bias": rand(s["C"])}
    return inputs | {"norm_weight": 1 + 0.3 * rand(s["K"]), "norm_bias": rand(s["K"])}


def _patch_embedding(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    return ops.patch_embedding(**inputs, **options)


OPS = {
    op.name: op
    for op in (
        Op(
            "clustering_loss",
            _clustering_loss,
            _draw_logits,
            {
                "paper": {"B": 1, "K": 100, "H": 9, "W": 17},
                "channels last": {"B": 2, "K": 130, "H": 5, "W": 7, "cluster_dim": -1},
                "sum": {"B": 2, "K": 7, "H": 8, "W": 16, "reduction": "sum"},
                "none": {"B": 3, "K": 2, "H": 3, "W": 5, "reduction": "none"},
                "many": {"B": 1, "K": 1000, "H": 3, "W": 5, "cluster_dim": -1, "reduction": "none"},
                "saturated": {"B": 1, "K": 33, "H": 5, "W": 9, "spread": 100.0},
                "empty": {"B": 0, "K": 5, "H": 3, "W": 5, "reduction": "sum"},
            },
            tiny={"B": 2, "K": 3, "H": 3, "W": 5, "ties": False},  # a tie has no derivative
            other=({"B": 3, "K": 3, "H": 7, "W": 9}, {"B": 4, "K": 3, "H": 5, "W": 11}),
            options=("reduction", "cluster_dim"),
        ),
        Op(
            "linear_clustering_loss",
            _linear_clustering_loss,
            _draw_projection,
            {
                "paper": {"B": 1, "K": 100, "D": 100, "H": 5, "W": 7},
                "no bias": {"B": 2, "K": 7, "D": 20, "H": 3, "W": 5, "with_bias": False, "reduction": "sum"},
                "wide": {"B": 1, "K": 200, "D": 130, "H": 3, "W": 11, "reduction": "none"},
            },
            tiny={"B": 1, "K": 3, "D": 5, "H": 3, "W": 5},
            other=({"B": 2, "K": 3, "D": 5, "H": 7, "W": 9}, {"B": 3, "K": 3, "D": 5, "H": 5, "W": 11}),
            options=("reduction",),
        ),
        Op(
            "stability_loss",
            _stability_loss,
            _draw_pairs,
            {
                "paper": {"B": 1, "T": 64, "C": 100},
                "odd": {"B": 2, "T": 37, "C": 7, "scale": 3.0},
                "one patch": {"B": 3, "T": 1, "C": 12},
                "wide": {"B": 1, "T": 9, "C": 256, "scale": 20.0},
            },
            tiny={"B": 2, "T": 3, "C": 5},
            other=({"B": 3, "T": 5, "C": 5}, {"B": 4, "T": 7, "C": 5}),
            options=("scale",),
        ),
        Op(
            "patch_embedding",
            _patch_embedding,
            _draw_patches,
            {
                "patch 4": {"B": 2, "K": 7, "H": 14, "W": 19, "C": 12, "patch": 4},
                "patch 8": {"B": 1, "K": 20, "H": 17, "W": 9, "C": 100, "patch": 8},
                "patch 3": {"B": 1, "K": 130, "H": 7, "W": 8, "C": 7, "patch": 3},
            },
            tiny={"B": 1, "K": 3, "H": 5, "W": 7, "C": 4, "patch": 2},
            other=(
                {"B": 2, "K": 3, "H": 7, "W": 9, "C": 4, "patch": 2},
                {"B": 3, "K": 3, "H": 9, "W": 11, "C": 4, "patch": 2},
            ),
            differentiable=2,
            options=("patch",),
        ),
    )
}
