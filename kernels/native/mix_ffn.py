"""Launchers of the CPU kernels of Mix-FFN."""

from __future__ import annotations

import torch
from torch import Tensor

from msformer_fast.identities.mix_ffn import Options, Parameters
from msformer_fast.identities.parameters import contiguous_all, empty_like_all
from msformer_fast.kernels.native.library import run


def mix_ffn_forward(t: Tensor, parameters: Parameters, options: Options) -> Tensor:
    """The result (B, H, W, C), contiguous."""
    t, p = t.contiguous(), contiguous_all(parameters)
    y = torch.empty_like(t)
    run("mix_ffn_forward", **_sizes(t, p), t=t, **p._asdict(), **options._asdict(), y=y)
    return y


def mix_ffn_backward(grad_y: Tensor, t: Tensor, parameters: Parameters, options: Options) -> tuple[Tensor, Parameters]:
    """Gradients of ``t`` and of every parameter, contiguous."""
    t, p = t.contiguous(), contiguous_all(parameters)
    d_t = torch.empty_like(t)
    gradients = empty_like_all(p)
    named = {f"d_{name}": value for name, value in gradients._asdict().items()}
    run(
        "mix_ffn_backward",
        **_sizes(t, p), t=t, **p._asdict(), **options._asdict(), grad_y=grad_y.contiguous(), d_t=d_t, **named,
    )  # fmt: skip
    return d_t, gradients


def _sizes(t: Tensor, parameters: Parameters) -> dict[str, int]:
    batch, height, width, channels = t.shape
    hidden = parameters.fc1_weight.shape[0]
    return {"batch": batch, "height": height, "width": width, "channels": channels, "hidden": hidden}
