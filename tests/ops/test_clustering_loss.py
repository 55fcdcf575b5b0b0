"""Special cases of the clustering loss and of its fused form, beyond the contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from msformer_fast import BackendError, ops
from msformer_fast.floors import clustering_loss as floor
from msformer_fast.floors import linear_clustering_loss as linear_floor

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("strict_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="bytes are counted in the interpreter")
every_kernel = pytest.mark.parametrize("backend", ["triton", *(["native"] if DEVICE == "cpu" else [])])


def rand(*shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, device=DEVICE)


def both(backend: str, logits: Tensor, cluster_dim: int = -1, grad: Tensor | None = None) -> list[tuple[Tensor, ...]]:
    """Loss of every pixel, labels, count and gradient: of the kernels, and of the reference in float64."""
    results = []
    for name, given in ((backend, logits), ("reference", logits.double())):
        leaf = given.detach().requires_grad_()
        loss, labels, count = ops.clustering_loss(leaf, cluster_dim=cluster_dim, reduction="none", backend=name)
        weights = torch.ones_like(loss) if grad is None else grad.to(loss)
        results.append((loss, labels, count, torch.autograd.grad(loss, leaf, weights)[0]))
    return results


def check(backend: str, logits: Tensor, cluster_dim: int = -1, grad: Tensor | None = None) -> tuple[Tensor, ...]:
    ours, truth = both(backend, logits, cluster_dim, grad)
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[1], truth[1])
    assert torch.equal(ours[2], truth[2])
    torch.testing.assert_close(ours[3].double(), truth[3], rtol=1e-5, atol=1e-6)
    return ours


@every_kernel
def test_the_first_of_equal_maxima_is_the_label(backend: str) -> None:
    check(backend, torch.randint(0, 3, (2, 5, 6, 100), device=DEVICE).float())
    loss, labels, count, _ = check(backend, torch.zeros(1, 100, 5, 6, device=DEVICE), 1)
    assert count.tolist() == [1]
    assert not labels.any()
    torch.testing.assert_close(loss, torch.full_like(loss, 100.0).log())


@every_kernel
@pytest.mark.parametrize("gap", [15.0, 60.0, 1e4])
def test_digits_are_kept_when_one_cluster_dominates(gap: float, backend: str) -> None:
    """A loss and gradients far below the rounding of 1; the reference in float64 loses them too, so by formula."""
    logits = rand(1, 5, 6, 7, scale=1.0)
    logits[..., 3] += gap
    (loss, _, _, gradient), _ = both(backend, logits)
    others = (logits.double() - logits.double()[..., 3:4]).exp()
    others[..., 3] = 0
    others = others.sum(-1)
    torch.testing.assert_close(loss.double(), others.log1p(), rtol=2e-5, atol=1e-38)
    torch.testing.assert_close(gradient[..., 3].double(), -others / (1 + others), rtol=2e-5, atol=1e-38)
    if gap < 100:
        assert (gradient[..., 3] < 0).all()


@every_kernel
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_large_offset_changes_nothing(offset: float, backend: str) -> None:
    logits = (rand(1, 5, 6, 100) * 16).round() / 16  # exact beside the offset
    plain, shifted = both(backend, logits)[0], both(backend, logits + offset)[0]
    for ours, wanted in zip(shifted, plain, strict=True):
        assert torch.equal(ours, wanted)


LAYOUTS = {
    "planes": lambda: (rand(2, 30, 5, 9), 1),
    "channels-last memory": lambda: (rand(2, 30, 5, 9).to(memory_format=torch.channels_last), 1),
    "planes seen channels last": lambda: (rand(2, 30, 5, 9).permute(0, 2, 3, 1), -1),
    "every second cluster": lambda: (rand(2, 5, 9, 60)[..., ::2], -1),
    "cut from a larger map": lambda: (rand(2, 8, 12, 32)[:, 1:6, 2:11, 1:31], -1),
    "cut from larger planes": lambda: (rand(2, 32, 8, 12)[:, 1:31, 1:6, 2:11], 1),
    "transposed image": lambda: (rand(2, 9, 5, 32).transpose(1, 2), -1),
    "one column": lambda: (rand(2, 30, 5, 1), 1),
    "one image, expanded": lambda: (rand(1, 5, 9, 32).expand(3, 5, 9, 32), -1),
}


@every_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str, backend: str) -> None:
    logits, cluster_dim = LAYOUTS[layout]()
    check(backend, logits, cluster_dim, rand(*logits.movedim(cluster_dim, -1).shape[:-1]))


@every_kernel
@pytest.mark.parametrize("clusters", [2, 7, 130, 256, 257, 1000])
def test_few_and_many_clusters(clusters: int, backend: str) -> None:
    labels = check(backend, rand(3, 4, 7, clusters))[1]
    assert labels.dtype == (torch.uint8 if clusters <= 256 else torch.int16)
    check(backend, rand(3, clusters, 4, 7), 1)


@every_kernel
@pytest.mark.parametrize("shape", [(0, 5, 6, 7), (2, 0, 6, 7)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_sum_of_nothing_is_0_and_its_mean_nan(shape: tuple[int, ...], reduction: str, backend: str) -> None:
    logits = torch.zeros(shape, device=DEVICE, requires_grad=True)
    loss, labels, count = ops.clustering_loss(logits, cluster_dim=-1, reduction=reduction, backend=backend)
    assert labels.shape == shape[:-1]
    assert count.tolist() == [0] * shape[0]
    if reduction == "none":
        assert loss.shape == shape[:-1]
    else:
        assert loss.isnan() if reduction == "mean" else loss == 0
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == shape


@every_kernel
def test_what_is_not_finite_stays_in_its_pixel(backend: str) -> None:
    nan, inf = float("nan"), float("inf")
    rows = [[nan, 1, 2], [2, nan, 1], [nan] * 3, [inf, 1, 2], [inf, inf, 1], [-inf] * 3, [1, -inf, 0], [3, 1, 2]]
    logits = torch.tensor(rows, device=DEVICE).view(1, 2, 4, 3)
    (loss, labels, _, gradient), (true_loss, true_labels, _, true_gradient) = both(backend, logits)
    torch.testing.assert_close(loss.double(), true_loss, equal_nan=True)
    torch.testing.assert_close(gradient.double(), true_gradient, equal_nan=True, rtol=1e-5, atol=1e-6)
    assert int(loss.isnan().sum()) == 6
    if backend == "triton":
        assert labels.flatten().tolist() == [2, 0, 0, 0, 0, 0, 0, 0]
    else:
        assert torch.equal(labels, true_labels)
    assert ops.clustering_loss(logits, cluster_dim=-1, backend=backend)[0].isnan()
    planes = both(backend, logits.permute(0, 3, 1, 2).contiguous(), 1)[0]
    torch.testing.assert_close(planes[0], loss, equal_nan=True)
    assert torch.equal(planes[1], labels)


def test_too_many_clusters_are_refused() -> None:
    with pytest.raises(BackendError, match="at most 1024 clusters, got 1025"):
        ops.clustering_loss(torch.zeros(1, 1025, 1, 1, device=DEVICE), backend="triton")


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cluster_dim", [1, -1])
def test_bytes_are_within_a_tenth_of_the_floor(dtype: torch.dtype, cluster_dim: int) -> None:
    from tests.harness.traffic import count_traffic

    height, width, clusters = 31, 33, 100
    shape = (1, clusters, height, width) if cluster_dim == 1 else (1, height, width, clusters)
    logits = rand(*shape).to(dtype).requires_grad_()
    least = floor.bytes_moved(height * width, clusters, dtype)
    with count_traffic() as forward:
        loss, _, _ = ops.clustering_loss(logits, cluster_dim=cluster_dim, backend="triton")
    with count_traffic() as backward:
        loss.backward()
    for counted, floor_bytes in ((forward, least["forward"]), (backward, least["backward"])):
        unique = counted.unique_bytes_loaded + counted.bytes_stored
        assert floor_bytes <= unique <= counted.bytes_loaded + counted.bytes_stored <= 1.1 * floor_bytes


@interpreted
def test_the_fused_forward_reads_its_features_once() -> None:
    from tests.harness.traffic import count_traffic

    features, weight, bias = rand(1, 13, 33, 100, scale=1.0), rand(100, 100, scale=0.3), rand(100)
    least = linear_floor.bytes_moved(13 * 33, 100, 100, torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (features, weight, bias)]
    with count_traffic() as forward:
        loss, _, _ = ops.linear_clustering_loss(*leaves, backend="triton")
    with count_traffic() as backward:
        loss.backward()
    assert forward.unique_bytes_loaded + forward.bytes_stored <= 1.1 * least["forward"]
    # Two kernels, for the features' gradient and for the weight's: the features are read once more than they must be,
    # and the weight's gradient goes through one partial sum a program.
    extra = features.numel() * 4 + 2 * weight.numel() * 4
    assert backward.unique_bytes_loaded + backward.bytes_stored <= 1.1 * (least["backward"] + extra)


@every_kernel
def test_fused_clusters_that_are_taken_out_and_ties(backend: str) -> None:
    """A bias of minus infinity takes clusters out, a whole block too; of equal weights the first is the label."""
    features, weight, bias = rand(1, 3, 5, 24, scale=1.0), rand(300, 24, scale=0.6), rand(300, scale=1.0)
    # Eighths, whose products and sums are exact: numpy's rounding depends on where in a block a row stands.
    features, weight, bias = (value.mul(8).round() / 8 for value in (features, weight, bias))
    bias[:130] = -float("inf")
    weight[215:], bias[215:] = weight[130:215], bias[130:215]
    _, labels, count = ops.linear_clustering_loss(features, weight, bias, backend=backend)
    assert 130 <= int(labels.min()) <= int(labels.max()) < 215
    assert count.tolist() == [labels.unique().numel()]
    features[0, 1, 2, 3] = float("nan")
    loss = ops.linear_clustering_loss(features, weight, bias, reduction="none", backend=backend)[0]
    assert loss.isnan().nonzero().tolist() == [[0, 1, 2]]


def test_tf32_is_off_by_what_tf32_is_off_by() -> None:
    from tests.harness.interpreter import fixed

    inputs = rand(1, 5, 9, 100, scale=1.0), rand(100, 100, scale=0.3), rand(100, scale=1.0)

    def gradient(backend: str, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
        loss, labels, _ = ops.linear_clustering_loss(*leaves, backend=backend)
        return torch.autograd.grad(loss, leaves[0])[0].double(), labels.long()

    def error() -> Tensor:
        """Of pixels with the same label: rounding may give one to another cluster of nearly the same score."""
        found, labels = gradient("triton", *inputs)
        same = (labels == true_labels)[..., None]
        assert same.double().mean() > 0.8
        return ((found - truth) * same).norm() / truth.norm()

    truth, true_labels = gradient("reference", *(tensor.double() for tensor in inputs))
    before = torch.get_float32_matmul_precision()
    try:
        with fixed(tf32=True):
            torch.set_float32_matmul_precision("highest")
            exact = error()
            torch.set_float32_matmul_precision("high")
            rounded = error()
    finally:
        torch.set_float32_matmul_precision(before)
    assert exact < 2e-6
    assert 1e-5 < rounded < 2e-2


@pytest.mark.parametrize("pixels", [(40,), (2, 20), (2, 3, 2, 4)])
@pytest.mark.parametrize("backend", ["triton", "native", "reference"])
def test_fused_with_any_axes_of_pixels(pixels: tuple[int, ...], backend: str) -> None:
    features, weight = rand(*pixels, 24, scale=1.0).requires_grad_(), rand(20, 24, scale=0.6).requires_grad_()
    loss, labels, count = ops.linear_clustering_loss(features, weight, reduction="none", backend=backend)
    logits = features @ weight.T
    torch.testing.assert_close(loss, logits.logsumexp(-1) - logits.amax(-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(labels.long(), logits.argmax(-1))
    images = labels if len(pixels) > 1 else labels[None]
    assert count.tolist() == [image.unique().numel() for image in images]
    gradient = torch.autograd.grad(loss.sum(), features)[0]
    wanted = torch.autograd.grad((logits.logsumexp(-1) - logits.amax(-1)).sum(), features)[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
