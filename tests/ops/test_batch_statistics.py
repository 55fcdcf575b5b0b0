"""Statistics of two maps from the same launches, beside those of each alone."""

from __future__ import annotations

import pytest
import torch

from msformer_fast.errors import BackendError
from msformer_fast.ops.batch_norm import batch_statistics, statistics_of_two

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def maps(channels: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """A contiguous map of two images, and a smaller one that is a view with other strides, both far from 0."""
    fine = 100 + torch.randn(2, 9, 37, channels, device=DEVICE).to(dtype)
    coarse = (torch.randn(2, channels, 5, 19, device=DEVICE) - 30).to(dtype).permute(0, 2, 3, 1)
    return fine, coarse


@pytest.mark.usefixtures("strict_kernels")
@pytest.mark.parametrize(("channels", "dtype"), [(20, torch.float32), (100, torch.bfloat16)], ids=str)
def test_two_maps_at_once(channels: int, dtype: torch.dtype) -> None:
    """The very numbers of each alone, and those of plain code in float64."""
    pytest.importorskip("triton")
    given = maps(channels, dtype)
    for x, found in zip(given, statistics_of_two(*given, backend="triton"), strict=True):
        alone = batch_statistics(x, backend="triton")
        assert torch.equal(found.mean, alone.mean) and torch.equal(found.var, alone.var)
        truth = x.double().flatten(0, 2)
        torch.testing.assert_close(found.mean.double(), truth.mean(0), rtol=1e-6, atol=0.0)
        torch.testing.assert_close(found.var.double(), truth.var(0, correction=0), rtol=1e-5, atol=0.0)


@pytest.mark.skipif(DEVICE != "cpu", reason="counted in the interpreter")
def test_two_launches_for_two_maps() -> None:
    pytest.importorskip("triton")
    from tests.harness.traffic import count_traffic

    with count_traffic() as counted:
        statistics_of_two(*maps(20), backend="triton")
    assert {name: kernel.launches for name, kernel in counted.kernels.items()} == {
        "moments_kernel": 1,
        "merge_moments_kernel": 1,
    }


@pytest.mark.parametrize("backend", ["torch", "reference", None])
def test_other_backends_take_them_one_by_one(backend: str | None) -> None:
    given = maps(12)
    for x, found in zip(given, statistics_of_two(*given, backend=backend), strict=True):
        alone = batch_statistics(x, backend=backend)
        assert torch.equal(found.mean, alone.mean) and torch.equal(found.var, alone.var)


def test_maps_of_two_dtypes_are_refused() -> None:
    pytest.importorskip("triton")
    fine, coarse = maps(12)
    with pytest.raises(BackendError, match='batch_statistics: backend="triton" needs all tensors in one dtype'):
        statistics_of_two(fine, coarse.bfloat16(), backend="triton")
