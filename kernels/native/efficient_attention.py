"""Launchers of the CPU kernels of efficient attention."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from msformer_fast.identities.efficient_attention import (
    Options,
    Parameters,
    context_of,
    folded_of,
    small_gradients,
)
from msformer_fast.identities.parameters import contiguous_all, empty_like_all
from msformer_fast.kernels.native.library import run


def efficient_attention_forward(
    x: Tensor, parameters: Parameters, options: Options, batch_norm: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result (B, H, W, C), the context, and what the backward reads: log_sum (B, Ck), gathered (B, Ck, C)."""
    x, p = x.contiguous(), contiguous_all(parameters)
    log_sum = x.new_empty(x.shape[0], p.key_weight.shape[0])
    gathered = x.new_empty(*log_sum.shape, x.shape[-1])
    run(
        "efficient_attention_gather",
        **_tokens(x, p, options, batch_norm),
        key_weight=p.key_weight,
        log_sum=log_sum,
        gathered=gathered,
    )

    context = context_of(gathered, p, options.heads)
    y = torch.empty_like(x)
    run(
        "efficient_attention_attend",
        **_tokens(x, p, options, batch_norm), **_queries(p, options), reprojection_bias=p.reprojection_bias,
        residual=options.residual, folded=folded_of(context, p.reprojection_weight).contiguous(), y=y,
    )  # fmt: skip
    return y, context, log_sum, gathered


def efficient_attention_backward(
    grad_y: Tensor,
    grad_context: Tensor,
    x: Tensor,
    parameters: Parameters,
    options: Options,
    batch_norm: Tensor | None,
    log_sum: Tensor,
    gathered: Tensor,
) -> tuple[Tensor, Parameters, Tensor | None]:
    """Gradients of ``x``, of every parameter, and of the batch norm's weight and bias (2, C); contiguous. That of the
    keys' bias is zero."""
    x, grad_y, p = x.contiguous(), grad_y.contiguous(), contiguous_all(parameters)
    tokens, queries = _tokens(x, p, options, batch_norm), _queries(p, options)
    gradients = empty_like_all(p)
    if gradients.key_bias is not None:
        gradients.key_bias.zero_()

    d_batch_norm = None if batch_norm is None else x.new_empty(2, x.shape[-1])
    d_x, d_folded = torch.empty_like(x), torch.empty_like(gathered)
    context = context_of(gathered, p, options.heads)
    folded = folded_of(context, p.reprojection_weight).contiguous()
    names = "query_weight", "query_bias", "reprojection_bias"
    run(
        "efficient_attention_queries_backward",
        **tokens, **queries, folded=folded, grad_y=grad_y, d_n=d_x, d_folded=d_folded,
        **{f"d_{name}": getattr(gradients, name) for name in names},
    )  # fmt: skip

    small = small_gradients(d_folded, grad_context, gathered, context, p)
    names = "key_weight", "norm_weight", "norm_bias"
    run(
        "efficient_attention_keys_backward",
        **tokens, key_weight=p.key_weight, log_sum=log_sum, gathered=gathered,
        d_gathered=small.d_gathered.contiguous(),
        balance=small.balance, grad_y=grad_y if options.residual else None, d_x=d_x,
        d_batch_norm=d_batch_norm, **{f"d_{name}": getattr(gradients, name) for name in names},
    )  # fmt: skip
    return d_x, cast(Any, gradients)._replace(**small.parameters), d_batch_norm


def _tokens(x: Tensor, p: Parameters, options: Options, batch_norm: Tensor | None) -> dict[str, Any]:
    """What every kernel takes to make the normed tokens."""
    batch, height, width, channels = x.shape
    sizes = {"batch": batch, "tokens": height * width, "channels": channels, "keys": p.key_weight.shape[0]}
    norm = {"norm_weight": p.norm_weight, "norm_bias": p.norm_bias, "norm": options.norm, "eps": options.eps}
    return {"x": x, **sizes, **norm, "batch_norm": batch_norm}


def _queries(p: Parameters, options: Options) -> dict[str, Any]:
    return {"heads": options.heads, "query_weight": p.query_weight, "query_bias": p.query_bias}
