"""Launchers of efficient attention. Its kernels, three kinds of them, and the launch table have files of their own."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels import efficient_attention_gradient_kernels as backward
from msformer_fast.kernels import efficient_attention_kernels as forward
from msformer_fast.kernels import efficient_attention_merge_kernels as merges
from msformer_fast.kernels.efficient_attention_table import (
    BATCH_NORM,
    FINISH_BLOCK,
    SMALL,
    Shape,
    chunks_of,
    launch_settings,
    programs_of,
)
from msformer_fast.kernels.launch import accumulator, multiprocessors_of, padded, product_kind, target_of


class _Call:
    """What the launches of one call share."""

    def __init__(
        self, x: Tensor, weight: Tensor, shape: Shape, norm: bool, eps: float, products: torch.dtype, precision: str
    ) -> None:
        self.x, self.shape = x, shape
        mixed = products.itemsize == 2 and {x.dtype, weight.dtype} != {products}
        self.kind = "mixed" if mixed else product_kind(products, precision)
        self.target, self.multiprocessors = target_of(x.device), multiprocessors_of(x.device)
        dot = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
        self.acc = accumulator(x.dtype)
        self.passes = dict(
            width=shape.C,
            eps=eps,
            C=shape.C,
            NORM=norm,
            ACC=self.acc,
            DOT=dot.get(products, tl.float64),
            PREC=precision,
        )
        self.small: dict[str, Any] = dict(SMALL, C=shape.C, BLOCK_C=padded(shape.C), ACC=self.acc)

    def launch(self, part: str) -> tuple[dict[str, int], int, int]:
        """Options, programs that share an image's tokens, and how many do each share."""
        settings = launch_settings(part, self.shape, self.kind, self.target)
        chunks = chunks_of(part, self.shape, settings)
        return settings, programs_of(self.shape, settings, chunks, self.multiprocessors), chunks

    def new(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=sum_dtype(self.x.dtype), device=self.x.device)


Parameters = tuple[Tensor | None, ...]
Saved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _contiguous(tensors: Parameters) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _shape_of(x: Tensor, parameters: Parameters, heads: int) -> Shape:
    key_weight, value_weight = parameters[0], parameters[4]
    assert key_weight is not None and value_weight is not None
    tokens = x.shape[1] * x.shape[2]
    images = x.shape[0] if tokens else 0  # maps without a pixel are none
    return Shape(images, tokens, x.shape[3], key_weight.shape[0], value_weight.shape[0], heads)


def efficient_attention_forward(
    x: Tensor,
    parameters: Parameters,
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
    products: torch.dtype,
    input_precision: str = "ieee",
    batch_norm: tuple[Tensor, ...] = (),
    bn_eps: float = 0.0,
) -> tuple[Tensor, Tensor, Saved]:
    """Result, context, and for the backward: maximum (B, CK), G (B, CK, C), sum (B, CK), M (B, CK, C), normed x.

    Args:
        x: (B, H, W, C); other strides than contiguous cost one copy, here and below.
        parameters: weight and bias of keys, queries, values and reprojection, weight and bias of the LayerNorm.
        products: dtype that operands of products are rounded to; the context has it.
        input_precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        batch_norm: weight, bias, mean, variance of the batch norm that x is read through; its result is the last of the
            saved, which is empty without one.
    """
    x, shape = x.contiguous(), _shape_of(x, parameters, heads)
    wk, _, wq, bq, wv, bv, wr, br, gamma, beta = _contiguous(parameters)
    call = _Call(x, wk, shape, norm, eps, products, input_precision)
    B, N, C, CK, CV, _ = shape
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, products) if residual else products, device=x.device)
    context = torch.empty((x.shape[0], heads, CK // heads, CV // heads), dtype=products, device=x.device)
    peak, total, gathered, folded = (call.new(x.shape[0], CK, *more) for more in ((), (), (C,), (C,)))
    normed = torch.empty(x.shape if batch_norm else (0,), dtype=x.dtype, device=x.device)
    if B == 0:
        return y, context.zero_(), (peak, gathered, total, folded, normed)
    settings, programs, chunks = call.launch("context")
    peaks, totals, gathereds = (call.new(B * programs, CK, *more) for more in ((), (), (C,)))
    bn_weight, bn_bias, bn_mean, bn_var = _contiguous(batch_norm) if batch_norm else [None] * 4
    forward.context_kernel[B * programs, chunks](
        x,
        bn_mean,
        bn_var,
        bn_weight,
        bn_bias,
        normed if batch_norm else None,
        gamma,
        beta,
        wk,
        peaks,
        totals,
        gathereds,
        N,
        programs,
        CK,
        bn_eps=bn_eps,
        **call.passes,
        **settings,
    )
    merges.merge_kernel[(B * CK,)](
        peaks,
        totals,
        gathereds,
        wv,
        bv,
        wr,
        peak,
        total,
        gathered,
        folded,
        context,
        programs,
        **shape.small,
        **call.small,
    )
    settings, _, _ = call.launch("attend")
    blocks = triton.cdiv(N, settings["BLOCK_N"])
    forward.attend_kernel[(B * blocks,)](
        normed if batch_norm else x,
        gamma,
        beta,
        wq,
        bq,
        folded,
        br,
        y,
        N,
        blocks,
        CK,
        CK // heads,
        HEADS=heads,
        RESIDUAL=residual,
        **call.passes,
        **settings,
    )
    return y, context, (peak, gathered, total, folded, normed)


def efficient_attention_backward(
    grad_y: Tensor,
    grad_context: Tensor | None,
    x: Tensor,
    parameters: Parameters,
    heads: int,
    norm: bool,
    residual: bool,
    eps: float,
    products: torch.dtype,
    saved: Saved,
    input_precision: str = "ieee",
    batch_norm: tuple[Tensor, ...] = (),
    bn_eps: float = 0.0,
) -> tuple[Tensor, Parameters, Parameters]:
    """Gradients of x, of the parameters, and of the batch norm's weight and bias, each in its tensor's dtype.

    Args:
        grad_y, grad_context: any strides. The others: as they went into the forward and came out of it.
    """
    peak, gathered, total, folded, normed = saved
    raw, shape, grad_y = x.contiguous(), _shape_of(x, parameters, heads), grad_y.contiguous()
    grad_context = None if grad_context is None else grad_context.contiguous()
    wk, _, wq, bq, wv, bv, wr, _, gamma, beta = _contiguous(parameters)
    call = _Call(x, wk, shape, norm, eps, products, input_precision)
    B, N, C, CK, CV, _ = shape
    x, new = normed if batch_norm else raw, call.new
    bn_weight, _, bn_mean, bn_var = _contiguous(batch_norm) if batch_norm else [None] * 4
    dx, query_slots, key_slots, token_slots = torch.empty(x.shape, dtype=x.dtype, device=x.device), 0, 0, 0
    dfolded, dG, dcontexts, balance = new(B, CK, C), new(B, CK, C), new(B, CK, CV // heads), new(B, CK)
    query_vectors, token_vectors, dwqs, dwks = new(0), new(0), new(0), new(0)
    if B:
        settings, programs, chunks = call.launch("queries")
        query_slots = B * programs
        stats, query_vectors = new(B, heads, 3, N), new(query_slots, CK + C)
        dfoldeds, dwqs = new(query_slots, CK, C), new(query_slots, CK, C)
        backward.query_gradients_kernel[query_slots, chunks](
            x,
            gamma,
            beta,
            wq,
            bq,
            folded,
            grad_y,
            stats,
            dfoldeds,
            dwqs,
            query_vectors,
            N,
            programs,
            heads,
            CK,
            CK // heads,
            **call.passes,
            **settings,
        )
        merges.merge_gradients_kernel[(B * CK,)](
            dfoldeds,
            grad_context,
            wv,
            wr,
            total,
            gathered,
            dfolded,
            dcontexts,
            dG,
            balance,
            programs,
            **shape.small,
            **call.small,
        )
        settings, programs, _ = call.launch("tokens")
        token_slots, token_vectors = B * programs, new(B * programs, 4, C)
        backward.token_gradients_kernel[(token_slots,)](
            x,
            gamma,
            beta,
            wk,
            wq,
            bq,
            peak,
            folded,
            dG,
            balance,
            stats,
            grad_y,
            raw if batch_norm else None,
            bn_mean,
            bn_var,
            dx,
            token_vectors,
            N,
            programs,
            heads,
            CK,
            CK // heads,
            bn_eps=bn_eps,
            RESIDUAL=residual,
            **call.passes,
            **settings,
        )
        settings, programs, chunks = call.launch("keys")
        key_slots, dwks = B * programs, new(B * programs, CK, C)
        backward.key_gradients_kernel[key_slots, chunks](
            x, gamma, beta, wk, peak, dG, balance, dwks, N, programs, CK, **call.passes, **settings
        )
    gradients = _empty_like(parameters)
    bn_gradients, sums = _empty_like(batch_norm[:2]), new(2, C) if batch_norm else None
    matrix_blocks = triton.cdiv(CK * C, FINISH_BLOCK)
    merges.finish_kernel[(CV + 2 * matrix_blocks + 1,)](
        dfolded,
        dcontexts,
        gathered,
        wv,
        bv,
        dwks,
        dwqs,
        query_vectors,
        token_vectors,
        *gradients,
        *(bn_gradients or (None, None)),
        sums,
        B,
        query_slots,
        key_slots,
        token_slots,
        BLOCK=FINISH_BLOCK,
        **shape.small,
        **call.small,
    )
    if B and batch_norm:
        rows = B * N
        merges.batch_norm_gradient_kernel[(triton.cdiv(rows, BATCH_NORM["BLOCK_R"]),)](
            raw,
            bn_mean,
            bn_var,
            bn_weight,
            sums,
            dx,
            rows,
            bn_eps,
            C=C,
            BLOCK_C=padded(C),
            ACC=call.acc,
            **BATCH_NORM,
        )
    return dx, gradients, bn_gradients


def _empty_like(tensors: Parameters) -> Parameters:
    return tuple(t if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors)
