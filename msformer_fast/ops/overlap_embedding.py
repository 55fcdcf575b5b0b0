"""The overlapping 3x3 embedding of an image before its batch norm, with the statistics that the norm applies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.ops.backend import choose, why_not_native
from msformer_fast.ops.mix_ffn import WithStatistics
from msformer_fast.ops.registration import register
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.overlap_embedding import overlap_embedding as _reference

OP = "overlap_embedding"


def overlap_embedding(
    image: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int, backend: str | None = None
) -> WithStatistics:
    """``y = conv3x3(image)`` padded with zeros, channels last, and mean and variance of its channels.

    Args:
        image: (B, N, H, W), floating point, any strides.
        weight: (C, N, 3, 3); bias: (C) or ``None``.
        stride: from pixel to pixel of ``y``, at least 1.
        backend: ``"native"``, which makes map and statistics in one pass, ``"reference"``, PyTorch's convolution, or
            ``None`` for the fastest that can run.

    Returns:
        ``y`` (B, ceil(H / stride), ceil(W / stride), C) in the dtype of the parameters; ``mean`` and ``var`` (C),
        biased, float32 or better, without a gradient; zeros of an empty batch.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: Xie et al., "SegFormer", NeurIPS 2021, overlapped patch embedding; a batch norm as in MS-Former's code.
    """
    shapes = Shapes(OP)
    shapes("image", image, "B N H W")
    shapes("weight", weight, "C N 3 3")
    shapes("bias", bias, "C")
    if stride < 1:
        raise InputError(f"{OP}: stride must be at least 1, got {stride}")
    refusals = {"native": lambda: why_not_native(OP, image, weight, bias)}
    chosen = choose(OP, backend, image.device, refusals)
    if chosen == "reference":
        return WithStatistics(*_reference(image, weight, bias, stride))
    wanted = torch.is_grad_enabled() and image.requires_grad
    return WithStatistics(*_registered(image, weight, bias, stride, wanted, chosen))


def _forward(
    image: Tensor, weight: Tensor, bias: Tensor | None, stride: int, image_wanted: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    from msformer_fast.kernels.native.overlap_embedding import overlap_embedding_forward

    return overlap_embedding_forward(image, weight, bias, stride)


def _backward(
    grad_y: Tensor, image: Tensor, weight: Tensor, bias: Tensor | None, stride: int, image_wanted: bool, backend: str
) -> list[Tensor | None]:
    from msformer_fast.kernels.native.overlap_embedding import overlap_embedding_backward

    found: list[Tensor | None] = [*overlap_embedding_backward(grad_y, image, weight, bias is not None, stride)]
    if image_wanted:  # which the loop never asks for
        grad = grad_y.permute(0, 3, 1, 2)
        found.append(conv2d_input(image.shape, weight, grad, stride, padding=1).contiguous())
    return found


def _shapes(image: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = image.shape
    y = weight.new_empty(batch, -(-height // stride), -(-width // stride), weight.shape[0])
    mean = weight.new_empty(weight.shape[0], dtype=sum_dtype(weight.dtype))
    return y, mean, torch.empty_like(mean)


def _gradient_shapes(image: Tensor, weight: Tensor, bias: Tensor | None, image_wanted: bool) -> list[Tensor]:
    owners = [weight, *([] if bias is None else [bias]), *([image] if image_wanted else [])]
    return [owner.new_empty(owner.shape) for owner in owners]


def _expression(image: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    return _reference(image, weight, bias, stride)


_registered = register(
    OP,
    forward=_forward,
    outputs=("y", "mean", "var"),
    shapes=_shapes,
    backward=_backward,
    gradients=["weight bias image"],
    gradient_shapes=_gradient_shapes,
    expression=_expression,
)
