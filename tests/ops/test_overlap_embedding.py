"""Two embeddings of one image from the same launches, beside those of each alone; and in the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from msformer_fast.errors import BackendError, InputError
from msformer_fast.nn.overlap_embedding import OverlapEmbedding, project_two
from msformer_fast.ops.overlap_embedding import overlap_embedding, overlap_embedding_of_two

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = {
    "planes": lambda image: image,
    "channels last": lambda image: image.contiguous(memory_format=torch.channels_last),
    "every second pixel": lambda image: image.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, ::2, ::2],
    "one plane for all": lambda image: image[:, :1].expand(image.shape),
}


def drawn(channels: int, in_channels: int = 3, *, with_bias: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """An image of two, and weights and biases of two embeddings of it."""
    image = torch.randn(2, in_channels, 13, 38, device=DEVICE, dtype=dtype)
    shape = (channels, in_channels, 3, 3)
    weights = [torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True) for _ in range(2)]
    biases = [torch.randn(channels, device=DEVICE, dtype=dtype, requires_grad=True) for _ in range(2)]
    return image, weights, biases if with_bias else [None, None]


def gradients(maps: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of the same loss, whatever made the maps."""
    return torch.autograd.grad(sum(y.sin().sum() for y in maps), parameters)


@pytest.mark.usefixtures("strict_kernels")
@pytest.mark.parametrize("strides", [(1, 2), (2, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_maps_at_once(layout: str, strides: tuple[int, int]) -> None:
    """The very maps of each alone; the other sums by another number of programs, in another order."""
    pytest.importorskip("triton")
    image, weights, biases = drawn(20, dtype=torch.float64 if DEVICE == "cpu" else torch.float32)
    image = LAYOUTS[layout](image)
    both = overlap_embedding_of_two(image, weights, biases, strides, backend="triton")
    found = gradients([each.y for each in both], [*weights, *biases])

    def same(ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(ours, theirs, rtol=1e-12 if DEVICE == "cpu" else 1e-4, atol=1e-12)

    for place, (weight, bias, stride) in enumerate(zip(weights, biases, strides, strict=True)):
        alone = overlap_embedding(image, weight, bias, stride=stride, backend="triton")
        plain = overlap_embedding(image, weight, bias, stride=stride, backend="reference")
        assert torch.equal(both[place].y, alone.y)
        for ours, one, truth in zip(both[place], alone, plain, strict=True):
            same(ours, one)
            same(ours, truth)
        of_one, of_plain = (gradients([each.y], [weight, bias]) for each in (alone, plain))
        for ours, one, truth in zip(found[place::2], of_one, of_plain, strict=True):
            same(ours, one)
            same(ours, truth)


@pytest.mark.skipif(DEVICE != "cpu", reason="counted in the interpreter")
@pytest.mark.parametrize("with_bias", [True, False])
def test_four_launches_for_two_maps(with_bias: bool) -> None:
    pytest.importorskip("triton")
    from tests.harness.traffic import count_traffic

    image, weights, biases = drawn(12, with_bias=with_bias)
    with count_traffic() as counted:
        both = overlap_embedding_of_two(image, weights, biases, (1, 2), backend="triton")
        gradients([each.y for each in both], [*weights, *[bias for bias in biases if bias is not None]])
    names = "project_kernel", "merge_moments_kernel", "parameter_gradients_kernel", "finish_kernel"
    assert {name: kernel.launches for name, kernel in counted.kernels.items()} == dict.fromkeys(names, 1)


def test_gradient_of_one_map_alone() -> None:
    """The other map has no part in the loss."""
    pytest.importorskip("triton")
    image, weights, biases = drawn(8)
    both = overlap_embedding_of_two(image, weights, biases, (1, 2), backend="triton")
    found = torch.autograd.grad(both[1].y.square().sum(), [*weights, *biases])
    assert not found[0].any() and not found[2].any() and found[1].any() and found[3].any()


@pytest.mark.skipif(DEVICE != "cpu", reason="in float64, which kernels take in the interpreter alone")
def test_gradient_of_the_image() -> None:
    pytest.importorskip("triton")
    image, weights, biases = drawn(8, dtype=torch.float64)
    image.requires_grad_()

    def gradient(backend: str) -> Tensor:
        both = overlap_embedding_of_two(image, weights, biases, (1, 2), backend=backend)
        return torch.autograd.grad(sum(each.y.sin().sum() for each in both), image)[0]

    torch.testing.assert_close(gradient("triton"), gradient("reference"), rtol=1e-11, atol=1e-11)


def test_parameters_of_two_dtypes_are_refused() -> None:
    pytest.importorskip("triton")
    image, weights, biases = drawn(8)
    with pytest.raises(BackendError, match='overlap_embedding: backend="triton" needs all tensors in one dtype'):
        overlap_embedding_of_two(image.bfloat16(), weights, biases, (1, 2), backend="triton")


def test_what_does_not_fit_is_refused() -> None:
    """Each of the two as one alone, on every backend."""
    image, weights, biases = drawn(8)
    for wrong, message in (
        ((image[:, :2], weights, biases, (1, 2)), r"weight must have shape .* with N = 2 \(from image\)"),
        ((image, [weights[0], weights[1][..., :2]], biases, (1, 2)), r"weight must have shape"),
        ((image, weights, [biases[0], biases[1][:3]], (1, 2)), r"bias must have shape .* with C = 8"),
        ((image, weights, biases, (1, 0)), "stride must be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=f"overlap_embedding: {message}"):
            overlap_embedding_of_two(*wrong)


@pytest.mark.parametrize(
    "changed",
    [{}, {"padding_mode": "reflect"}, {"dilation": 2, "padding": 2}, {"stride": (2, 1)}, {"padding": 0}],
    ids=["as made", "reflects", "dilated", "two strides", "unpadded"],
)
def test_a_changed_convolution_computes_as_pytorch(changed: dict[str, Any]) -> None:
    """Kernels take a plain one alone."""
    pytest.importorskip("triton")
    first, second = (OverlapEmbedding(3, 8, stride=stride, device=DEVICE) for stride in (1, 2))
    second.proj = nn.Conv2d(3, 8, 3, **{"stride": 2, "padding": 1, **changed}, device=DEVICE)
    image = torch.randn(2, 3, 9, 14, device=DEVICE)
    with mock.patch(
        "msformer_fast.nn.overlap_embedding.overlap_embedding_of_two", wraps=overlap_embedding_of_two
    ) as run:
        found = project_two(image, first, second, "triton")
    assert run.called == (not changed)
    for each, embed in zip(found, (first, second), strict=True):
        y = embed.proj(image).permute(0, 2, 3, 1)
        torch.testing.assert_close(each.y, y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(each.mean, y.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(each.var, y.var((0, 1, 2), correction=0), rtol=1e-4, atol=1e-5)


def test_a_constant_channel_far_from_zero_keeps_its_digits() -> None:
    """The variance is taken about the mean of a tile."""
    pytest.importorskip("triton")
    image, weights, biases = drawn(8)
    weights = [weight.detach() * 1e-2 for weight in weights]
    biases = [bias.detach() + 1000 for bias in biases]
    for found, weight, bias, stride in zip(
        overlap_embedding_of_two(image, weights, biases, (1, 2), backend="triton"), weights, biases, (1, 2), strict=True
    ):
        truth = nn.functional.conv2d(image.double(), weight.double(), bias.double(), stride, 1)
        stored = found.y.double()
        torch.testing.assert_close(found.var.double(), stored.var((0, 1, 2), correction=0), rtol=1e-4, atol=0.0)
        torch.testing.assert_close(found.mean.double(), truth.mean((0, 2, 3)), rtol=1e-6, atol=0.0)
