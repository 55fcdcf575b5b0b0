"""Special cases of the patch embedding and of the batch norm in it, beyond the contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from msformer_fast import BackendError, ops
from msformer_fast.floors import patch_embedding as floor

from ..conftest import GOLDEN

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("strict_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_kernel = pytest.mark.parametrize("backend", ["triton", *(["native"] if DEVICE == "cpu" else [])])
interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="counted, or in float64, in the interpreter")


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


@every_kernel
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics(training: bool, backend: str) -> None:
    """Updated as batch norm does when training, used and left alone when not; gradients as the reference's."""
    logits, weight = rand(2, 5, 9, 10) + 3, rand(4, 5 * 16)
    results = {}
    for name in (backend, "reference"):
        leaf = logits.clone().requires_grad_()
        running = [torch.full((5,), 2.5, device=DEVICE), torch.full((5,), 1.5, device=DEVICE)]
        queries, keys = ops.patch_embedding(
            leaf, weight, None, None, None, *running, patch=4, training=training, momentum=0.3, backend=name
        )
        gradient = torch.autograd.grad((queries.square() + keys).sum(), leaf)[0]
        results[name] = (queries, keys, gradient, *running)
    for ours, theirs in zip(*results.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(results[backend][3], torch.full((5,), 2.5, device=DEVICE)) != training


@every_kernel
@pytest.mark.parametrize("channels_last", [True, False])
def test_statistics_keep_their_digits(channels_last: bool, backend: str) -> None:
    """Channels far from 0 and nearly constant, where E[x^2] - E[x]^2 in float32 has none left."""
    spread = torch.logspace(-3, 1, 9, dtype=torch.float64)[:, None, None]
    logits = torch.randn(2, 9, 40, 33, dtype=torch.float64) * spread
    logits = (logits + torch.linspace(-900, 900, 9, dtype=torch.float64)[:, None, None]).float().to(DEVICE)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    mean, var = torch.ops.msformer_fast.batch_statistics(logits, backend)
    values = logits.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), values.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), values.var(1, correction=0), rtol=1e-4, atol=0)


SIZES = {
    "triton": ((1, 3, 4), (2, 4, 6), (5, 9, 11)),
    "native": ((1, 3, 4), (2, 4, 6), (5, 9, 11), (1, 19, 23), (9, 48, 37)),
}


@every_kernel
@pytest.mark.parametrize("channels_last", [True, False])
def test_every_patch_size_and_the_cropped_edge(backend: str, channels_last: bool) -> None:
    """Pixels beyond the last patch get the batch norm's share of the gradient and no other."""
    for patch, height, width in SIZES[backend]:
        results = []
        for name in (backend, "reference"):
            generator = torch.Generator().manual_seed(patch)
            logits = torch.randn(2, 3, height, width, generator=generator).to(DEVICE)
            logits = logits.contiguous(memory_format=torch.channels_last) if channels_last else logits
            weight = torch.randn(4, 3 * patch**2, generator=generator).to(DEVICE)
            queries, keys = ops.patch_embedding(logits.requires_grad_(), weight, patch=patch, backend=name)
            results.append((queries, keys, torch.autograd.grad((queries * keys).sum(), logits)[0]))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE != "cpu", reason="on the CPU")
@pytest.mark.parametrize("clusters", [5, 40, 1100])
def test_a_map_that_is_cut_from_a_larger_one(clusters: int) -> None:
    """Read in place: rows, columns and images with strides of their own."""
    logits = rand(3, 12, 13, clusters + 3)[1:, 1:11, 2:13, 1:-2].permute(0, 3, 1, 2).requires_grad_()
    weight = rand(3, 9 * clusters)
    results = []
    for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
        queries, keys = ops.patch_embedding(logits.to(dtype), weight.to(dtype), patch=3, backend=backend)
        results.append((queries, keys, torch.autograd.grad((queries.square() * keys).sum(), logits)[0]))
    for ours, theirs in zip(*results, strict=True):
        size = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours.double() / size, theirs.double() / size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("clusters", "channels", "message"), [(1025, 2, "1024 clusters"), (2, 257, "256 channels")])
def test_limits_are_refused(clusters: int, channels: int, message: str) -> None:
    with pytest.raises(BackendError, match=f"at most {message}"):
        ops.patch_embedding(torch.zeros(1, clusters, 3, 3), torch.zeros(channels, clusters), patch=1, backend="triton")


@interpreted
def test_the_weight_is_read_once() -> None:
    """Unique bytes within a tenth of the floor, forward and backward; the forward requests the weight exactly once."""
    from tests.harness.traffic import count_traffic

    clusters, channels, patch, height, width = 16, 20, 4, 17, 21
    logits = rand(1, clusters, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = rand(channels, patch**2 * clusters).requires_grad_()
    least = floor.bytes_moved(1, clusters, height, width, channels, patch, torch.float32)
    with count_traffic() as forward:
        queries, keys = ops.patch_embedding(logits, weight, patch=patch, backend="triton")
    with count_traffic() as backward:
        torch.autograd.backward((queries, keys), (torch.ones_like(queries), torch.ones_like(keys)))
    moments, embed = forward.kernels["moments_kernel"], forward.kernels["embed_kernel"]
    assert moments.unique_bytes_loaded == least["statistics"]
    windows = 2 * queries[0, :, 0].numel() * patch**2 * clusters * 4
    norms = 4 * patch**2 * clusters * 4
    assert embed.bytes_loaded == weight.numel() * 4 + windows + norms
    assert embed.unique_bytes_loaded <= 1.1 * least["forward"]
    gradients = [backward.kernels[name] for name in ("weight_gradient_kernel", "logits_gradient_kernel")]
    assert sum(k.unique_bytes_loaded + k.bytes_stored for k in gradients) <= 1.1 * least["backward"]


@pytest.mark.slow
@interpreted
def test_the_authors_stability_and_clustering_loss() -> None:
    """The recorded run's losses and the gradients behind them, through the kernels in float64, with patches of 32."""
    with np.load(GOLDEN / "dim8_img65.npz") as archive:
        recorded = {name: torch.from_numpy(archive[name]) for name in archive.files}
    weight, bias = recorded["param/to_patch_embedding.1.weight"], recorded["param/to_patch_embedding.1.bias"]
    gamma, beta = recorded["param/bn3.weight"], recorded["param/bn3.bias"]
    leaves = [tensor.requires_grad_() for tensor in (weight, bias, gamma, beta)]
    queries, keys = ops.patch_embedding(recorded["logits"], weight, bias, gamma, beta, backend="triton")
    loss = float(recorded["weights"][2]) * ops.stability_loss(queries, keys, backend="triton")
    torch.testing.assert_close(loss.detach(), recorded["history"][0, 3], rtol=1e-9, atol=0)
    names = ("to_patch_embedding.1.weight", "to_patch_embedding.1.bias", "bn3.weight", "bn3.bias")
    for name, gradient in zip(names, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(gradient, recorded[f"grad/{name}"], rtol=1e-7, atol=1e-12)
    clustering, labels, count = ops.clustering_loss(recorded["logits"], backend="triton")
    torch.testing.assert_close(clustering, recorded["history"][0, 1], rtol=1e-9, atol=0)
    assert int(count) == int(recorded["history"][0, 4])
    assert torch.equal(labels.long(), recorded["logits"].argmax(1))


def test_no_images_in_strips() -> None:
    logits = torch.zeros(0, 3, 9, 9, requires_grad=True)
    queries, keys = ops.patch_embedding(logits, torch.zeros(5, 4 * 4 * 3), patch=4, backend="torch")
    assert queries.shape == keys.shape == (0, 4, 5)
    (queries.sum() + keys.sum()).backward()
    assert logits.grad.shape == logits.shape
