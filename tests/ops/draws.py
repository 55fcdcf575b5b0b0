"""Inputs of every op in float64, and its call on them by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast import ops
from msformer_fast.dtypes import sum_dtype
from msformer_fast.ops.batch_norm import BatchNorm
from msformer_fast.ops.overlap_embedding import overlap_embedding
from msformer_fast.windows import windows_of

Inputs = dict[str, Tensor]
Sizes = dict[str, Any]


def rand(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def draw_logits(s: Sizes) -> Inputs:
    """Logits with ties, one dominating cluster, and half of the rows nearly equal."""
    logits = rand(s["B"], s["K"], s["H"], s["W"], scale=s.get("spread", 3.0))
    if s["B"] and s.get("ties", True):
        logits[..., : s["W"] // 2] *= 1e-3
        logits[:, 1, 0, 0] = logits[:, 0, 0, 0]
        logits[:, 0, -1, -1] += 30
    return {"logits": logits if s.get("cluster_dim", 1) == 1 else logits.permute(0, 2, 3, 1)}


def call_clustering_loss(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    return ops.clustering_loss(inputs["logits"], **options)


def draw_projection(s: Sizes) -> Inputs:
    features = rand(s["B"], s["H"], s["W"], s["D"])
    weight = rand(s["K"], s["D"], scale=s.get("spread", 3.0) / s["D"] ** 0.5)
    return {"features": features, "weight": weight} | ({"bias": rand(s["K"])} if s.get("with_bias", True) else {})


def call_linear_clustering_loss(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    return ops.linear_clustering_loss(inputs["features"], inputs["weight"], inputs.get("bias"), **options)


def draw_pairs(s: Sizes) -> Inputs:
    queries = rand(s["B"], s["T"], s["C"])
    return {"queries": queries, "keys": s.get("alike", 0.5) * queries + 0.7 * rand(s["B"], s["T"], s["C"])}


def call_stability_loss(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    return (ops.stability_loss(inputs["queries"], inputs["keys"], **options),)


def draw_contexts(s: Sizes) -> Inputs:
    """Contexts that are partly alike, as those of two scales are, with rows of very different lengths."""
    context_a = rand(s["B"], s["Ck"], s["Cv"]) * rand(s["B"], s["Ck"], 1).exp()
    context_b = s.get("alike", 0.5) * context_a + 0.7 * rand(s["B"], s["Ck"], s["Cv"])
    losses = {"clustering_loss": rand(1).square()[0], "stability_loss": rand(1).square()[0]}
    return {"context_a": context_a, "context_b": context_b, **losses}


def call_weighted_losses(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    count = torch.arange(1, len(inputs["context_a"]) + 1, dtype=torch.int32, device=inputs["context_a"].device)
    *losses, numbers = ops.weighted_losses(**inputs, label_count=count.flip(0), **options)
    return (*losses, numbers[4])


def draw_patches(s: Sizes) -> Inputs:
    """Score maps with offsets, and a channel whose spread is small beside its mean."""
    logits = rand(s["B"], s["K"], s["H"], s["W"]) + 2 * rand(s["K"], 1, 1)
    logits[:, 0] = 5 + 0.2 * logits[:, 0]
    length = s["patch"] ** 2 * s["K"]
    inputs = {"logits": logits, "weight": rand(s["C"], length, scale=length**-0.5), "bias": rand(s["C"])}
    return inputs | {"norm_weight": 1 + 0.3 * rand(s["K"]), "norm_bias": rand(s["K"])}


def call_patch_embedding(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    return ops.patch_embedding(**inputs, **options)


def draw_image(s: Sizes) -> Inputs:
    """An image that may be a view with other strides, of values far from 0."""
    image = 2.0 + rand(s["B"], s["N"], s["W"], s["H"]).mT
    weight = rand(s["C"], s["N"], 3, 3, scale=(9 * s["N"]) ** -0.5)
    return {"image": image, "weight": weight} | ({"bias": rand(s["C"])} if s.get("with_bias", True) else {})


def call_overlap_embedding(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    return overlap_embedding(inputs["image"], inputs["weight"], inputs.get("bias"), **options)


def draw_attention(s: Sizes) -> Inputs:
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


def call_efficient_attention(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    """The keys' bias, whose gradient is zero and rounding noise in the reference, has a test of its own."""
    x = inputs["x"]
    if "bn_weight" in inputs:
        options["batch_norm"] = batch_norm_of(x, inputs["bn_weight"], inputs["bn_bias"])
    parts = ("key", "query", "value", "reprojection")
    weights = [inputs.get(f"{part}_{kind}") for part in parts for kind in ("weight", "bias")]
    return ops.efficient_attention(x, *weights, inputs.get("norm_weight"), inputs.get("norm_bias"), **options)


def draw_windows(s: Sizes) -> Inputs:
    """Maps with ``spread`` logits, packed or not, and the bias and the vectors outside the map that are asked for."""
    axes = [axis for axis in "DHW" if axis in s]
    sizes, keys = [s[axis] for axis in axes], [s.get(f"{axis}k", s[axis]) for axis in axes]
    heads, d, spread = s.get("heads", 2), s["d"], s.get("spread", 1.0)
    if s.get("packed", False):
        inputs = {"qkv": spread * rand(s["B"], *sizes, 3, heads, d)}
    else:
        inputs = {"q": spread * rand(s["B"], *sizes, heads, d)}
        inputs |= {"k": spread * rand(s["B"], *keys, heads, d), "v": rand(s["B"], *keys, heads, d)}
    geometry = (s.get(name, 0) for name in ("halo", "shift"))
    windows = windows_of("", sizes, keys, s["window"], *geometry)
    if s.get("table", True):
        inputs["bias"] = rand(windows.table, heads)
    elif s.get("dense", False):
        inputs["bias"] = rand(heads, windows.queries, windows.keys)
    if s.get("outside") == "pad":
        inputs |= {"pad_k": rand(heads, d), "pad_v": rand(heads, d)}
    return inputs


def call_cross_scale_attention(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    given = {"q": inputs.get("qkv"), "k": None, "v": None} | {n: t for n, t in inputs.items() if n != "qkv"}
    return (ops.cross_scale_attention(**given, **options),)


def draw_ffn(s: Sizes) -> Inputs:
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


def call_mix_ffn(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    given = {"fc1_bias": None, "depthwise_bias": None, "fc2_bias": None} | inputs
    return (ops.mix_ffn(**given, **options),)


def draw_head(s: Sizes) -> Inputs:
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
    """A batch norm of a map by the map's own statistics: taken in float64, as PyTorch's own norm takes them on a CPU,
    then rounded, so that their error is no part of what is compared."""
    var, mean = torch.var_mean(x.detach().double(), (0, 1, 2), correction=0)
    dtype = sum_dtype(x.dtype)
    return BatchNorm(weight, bias, mean.to(dtype), var.to(dtype), 1e-5)


def _norms_of_a_head(inputs: Inputs) -> dict[str, BatchNorm]:
    names = [name for name in ("coarse", "fine") if f"{name}_norm_weight" in inputs]
    affine = {name: (inputs[f"{name}_norm_weight"], inputs[f"{name}_norm_bias"]) for name in names}
    return {f"{name}_norm": batch_norm_of(inputs[name], *affine[name]) for name in names}


def call_score_map(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    given = [inputs[name] for name in ("coarse", "fine", "up_weight", "head_weight")]
    return (ops.score_map(*given, **_norms_of_a_head(inputs), **options),)


def draw_guided(s: Sizes) -> Inputs:
    """A head with a clear winner in every pixel, so that rounding changes no label, and the patch embedding of it."""
    length, width = s["patch"] ** 2 * s["K"], s.get("E", s["C"])
    inputs = draw_head(s)
    inputs["head_weight"] = inputs["head_weight"] * s.get("spread", 1.0)
    winners = torch.nn.functional.normalize(inputs["head_weight"][:, s["C"] :], dim=1)
    inputs["fine"] += 8 * winners[torch.randint(s["K"], inputs["fine"].shape[:3])]
    inputs |= {"patch_weight": rand(width, length, scale=length**-0.5), "patch_bias": rand(width)}
    return inputs | {"norm_weight": 1 + 0.3 * rand(s["K"]), "norm_bias": rand(s["K"])}


def call_guided_score_map(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    names = ("coarse", "fine", "up_weight", "head_weight", "patch_weight", "patch_bias", "norm_weight", "norm_bias")
    given = [inputs.get(name) for name in names]
    return ops.guided_score_map(*given, **_norms_of_a_head(inputs), **options)[:6]
