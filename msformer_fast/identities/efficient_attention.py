"""Efficient attention through its identities: an expression for autograd, and strips of tokens for the CPU.

With ``n`` the normed tokens and ``p`` the keys' softmax over positions, whose columns sum to 1::

    context = (p^T n) Wv^T + bv        M = context Wr^T        y = x + q M + br

so neither values nor attended tokens are ever made. The keys' bias cancels in the softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.identities.parameters import add_to, cast_all, cast_like, zeros_like_all
from msformer_fast.identities.strips import layer_norm, layer_norm_backward, strips


class Parameters(NamedTuple):
    """Every weight of the op, as its public function names them."""

    key_weight: Tensor
    key_bias: Tensor | None
    query_weight: Tensor
    query_bias: Tensor | None
    value_weight: Tensor
    value_bias: Tensor | None
    reprojection_weight: Tensor
    reprojection_bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


class Options(NamedTuple):
    """Every option of the op, as its public function names them."""

    heads: int
    norm: bool
    residual: bool
    eps: float


class Saved(NamedTuple):
    """What the backward reads beside inputs and parameters.

    Attributes:
        log_sum: (B, Ck), logarithm of the keys' softmax denominator.
        gathered: (B, Ck, C), ``p^T n``.
        keys, queries: (B, H * W, Ck), the raw keys and the queries' softmax; empty where they are to be recomputed.
    """

    log_sum: Tensor
    gathered: Tensor
    keys: Tensor
    queries: Tensor


def efficient_attention(x: Tensor, parameters: Parameters, options: Options) -> tuple[Tensor, Tensor]:
    """See :func:`msformer_fast.ops.efficient_attention`."""
    p, heads = parameters, options.heads
    n = F.layer_norm(x, x.shape[-1:], p.norm_weight, p.norm_bias, options.eps) if options.norm else x
    n = n.flatten(1, 2)
    # The bias of the keys changes nothing, but belongs in the graph: its gradient is zero, not missing.
    keys = F.linear(n, p.key_weight, p.key_bias).softmax(1)
    queries = F.linear(n, p.query_weight, p.query_bias).unflatten(-1, (heads, -1)).softmax(-1).flatten(-2)
    context = context_of(keys.transpose(1, 2) @ n, p, heads)
    y = (queries @ folded_of(context, p.reprojection_weight)).unflatten(1, x.shape[1:3])
    y = y if p.reprojection_bias is None else y + p.reprojection_bias.to(y.dtype)
    return (x + y if options.residual else y), context


def context_of(gathered: Tensor, p: Parameters, heads: int) -> Tensor:
    """(B, heads, Ck / heads, Cv / heads) from ``p^T n`` (B, Ck, C)."""
    values = p.value_weight.unflatten(0, (heads, -1))
    context = gathered.unflatten(1, (heads, -1)) @ values.transpose(1, 2)
    # Under autocast the bias is wider than the product: as in a linear layer, it does not widen the result.
    return context if p.value_bias is None else context + p.value_bias.to(context.dtype).unflatten(0, (heads, 1, -1))


def folded_of(context: Tensor, reprojection: Tensor) -> Tensor:
    """``M`` (B, Ck, C): the reprojection applied to the context."""
    heads = context.shape[1]
    return (context @ reprojection.unflatten(1, (heads, -1)).permute(1, 2, 0)).flatten(1, 2)


class _Strips:
    """What forward and backward in strips share: normed tokens, keys and queries of a strip of one image."""

    def __init__(self, x: Tensor, parameters: Parameters, options: Options) -> None:
        self.dtype = sum_dtype(x.dtype)
        self.p, self.options = cast_all(parameters, self.dtype), options
        self.batch, self.channels = x.shape[0], x.shape[-1]
        self.tokens = x.shape[1] * x.shape[2]
        self.key_channels = self.p.key_weight.shape[0]
        self.projections = torch.cat([self.p.key_weight, self.p.query_weight])

    def ranges(self) -> list[tuple[int, int]]:
        widest = 2 * max(self.key_channels, self.channels) + self.key_channels
        return list(strips(self.tokens, widest * self.dtype.itemsize))

    def normed(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x = x.to(self.dtype)
        if not self.options.norm:
            return x, None, None
        return layer_norm(x, self.p.norm_weight, self.p.norm_bias, self.options.eps)

    def keys_and_queries(self, n: Tensor) -> tuple[Tensor, Tensor]:
        """Raw keys, and the queries' softmax head by head."""
        keys, queries = (n @ self.projections.t()).split(self.key_channels, 1)
        if self.p.query_bias is not None:
            queries = queries + self.p.query_bias
        return keys, queries.unflatten(1, (self.options.heads, -1)).softmax(-1).flatten(1)


def efficient_attention_forward(
    x: Tensor, parameters: Parameters, options: Options, keep: bool
) -> tuple[Tensor, Tensor, Saved]:
    """The result, the context, and what the backward reads."""
    s = _Strips(x, parameters, options)
    tokens = x.flatten(1, 2).contiguous()
    y = torch.empty_like(tokens)
    wide = (s.batch, s.tokens, s.key_channels)
    queries = tokens.new_empty(wide, dtype=s.dtype)
    keys = tokens.new_empty(wide if keep else (0,), dtype=s.dtype)
    log_sum = tokens.new_empty((s.batch, s.key_channels), dtype=s.dtype)
    gathered = tokens.new_empty((s.batch, s.key_channels, s.channels), dtype=s.dtype)
    for image in range(s.batch):
        # Softmax over positions as the strips go by: what was summed is scaled when a larger key turns up.
        largest = log_sum.new_full((s.key_channels,), -torch.inf)
        total, weighted = torch.zeros_like(largest), torch.zeros_like(gathered[image])
        for first, last in s.ranges():
            n, _, _ = s.normed(tokens[image, first:last])
            k, queries[image, first:last] = s.keys_and_queries(n)
            if keep:
                keys[image, first:last] = k
            before, largest = largest, torch.maximum(largest, k.amax(0))
            shrink = (before - largest).exp()
            powers = (k - largest).exp_()
            total = total * shrink + powers.sum(0)
            weighted = torch.addmm(weighted * shrink[:, None], powers.t(), n)
        log_sum[image] = largest + total.log()
        gathered[image] = weighted / total[:, None]
    context = context_of(gathered, s.p, options.heads)
    folded = folded_of(context, s.p.reprojection_weight)
    for image in range(s.batch):
        for first, last in s.ranges():
            out = queries[image, first:last] @ folded[image]
            if s.p.reprojection_bias is not None:
                out += s.p.reprojection_bias
            if options.residual:
                out += tokens[image, first:last]
            y[image, first:last] = out
    saved = Saved(log_sum, gathered, keys, queries if keep else queries.new_empty(0))
    return y.view(x.shape), context.to(x.dtype), saved


class SmallGradients(NamedTuple):
    """What the second half of a backward reads, and the gradients that need no pass over the tokens.

    Attributes:
        d_gathered: (B, Ck, C).
        balance: (B, Ck), r of ``dk = p (dp - r)``, the softmax's own sum over positions: known without a pass.
        parameters: gradients of values and reprojection, by name, in their shapes.
    """

    d_gathered: Tensor
    balance: Tensor
    parameters: dict[str, Tensor | None]


def small_gradients(
    d_folded: Tensor, grad_context: Tensor, gathered: Tensor, context: Tensor, p: Parameters
) -> SmallGradients:
    """Through ``M`` and the context, from ``q^T dy`` (B, Ck, C) and the gradient of the context."""
    heads = context.shape[1]
    values, reprojection = p.value_weight.unflatten(0, (heads, -1)), p.reprojection_weight.unflatten(1, (heads, -1))
    d_heads = d_folded.unflatten(1, (heads, -1))
    d_context = grad_context + d_heads @ reprojection.permute(1, 0, 2)
    d_gathered = (d_context @ values).flatten(1, 2)

    d_values = (d_context.transpose(2, 3) @ gathered.unflatten(1, (heads, -1))).sum(0)
    parameters = {
        "value_weight": d_values.flatten(0, 1),
        "value_bias": None if p.value_bias is None else d_context.sum((0, 2)).flatten(),
        "reprojection_weight": (context.transpose(2, 3) @ d_heads).sum(0).flatten(0, 1).t().contiguous(),
    }
    return SmallGradients(d_gathered, (gathered * d_gathered).sum(-1), parameters)


def efficient_attention_backward(
    grad_y: Tensor, grad_context: Tensor, x: Tensor, parameters: Parameters, options: Options, saved: Saved
) -> tuple[Tensor, Parameters]:
    """Gradients of ``x`` and of every parameter, in the dtypes that these have. The keys' bias has none but zero."""
    s = _Strips(x, parameters, options)
    p, heads = s.p, options.heads
    tokens, grad = x.flatten(1, 2).contiguous(), grad_y.flatten(1, 2).contiguous()
    keep = saved.keys.numel() > 0
    sums = zeros_like_all(p)

    # First what goes through M and the context: two small products need the whole image's q^T dy.
    d_folded = torch.zeros_like(saved.gathered)
    for image in range(s.batch):
        for first, last in s.ranges():
            d_y = grad[image, first:last].to(s.dtype)
            if keep:
                queries = saved.queries[image, first:last]
            else:
                queries = s.keys_and_queries(s.normed(tokens[image, first:last])[0])[1]
            d_folded[image].addmm_(queries.t(), d_y)
            add_to(sums.reprojection_bias, d_y.sum(0))
    context = context_of(saved.gathered, p, heads)
    small = small_gradients(d_folded, grad_context.to(s.dtype), saved.gathered, context, p)
    sums = sums._replace(**{name: value for name, value in small.parameters.items() if value is not None})
    folded = folded_of(context, p.reprojection_weight)
    d_gathered, balance = small.d_gathered, small.balance

    d_x = torch.empty_like(tokens)
    d_projections = torch.zeros_like(s.projections)
    k_end, q_end = s.key_channels, 2 * s.key_channels
    for image in range(s.batch):
        back = torch.cat([s.projections, d_gathered[image]])
        excess = torch.zeros_like(balance[image])
        for first, last in s.ranges():
            rows, d_y = tokens[image, first:last], grad[image, first:last].to(s.dtype)
            n, mean, rstd = s.normed(rows)
            if keep:
                keys, queries = saved.keys[image, first:last], saved.queries[image, first:last]
            else:
                keys, queries = s.keys_and_queries(n)
            both = n.new_empty((last - first, q_end + s.key_channels))
            d_keys, d_queries, powers = both[:, :k_end], both[:, k_end:q_end], both[:, q_end:]
            torch.sub(keys, saved.log_sum[image], out=powers).exp_()
            torch.mm(n, d_gathered[image].t(), out=d_keys).sub_(balance[image]).mul_(powers)
            split = (-1, heads, s.key_channels // heads)
            slope = torch._softmax_backward_data(
                (d_y @ folded[image].t()).view(split), queries.view(split), -1, s.dtype
            )
            d_queries.copy_(slope.view(-1, s.key_channels))
            add_to(sums.query_bias, d_queries.sum(0))
            excess += d_keys.sum(0)
            d_projections.addmm_(both[:, :q_end].t(), n)
            d_n = both @ back
            if mean is not None and rstd is not None:
                d_n, d_weight, d_bias = layer_norm_backward(
                    d_n, rows.to(s.dtype), mean, rstd, p.norm_weight, p.norm_bias
                )
                add_to(sums.norm_weight, d_weight)
                add_to(sums.norm_bias, d_bias)
            if options.residual:
                d_n += d_y
            d_x[image, first:last] = d_n
        # The keys' gradients sum to 0 over positions but for the rounding of r, which every position has in common.
        d_projections[:k_end].addcmul_(excess[:, None], saved.gathered[image], value=-1)
    sums.key_weight.copy_(d_projections[:k_end])
    sums.query_weight.copy_(d_projections[k_end:])
    return d_x.view(x.shape), cast_like(sums, parameters)
