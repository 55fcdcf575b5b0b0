"""Special cases of the stability loss, beyond the contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from msformer_fast import BackendError, ops
from msformer_fast.floors import stability_loss as floor

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("strict_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_kernel = pytest.mark.parametrize("backend", ["triton", *(["native"] if DEVICE == "cpu" else [])])
interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="bytes are counted in the interpreter")


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, device=DEVICE)


def run(queries: Tensor, keys: Tensor, function) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys = queries.detach().requires_grad_(), keys.detach().requires_grad_()
    loss = function(queries, keys)
    return loss, *torch.autograd.grad(loss, (queries, keys))


def kernels(backend: str, queries: Tensor, keys: Tensor, scale: float = 8.0) -> tuple[Tensor, Tensor, Tensor]:
    return run(queries, keys, lambda q, k: ops.stability_loss(q, k, scale=scale, backend=backend))


def off_diagonal(queries: Tensor, keys: Tensor, scale: float = 8.0) -> Tensor:
    """The loss from the elements off the diagonal, whose digits 1 - A_ii loses when it saturates."""
    attention = torch.softmax(queries @ keys.transpose(1, 2) / scale, -1)
    patches = attention.shape[-1]
    others = attention * (1 - torch.eye(patches, dtype=attention.dtype, device=DEVICE))
    return 2 * others.sum((1, 2)).mean() / patches**2


def worst_row(value: Tensor, truth: Tensor) -> float:
    """Largest error relative to the largest element of its own row."""
    return float(((value.double() - truth).abs().amax(-1) / truth.abs().amax(-1)).max())


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gap", [30.0, 50.0, 62.0])
def test_saturated_rows_keep_their_digits(gap: float, dtype: torch.dtype, backend: str) -> None:
    if backend == "native" and dtype != torch.float32:
        pytest.skip("float32 alone")
    patches, channels = 40, 64
    aligned = torch.eye(patches, channels, dtype=torch.float64, device=DEVICE).expand(2, patches, channels)
    queries, keys = ((aligned * (8 * gap) ** 0.5 + 0.3 * rand(2, patches, channels)).to(dtype) for _ in "qk")
    truth = run(queries.double(), keys.double(), off_diagonal)
    ours = kernels(backend, queries, keys)
    assert truth[0] < (1e-20 if gap > 60 else 1e-8)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    assert abs(float((ours[0].double() / truth[0]).detach()) - 1) < 1e-4
    assert worst_row(ours[1], truth[1]) < tolerance
    assert worst_row(ours[2], truth[2]) < tolerance


@every_kernel
@pytest.mark.parametrize("gap", [200.0, -200.0])
def test_far_beyond_the_range_of_exp(gap: float, backend: str) -> None:
    queries = torch.eye(20, 32, device=DEVICE)[None] * (8 * abs(gap)) ** 0.5
    keys = queries * (1 if gap > 0 else -1)
    loss, d_queries, d_keys = kernels(backend, queries, keys)
    truth = run(queries.double(), keys.double(), lambda q, k: ops.stability_loss(q, k, backend="reference"))
    torch.testing.assert_close(loss.double(), truth[0], rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(d_queries.double(), truth[1], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(d_keys.double(), truth[2], rtol=1e-5, atol=1e-8)


@every_kernel
def test_equal_patches_have_no_gradient(backend: str) -> None:
    queries = rand(1, 1, 100).float().expand(1, 64, 100)
    loss, d_queries, d_keys = kernels(backend, queries, queries)
    torch.testing.assert_close(loss, torch.full_like(loss, 2 / 64 * (1 - 1 / 64)))
    assert float(d_queries.abs().max()) < 1e-9
    assert float(d_keys.abs().max()) < 1e-9


@every_kernel
def test_the_mean_over_no_image_is_nan(backend: str) -> None:
    loss, d_queries, _ = kernels(backend, torch.zeros(0, 9, 20, device=DEVICE), torch.zeros(0, 9, 20, device=DEVICE))
    assert loss.isnan()
    assert d_queries.shape == (0, 9, 20)


def test_no_patches_squared_in_memory() -> None:
    """3000 patches: what is saved and made stays near the size of the queries, far below T x T."""
    queries, keys = (torch.randn(1, 3000, 16, device="meta", requires_grad=True) for _ in "qk")
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(o.numel() for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, Tensor))
            return out

    with Watch():
        loss = torch.ops.msformer_fast.stability_loss(queries, keys, 8.0, "triton")[0]
        torch.autograd.grad(loss, (queries, keys))
    assert max(sizes) == 3000 * 16


@pytest.mark.skipif(DEVICE != "cpu", reason="on the CPU")
@pytest.mark.parametrize(("patches", "channels"), [(1, 5), (300, 300), (700, 3)])
def test_gradients_that_were_not_kept_are_made_again(patches: int, channels: int) -> None:
    """And sizes beyond a block of rows and a piece of keys, on the CPU."""
    queries, keys = rand(2, patches, channels).float(), rand(2, patches, channels).float()
    loss, d_queries, d_keys = kernels("native", queries, keys)
    for keep in (False, True):
        made, gradients = torch.ops.msformer_fast.stability_loss_native(queries, keys, 8.0, keep, "native")
        again = torch.ops.msformer_fast.stability_loss_native_backward(
            torch.ones(()), queries, keys, gradients, 8.0, "native"
        )
        for ours, wanted in zip((made, *again), (loss, d_queries, d_keys), strict=True):
            assert torch.equal(ours, wanted)
    truth = run(queries.double(), keys.double(), lambda q, k: ops.stability_loss(q, k, backend="reference"))
    for ours, wanted in zip((loss, d_queries, d_keys), truth, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.detach().abs().max()))


def test_too_many_channels_are_refused() -> None:
    with pytest.raises(BackendError, match="at most 256 channels, got 257"):
        ops.stability_loss(torch.zeros(1, 2, 257), torch.zeros(1, 2, 257), backend="triton")


def test_the_attention_on_request() -> None:
    queries, keys = rand(2, 5, 7), rand(2, 5, 7)
    attention = ops.stability_attention(queries, keys, scale=3.0)
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    loss = ops.stability_loss(queries.float(), keys.float(), scale=3.0, backend="triton")
    identity = torch.eye(5, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(loss.double(), (attention - identity).abs().mean(), rtol=1e-5, atol=1e-7)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_bytes(dtype: torch.dtype) -> None:
    """The forward within a tenth of its floor; in the backward each of two kernels reads queries, keys and rows."""
    from tests.harness.traffic import count_traffic

    queries, keys = (rand(1, 64, 100).to(dtype).requires_grad_() for _ in "qk")
    least = floor.bytes_moved(1, 64, 100, dtype)
    with count_traffic() as forward:
        loss = ops.stability_loss(queries, keys, backend="triton")
    with count_traffic() as backward:
        loss.backward()
    assert forward.unique_bytes_loaded + forward.bytes_stored <= 1.1 * least["forward"]
    again = 2 * queries.numel() * dtype.itemsize + 2 * 64 * 4 + 4
    assert backward.unique_bytes_loaded + backward.bytes_stored <= 1.1 * (least["backward"] + again)
