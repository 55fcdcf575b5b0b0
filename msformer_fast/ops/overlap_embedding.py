"""The overlapping 3x3 embedding of an image before its batch norm, with the statistics that the norm applies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.ops.backend import choose, why_not_native, why_not_triton
from msformer_fast.ops.mix_ffn import WithStatistics
from msformer_fast.ops.precision import cast_product, kernel_precision, seen_by_products
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
        backend: ``"triton"`` or ``"native"``, which make map and statistics in one pass, ``"reference"``, PyTorch's
            convolution, or ``None`` for the fastest that can run.

    Returns:
        ``y`` (B, ceil(H / stride), ceil(W / stride), C) in the dtype of the parameters, under autocast in its dtype;
        ``mean`` and ``var`` (C), biased, float32 or better, without a gradient; zeros of an empty batch.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: Xie et al., "SegFormer", NeurIPS 2021, overlapped patch embedding; a batch norm as in MS-Former's code.
    """
    _check(image, weight, bias, stride)
    return _embed(image, weight, bias, stride, backend_of(image, weight, bias, backend))


def _embed(image: Tensor, weight: Tensor, bias: Tensor | None, stride: int, chosen: str) -> WithStatistics:
    if chosen == "reference":
        return WithStatistics(*_reference(image, weight, bias, stride))
    if chosen == "triton":
        image, weight, bias = cast_product(image), cast_product(weight), cast_product(bias)
    return WithStatistics(*_registered(image, weight, bias, stride, _is_wanted(image), chosen))


def overlap_embedding_of_two(
    image: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    strides: Sequence[int],
    *,
    backend: str | None = None,
    chosen: Sequence[str] | None = None,
) -> list[WithStatistics]:
    """:func:`overlap_embedding` of one image twice; the kernels on a GPU make both maps in the same launches, where
    they have as many channels and no gradient of the image is wanted.

    Args:
        chosen: what :func:`backend_of` said of each, where the caller has asked already.
    """
    for each in zip(weights, biases, strides, strict=True):
        _check(image, *each)
    chosen = chosen or [backend_of(image, *each, backend) for each in zip(weights, biases, strict=True)]
    alike = weights[0].shape == weights[1].shape and (biases[0] is None) == (biases[1] is None)
    if {*chosen} != {"triton"} or not alike or _is_wanted(image):
        return [_embed(image, *each) for each in zip(weights, biases, strides, chosen, strict=True)]
    cast = [[cast_product(value) for value in values if value is not None] for values in (weights, biases)]
    *maps, mean, var = _of_two(cast_product(image), *cast, strides)
    return [WithStatistics(*each) for each in zip(maps, mean, var, strict=True)]


def _is_wanted(image: Tensor) -> bool:
    """Whether the image's gradient is."""
    return torch.is_grad_enabled() and image.requires_grad


def _check(image: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> None:
    shapes = Shapes(OP)
    shapes("image", image, "B N H W")
    shapes("weight", weight, "C N 3 3")
    shapes("bias", bias, "C")
    if stride < 1:
        raise InputError(f"{OP}: stride must be at least 1, got {stride}")


def backend_of(image: Tensor, weight: Tensor, bias: Tensor | None, backend: str | None) -> str:
    """The backend that will run, see :func:`msformer_fast.ops.backend.choose`."""
    refusals = {
        "triton": lambda: why_not_triton(OP, *seen_by_products(image, weight, bias)),
        "native": lambda: why_not_native(OP, image, weight, bias),
    }
    return choose(OP, backend, image.device, refusals)


def _forward(
    image: Tensor, weight: Tensor, bias: Tensor | None, stride: int, image_wanted: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "native":
        from msformer_fast.kernels.native.overlap_embedding import overlap_embedding_forward as native

        return native(image, weight, bias, stride)
    from msformer_fast.kernels.overlap_embedding import overlap_embedding_forward

    precision = kernel_precision(image.dtype, image.device)
    (y,), mean, var = overlap_embedding_forward(image, [weight], [bias], [stride], precision)
    return y, mean.squeeze(0), var.squeeze(0)


def _backward(
    grad_y: Tensor, image: Tensor, weight: Tensor, bias: Tensor | None, stride: int, image_wanted: bool, backend: str
) -> list[Tensor | None]:
    found: list[Tensor | None]
    if backend == "native":
        from msformer_fast.kernels.native.overlap_embedding import overlap_embedding_backward as native

        found = [*native(grad_y, image, weight, bias is not None, stride)]
    else:
        from msformer_fast.kernels.overlap_embedding import overlap_embedding_backward

        precision = kernel_precision(image.dtype, image.device)
        (d_weight,), (d_bias,) = overlap_embedding_backward([grad_y], image, [weight], [bias], [stride], precision)
        found = [d_weight, d_bias]
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


def _forward_of_two(
    image: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], strides: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """biases: of both, or none."""
    from msformer_fast.kernels.overlap_embedding import overlap_embedding_forward

    precision = kernel_precision(image.dtype, image.device)
    (y, more_y), mean, var = overlap_embedding_forward(image, weights, biases or (None, None), strides, precision)
    return y, more_y, mean, var


def _backward_of_two(
    grad_y: Tensor,
    grad_more_y: Tensor,
    image: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    strides: Sequence[int],
) -> list[Tensor | None]:
    from msformer_fast.kernels.overlap_embedding import overlap_embedding_backward

    precision, grads = kernel_precision(image.dtype, image.device), (grad_y, grad_more_y)
    found = overlap_embedding_backward(grads, image, weights, biases or (None, None), strides, precision)
    return [*found[0], *found[1]]


def _shapes_of_two(
    image: Tensor, weights: Sequence[Tensor], strides: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, more_y = (_shapes(image, weight, stride)[0] for weight, stride in zip(weights, strides, strict=True))
    mean = image.new_empty((2, weights[0].shape[0]), dtype=sum_dtype(image.dtype))
    return y, more_y, mean, torch.empty_like(mean)


#: The same twice by the kernels on a GPU; mean and variance (2, C).
_of_two = register(
    f"{OP}_of_two",
    forward=_forward_of_two,
    outputs=("y", "more_y", "mean", "var"),
    shapes=_shapes_of_two,
    backward=_backward_of_two,
    gradients=["weights biases"],
)
