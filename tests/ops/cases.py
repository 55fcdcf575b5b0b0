"""The table of ops under the contract: one row an op. A new op is a row here, and a file for its special cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from msformer_fast import ops
from msformer_fast.dtypes import sum_dtype
from msformer_fast.ops.batch_norm import BatchNorm

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
        backends: those beside the reference that this op has.
        of_rounded: outputs that are small differences within output 0, which is rounded to the inputs' dtype: they are
            held to that dtype's epsilon, at the size of output 0.
    """

    name: str
    call: Callable[..., tuple[Tensor, ...]]
    draw: Callable[[Sizes], Inputs]
    sizes: dict[str, Sizes]
    tiny: Sizes
    other: tuple[Sizes, ...]
    differentiable: int = 1
    options: tuple[str, ...] = field(default=())
    backends: tuple[str, ...] = ("triton", "torch")
    of_rounded: tuple[int, ...] = ()

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


def _draw_attention(s: Sizes) -> Inputs:
    """Tokens with a channel that hardly varies; keys whose softmax is sharp where ``spread`` is large.

    The rows of the context differ, and the values' bias, which all of them share, is small: else the queries' gradient
    is a difference of large numbers, and both errors are luck.
    """
    c, ck, cv = s["C"], s.get("Ck", s["C"]), s.get("Cv", s["C"])
    inputs = {"x": rand(s["B"], s["H"], s["W"], c)}
    inputs["x"][..., 0] = 3 + 0.01 * inputs["x"][..., 0]
    inputs["key_weight"] = rand(ck, c, scale=s.get("spread", 2.0) / c**0.5)
    inputs["query_weight"] = rand(ck, c, scale=s.get("spread", 2.0) / c**0.5)
    inputs |= {"value_weight": rand(cv, c, scale=c**-0.5), "reprojection_weight": rand(c, cv, scale=cv**-0.5)}
    if s.get("with_bias", True):
        inputs |= {"query_bias": rand(ck), "value_bias": 0.1 * rand(cv), "reprojection_bias": rand(c)}
    if s.get("norm", True):
        inputs |= {"norm_weight": 1 + 0.3 * rand(c), "norm_bias": 0.3 * rand(c)}
    if s.get("batch_norm", False):
        inputs["x"] = 2 * rand(c) + (1 + rand(c).square()) * inputs["x"]
        inputs |= {"bn_weight": 1 + 0.3 * rand(c), "bn_bias": 0.3 * rand(c)}
    return inputs


def _efficient_attention(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    """The keys' bias, whose gradient is zero and rounding noise in the reference, has a test of its own."""
    x = inputs["x"]
    if "bn_weight" in inputs:
        options["batch_norm"] = batch_norm_of(x, inputs["bn_weight"], inputs["bn_bias"])
    parts = ("key", "query", "value", "reprojection")
    weights = [inputs.get(f"{part}_{kind}") for part in parts for kind in ("weight", "bias")]
    return ops.efficient_attention(x, *weights, inputs.get("norm_weight"), inputs.get("norm_bias"), **options)


def _draw_ffn(s: Sizes) -> Inputs:
    c, d = s["C"], s["D"]
    inputs = {"t": rand(s["B"], s["H"], s["W"], c), "fc1_weight": rand(d, c, scale=c**-0.5)}
    inputs["t"][..., 0] = 3 + 0.01 * inputs["t"][..., 0]
    inputs |= {"depthwise_weight": rand(d, 1, 3, 3, scale=0.4), "fc2_weight": rand(c, d, scale=d**-0.5)}
    if s.get("with_bias", True):
        inputs |= {"fc1_bias": rand(d), "depthwise_bias": rand(d), "fc2_bias": rand(c)}
    if s.get("norm", True):
        inputs |= {"norm_weight": 1 + 0.3 * rand(c), "norm_bias": 0.3 * rand(c)}
    if s.get("inner_norm", True):
        inputs |= {"inner_norm_weight": 1 + 0.3 * rand(d), "inner_norm_bias": 0.3 * rand(d)}
    return inputs


def _mix_ffn(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    given = {"fc1_bias": None, "depthwise_bias": None, "fc2_bias": None} | inputs
    return (ops.mix_ffn(**given, **options),)


def _draw_head(s: Sizes) -> Inputs:
    """Two maps and their weights; with ``batch_norm`` each map has means and spreads that a batch norm takes away."""
    c, height, width = s["C"], s["H"], s["W"]
    inputs = {
        "coarse": rand(s["B"], (height + 1) // 2, (width + 1) // 2, c),
        "fine": rand(s["B"], height, width, c),
        "up_weight": rand(4 * c, c, scale=c**-0.5),
        "head_weight": rand(s["K"], 2 * c, scale=c**-0.5),
    }
    if s.get("batch_norm", False):
        for name in ("coarse", "fine"):
            inputs[name] = inputs[name] * (0.5 + torch.rand(c, dtype=torch.float64)) + rand(c)
            inputs |= {f"{name}_norm_weight": 1 + 0.3 * rand(c), f"{name}_norm_bias": rand(c)}
    return inputs


def batch_norm_of(x: Tensor, weight: Tensor, bias: Tensor) -> BatchNorm:
    """A batch norm of a map by the map's own statistics."""
    var, mean = torch.var_mean(x.detach().to(sum_dtype(x.dtype)), (0, 1, 2), correction=0)
    return BatchNorm(weight, bias, mean, var, 1e-5)


def _norms_of_a_head(inputs: Inputs) -> dict[str, BatchNorm]:
    names = [name for name in ("coarse", "fine") if f"{name}_norm_weight" in inputs]
    affine = {name: (inputs[f"{name}_norm_weight"], inputs[f"{name}_norm_bias"]) for name in names}
    return {f"{name}_norm": batch_norm_of(inputs[name], *affine[name]) for name in names}


def _score_map(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    given = [inputs[name] for name in ("coarse", "fine", "up_weight", "head_weight")]
    return (ops.score_map(*given, **_norms_of_a_head(inputs), **options),)


def _draw_guided(s: Sizes) -> Inputs:
    """A head with a clear winner in every pixel, so that rounding changes no label, and the patch embedding of it."""
    length, width = s["patch"] ** 2 * s["K"], s.get("E", s["C"])
    inputs = _draw_head(s)
    inputs["head_weight"] = inputs["head_weight"] * s.get("spread", 1.0)
    winners = torch.nn.functional.normalize(inputs["head_weight"][:, s["C"] :], dim=1)
    inputs["fine"] += 8 * winners[torch.randint(s["K"], inputs["fine"].shape[:3])]
    inputs |= {"patch_weight": rand(width, length, scale=length**-0.5), "patch_bias": rand(width)}
    return inputs | {"norm_weight": 1 + 0.3 * rand(s["K"]), "norm_bias": rand(s["K"])}


def _guided_score_map(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    names = ("coarse", "fine", "up_weight", "head_weight", "patch_weight", "patch_bias", "norm_weight", "norm_bias")
    given = [inputs.get(name) for name in names]
    return ops.guided_score_map(*given, **_norms_of_a_head(inputs), **options)[:6]


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
        Op(
            "efficient_attention",
            _efficient_attention,
            _draw_attention,
            {
                "paper": {"B": 1, "H": 9, "W": 17, "C": 100},
                "heads": {"B": 2, "H": 7, "W": 5, "C": 12, "Ck": 10, "Cv": 14, "heads": 2},
                "bare": {"B": 2, "H": 6, "W": 3, "C": 7, "norm": False, "residual": False, "with_bias": False},
                "sharp": {"B": 1, "H": 8, "W": 11, "C": 20, "spread": 12.0},
                "lean": {"B": 1, "H": 5, "W": 9, "C": 130, "memory": "lean"},
                "one row": {"B": 3, "H": 1, "W": 9, "C": 10},
                "batch norm": {"B": 2, "H": 5, "W": 7, "C": 20, "heads": 2, "batch_norm": True},
                "bare batch norm": {
                    **{"B": 1, "H": 6, "W": 5, "C": 7, "norm": False, "residual": False, "with_bias": False},
                    **{"batch_norm": True},
                },
                "empty": {"B": 0, "H": 3, "W": 5, "C": 6},
            },
            tiny={"B": 2, "H": 3, "W": 5, "C": 4},
            other=({"B": 3, "H": 7, "W": 9, "C": 4}, {"B": 4, "H": 5, "W": 11, "C": 4}),
            differentiable=2,
            options=("heads", "norm", "residual", "memory"),
        ),
        Op(
            "mix_ffn",
            _mix_ffn,
            _draw_ffn,
            {
                "paper": {"B": 1, "H": 9, "W": 17, "C": 100, "D": 400},
                "batch": {"B": 2, "H": 7, "W": 5, "C": 7, "D": 30},
                "lean": {"B": 2, "H": 6, "W": 4, "C": 12, "D": 20, "memory": "lean"},
                "SegFormer": {"B": 1, "H": 8, "W": 3, "C": 9, "D": 36, "inner_norm": False, "inner_skip": False},
                "bare": {
                    **{"B": 1, "H": 5, "W": 6, "C": 8, "D": 6, "norm": False, "residual": False, "with_bias": False},
                    **{"inner_norm": False},
                },
                "one pixel": {"B": 3, "H": 1, "W": 1, "C": 6, "D": 10},
                "empty": {"B": 0, "H": 3, "W": 5, "C": 6, "D": 10},
            },
            tiny={"B": 2, "H": 3, "W": 5, "C": 4, "D": 6},
            other=({"B": 3, "H": 7, "W": 9, "C": 4, "D": 6}, {"B": 4, "H": 5, "W": 11, "C": 4, "D": 6}),
            options=("norm", "inner_norm", "inner_skip", "residual", "memory"),
        ),
        Op(
            "score_map",
            _score_map,
            _draw_head,
            {
                "paper": {"B": 1, "H": 9, "W": 17, "C": 100, "K": 100},
                "even": {"B": 2, "H": 8, "W": 6, "C": 7, "K": 5},
                "one pixel": {"B": 3, "H": 1, "W": 1, "C": 6, "K": 9},
                "empty": {"B": 0, "H": 3, "W": 5, "C": 6, "K": 9},
                "wide": {"B": 1, "H": 6, "W": 5, "C": 130, "K": 140},
                "batch norm": {"B": 2, "H": 7, "W": 8, "C": 20, "K": 33, "batch_norm": True},
            },
            tiny={"B": 2, "H": 3, "W": 5, "C": 4, "K": 3, "batch_norm": True},
            other=({"B": 3, "H": 7, "W": 9, "C": 4, "K": 3}, {"B": 4, "H": 5, "W": 11, "C": 4, "K": 3}),
        ),
        Op(
            "guided_score_map",
            _guided_score_map,
            _draw_guided,
            {
                "even": {"B": 2, "H": 8, "W": 6, "C": 17, "K": 5, "E": 9, "patch": 2},
                "paper": {"B": 1, "H": 7, "W": 9, "C": 100, "K": 100, "patch": 4, "batch_norm": True},
                "saturated": {"B": 1, "H": 7, "W": 5, "C": 20, "K": 33, "patch": 3, "spread": 40.0},
                "wide": {"B": 1, "H": 5, "W": 6, "C": 60, "K": 140, "patch": 2, "batch_norm": True},
            },
            tiny={"B": 2, "H": 3, "W": 5, "C": 4, "K": 3, "patch": 2, "batch_norm": True},
            other=(
                {"B": 3, "H": 7, "W": 9, "C": 4, "K": 3, "patch": 2, "batch_norm": True},
                {"B": 4, "H": 5, "W": 11, "C": 4, "K": 3, "patch": 2, "batch_norm": True},
            ),
            differentiable=4,
            options=("patch",),
            backends=("triton",),  # the others are the three ops, one after the other
            of_rounded=(1,),
        ),
    )
}
