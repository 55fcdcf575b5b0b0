"""The kernels that the benchmarks' formulas name are those that the interpreter counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from msformer_fast import ops
from msformer_fast.benchmarks.case import Case, Kernels
from msformer_fast.benchmarks.options import OPS
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.benchmarks.traffic import clustering_loss, linear_clustering_loss

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="counted in the interpreter"),
]

#: Multiprocessors that launchers assume on the CPU.
MULTIPROCESSORS = 3


def counted(traffic: Any) -> Kernels:
    """Launches, bytes read at distinct addresses, bytes written, kernel by kernel."""
    return {name: (k.launches, k.unique_bytes_loaded, k.bytes_stored) for name, k in traffic.kernels.items()}


@pytest.mark.parametrize(("dtype", "clusters"), [(torch.float32, 20), (torch.bfloat16, 260)], ids=str)
def test_clustering_loss(dtype: torch.dtype, clusters: int) -> None:
    """Of two images, with labels of one byte and of two."""
    from tests.harness.traffic import count_traffic

    images, height, width = 2, 5, 11
    logits = torch.randn(images, height, width, clusters).to(dtype).requires_grad_()
    with count_traffic() as forward:
        loss, labels, _ = ops.clustering_loss(logits, cluster_dim=-1, backend="triton")
    with count_traffic() as backward:
        loss.backward()
    assert labels.element_size() == (1 if clusters == 20 else 2)
    pixels, programs = images * height * width, forward.kernels["loss_kernel"].programs
    assert programs == images * clustering_loss.programs_of(height * width, clusters, dtype, None)
    assert counted(forward) == clustering_loss.forward(pixels, clusters, dtype, programs=programs, images=images)
    assert counted(backward) == clustering_loss.backward(pixels, clusters, dtype)


@pytest.mark.parametrize(
    ("dtype", "clusters", "channels"), [(torch.float32, 20, 136), (torch.bfloat16, 260, 12)], ids=str
)
def test_linear_clustering_loss(dtype: torch.dtype, clusters: int, channels: int) -> None:
    """Of two images, with several blocks of channels, then of clusters."""
    from tests.harness.traffic import count_traffic

    images, height, width = 2, 3, 5
    shapes = (images, height, width, channels), (clusters, channels), (clusters,)
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    with count_traffic() as forward:
        loss = ops.linear_clustering_loss(*leaves, backend="triton")[0]
    with count_traffic() as backward:
        loss.backward()
    sizes = images * height * width, clusters, channels, dtype
    tiles = forward.kernels["linear_loss_kernel"].programs
    made = linear_clustering_loss.programs_of(height * width, clusters, channels, dtype, MULTIPROCESSORS, None)
    assert tiles == images * made.forward
    assert counted(forward) == linear_clustering_loss.forward(*sizes, programs=tiles, images=images)
    programs = 2  # a tile of each image; 3 programs would be allowed for 2 blocks of channels, 2 for 5 of clusters
    assert counted(backward) == linear_clustering_loss.backward(*sizes, programs=programs)


#: Bytes written that a formula has and the timed call has not: the gradient of the keys' bias, which is zero anyway.
ABSENT = {("efficient_attention", "finish_kernel"): 12 * 4}
SMALL: dict[str, dict[str, int]] = {
    "stability_loss": {"side": 17, "channels": 12, "patch": 2},
    "patch_embedding": {"side": 9, "channels": 8, "patch": 3},
    "guided_score_map": {"side": 9, "channels": 8, "patch": 2},
    "efficient_attention": {"side": 9, "channels": 12},
    "cross_scale_attention": {"side": 9, "channels": 32, "window": 4},
}


@pytest.mark.parametrize("name", OPS)
def test_the_call_that_is_timed(name: str) -> None:
    """Launches, kernels and bytes of forward and backward, from the benchmark's sizes alone."""
    from tests.harness.traffic import count_traffic

    bench = bench_of(name)
    case = Case.of(name, SMALL.get(name, {"side": 9, "channels": 8}))
    subject = bench.prepare(case, "triton")
    both = {}
    for part in ("forward", "backward"):
        subject.before[part]()
        with count_traffic() as traffic:
            subject.parts[part]()
        predicted, found = bench.kernels(case, part, MULTIPROCESSORS, None), counted(traffic)
        assert predicted is not None
        both |= {f"{kernel}, {part}": figures for kernel, figures in predicted.items()}
        for kernel, (launches, loaded, stored) in predicted.items():
            predicted[kernel] = launches, loaded, stored - ABSENT.get((name, kernel), 0)
        assert found == predicted
    assert bench.kernels(case, "both", MULTIPROCESSORS, None) == both
    subject.close()
