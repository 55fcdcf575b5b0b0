"""Launchers of efficient attention. Its kernels, forward and backward, and the launch table have files of their own."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.efficient_attention_gradient_kernels import (
    VECTORS,
    finish_kernel,
    key_gradients_kernel,
    merge_gradients_kernel,
    query_gradients_kernel,
    token_gradients_kernel,
)
from msformer_fast.kernels.efficient_attention_kernels import attend_kernel, context_kernel, merge_kernel
from msformer_fast.kernels.efficient_attention_table import (
    FINISH,
    SMALL,
    Shape,
    chunks_of,
    launch_settings,
    programs_of,
)
from msformer_fast.kernels.launch import accumulator, launch, multiprocessors_of, product_kind, target_of

Parameters = tuple[Tensor | None, ...]
Saved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

# As kernels name them, in the order in which they come.
PARAMETERS = ("wk", "bk", "wq", "bq", "wv", "bv", "wr", "br", "gamma", "beta")
BATCH_NORM_PARAMETERS = ("bn_weight", "bn_bias", "bn_mean", "bn_var")
DOTS = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class _Call:
    """What the launches of one call have in common.

    Attributes:
        shape: sizes; maps without a pixel are no images.
        shared: arguments by the kernels' names: sizes, parameters and batch norm, dtypes, options.
    """

    def __init__(
        self,
        x: Tensor,
        parameters: Parameters,
        batch_norm: tuple[Tensor, ...],
        heads: int,
        products: torch.dtype,
        input_precision: str,
        **options: Any,
    ) -> None:
        key_weight, value_weight = parameters[0], parameters[4]
        assert key_weight is not None and value_weight is not None
        tokens = x.shape[1] * x.shape[2]
        images = x.shape[0] if tokens else 0
        self.shape = Shape(images, tokens, x.shape[3], key_weight.shape[0], value_weight.shape[0], heads)

        mixed = products.itemsize == 2 and {x.dtype, key_weight.dtype} != {products}
        self._kind = "mixed" if mixed else product_kind(products, input_precision)
        self._device, self._sums = x.device, sum_dtype(x.dtype)
        self.shared = dict(
            **self.shape.arguments,
            **_named("p_{}", PARAMETERS, _contiguous(parameters)),
            **_named("p_{}", BATCH_NORM_PARAMETERS, _contiguous(batch_norm)),
            **options,
            ACC=accumulator(x.dtype),
            DOT=DOTS[products],
            PREC=input_precision,
        )

    def split(self, part: str) -> tuple[dict[str, int], int, int]:
        """Settings of a pass, programs that share an image's tokens, and how many do each share."""
        settings = launch_settings(part, self.shape, self._kind, target_of(self._device))
        chunks = chunks_of(part, self.shape, settings)
        return settings, programs_of(self.shape, settings, chunks, multiprocessors_of(self._device)), chunks

    def sharing_rows(self, block: int) -> int:
        """Programs that share the tokens of all images, a block at a time: one a multiprocessor, and at least one."""
        blocks = triton.cdiv(self.shape.B * self.shape.N, block)
        return max(1, min(multiprocessors_of(self._device), blocks))

    def new(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=self._sums, device=self._device)


def _named(name: str, names: tuple[str, ...], tensors: Parameters) -> dict[str, Any]:
    """Tensors by their names as arguments; all None where there are no tensors."""
    return dict(zip(map(name.format, names), tensors or [None] * len(names), strict=True))


def _contiguous(tensors: Parameters) -> Parameters:
    return tuple(tensor if tensor is None else tensor.contiguous() for tensor in tensors)


def _empty_like(tensors: Parameters) -> Parameters:
    return tuple(t if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors)


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
    x = x.contiguous()
    call = _Call(
        x, parameters, batch_norm, heads, products, input_precision,
        NORM=norm, RESIDUAL=residual, eps=eps, bn_eps=bn_eps,
    )  # fmt: skip
    (B, N, C, CK, CV, _), new = call.shape, call.new
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, products) if residual else products, device=x.device)
    context = torch.empty((x.shape[0], heads, CK // heads, CV // heads), dtype=products, device=x.device)
    maximum, total, G, M = (new(x.shape[0], CK, *more) for more in ((), (), (C,), (C,)))
    normed = torch.empty(x.shape if batch_norm else (0,), dtype=x.dtype, device=x.device)
    if B == 0:
        context.zero_()  # no kernel writes it

    settings, programs, chunks = call.split("context")
    partial_max, partial_sum, partial_G = (new(B * programs, CK, *more) for more in ((), (), (C,)))
    launch(
        context_kernel, (B * programs, chunks), call.shared, settings,
        p_x=x, p_normed=normed if batch_norm else None,
        p_partial_max=partial_max, p_partial_sum=partial_sum, p_partial_G=partial_G, programs=programs,
    )  # fmt: skip
    launch(
        merge_kernel, (B * CK,), call.shared, SMALL,
        p_partial_max=partial_max, p_partial_sum=partial_sum, p_partial_G=partial_G,
        p_max=maximum, p_sum=total, p_G=G, p_M=M, p_context=context, programs=programs,
    )  # fmt: skip

    settings, _, _ = call.split("attend")
    blocks = triton.cdiv(N, settings["BLOCK_N"])
    launch(
        attend_kernel, (B * blocks,), call.shared, settings,
        p_x=normed if batch_norm else x, p_M=M, p_y=y, blocks=blocks,
    )  # fmt: skip
    return y, context, (maximum, G, total, M, normed)


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
    maximum, G, total, M, normed = saved
    raw, grad_y = x.contiguous(), grad_y.contiguous()
    x = normed if batch_norm else raw
    call = _Call(
        x, parameters, batch_norm, heads, products, input_precision,
        NORM=norm, RESIDUAL=residual, eps=eps, bn_eps=bn_eps,
    )  # fmt: skip
    (B, N, C, CK, CV, _), new = call.shape, call.new
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    settings, query_programs, chunks = call.split("queries")
    partial_dM, partial_dwq, partial_biases = (new(B * query_programs, *size) for size in ((CK, C), (CK, C), (CK + C,)))
    stats = new(B, heads, 3, N)
    launch(
        query_gradients_kernel, (B * query_programs, chunks), call.shared, settings,
        p_x=x, p_M=M, p_grad_y=grad_y,
        p_query_stats=stats, p_partial_dM=partial_dM, p_partial_dwq=partial_dwq, p_partial_biases=partial_biases,
        programs=query_programs,
    )  # fmt: skip

    dM, dG, dcontext, key_delta = new(B, CK, C), new(B, CK, C), new(B, CK, CV // heads), new(B, CK)
    launch(
        merge_gradients_kernel, (B * CK,), call.shared, SMALL,
        p_partial_dM=partial_dM, p_grad_context=None if grad_context is None else grad_context.contiguous(),
        p_sum=total, p_G=G, p_dM=dM, p_dcontext=dcontext, p_dG=dG, p_key_delta=key_delta, programs=query_programs,
    )  # fmt: skip

    settings, token_programs, _ = call.split("tokens")
    partial_norms = new(B * token_programs, 4, C)
    launch(
        token_gradients_kernel, (B * token_programs,), call.shared, settings,
        p_x=x, p_max=maximum, p_M=M, p_dG=dG, p_key_delta=key_delta, p_query_stats=stats, p_grad_y=grad_y,
        p_raw=raw if batch_norm else None, p_dx=dx, p_partial_norms=partial_norms, programs=token_programs,
    )  # fmt: skip

    settings, key_programs, chunks = call.split("keys")
    partial_dwk = new(B * key_programs, CK, C)
    launch(
        key_gradients_kernel, (B * key_programs, chunks), call.shared, settings,
        p_x=x, p_max=maximum, p_dG=dG, p_key_delta=key_delta, p_partial_dwk=partial_dwk, programs=key_programs,
    )  # fmt: skip

    gradients, bn_gradients = _empty_like(parameters), _empty_like(batch_norm[:2])
    bn_programs = call.sharing_rows(FINISH["BLOCK_R"]) if batch_norm else 0
    launch(
        finish_kernel, (bn_programs + CV + 2 * triton.cdiv(CK * C, FINISH["BLOCK"]) + VECTORS,), call.shared, FINISH,
        _named("p_d{}", PARAMETERS, gradients), _named("p_d{}", BATCH_NORM_PARAMETERS[:2], bn_gradients),
        p_dM=dM, p_dcontext=dcontext, p_G=G, p_partial_dwk=partial_dwk, p_partial_dwq=partial_dwq,
        p_partial_biases=partial_biases, p_partial_norms=partial_norms,
        p_raw=raw if batch_norm else None, p_dx=dx if batch_norm else None,
        images=B, query_programs=B * query_programs, key_programs=B * key_programs,
        token_programs=B * token_programs, bn_programs=bn_programs, rows=B * N,
    )  # fmt: skip
    return dx, gradients, bn_gradients
