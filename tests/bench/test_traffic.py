"""What recorded launches of the benchmarks' calls move is what the interpreter counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from msformer_fast import ops
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.options import OPS
from msformer_fast.benchmarks.suite import bench_of

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="counted in the interpreter"),
]

#: Multiprocessors that launchers assume on the CPU.
MULTIPROCESSORS = 3


@pytest.mark.parametrize(("dtype", "clusters"), [(torch.float32, 20), (torch.bfloat16, 260)], ids=str)
def test_clustering_loss(dtype: torch.dtype, clusters: int) -> None:
    """Of two images, with labels of one byte and of two."""
    from tests.harness.traffic import counted_as_recorded

    def call() -> Iterator[None]:
        logits = torch.randn(2, 5, 11, clusters).to(dtype).requires_grad_()
        yield
        loss, labels, _ = ops.clustering_loss(logits, cluster_dim=-1, backend="triton")
        assert labels.element_size() == (1 if clusters == 20 else 2)
        yield
        loss.backward()
        yield

    forward, backward = counted_as_recorded(call)
    assert (forward.launches, backward.launches) == (2, 1)


@pytest.mark.parametrize(
    ("dtype", "clusters", "channels"), [(torch.float32, 20, 136), (torch.bfloat16, 260, 12)], ids=str
)
def test_linear_clustering_loss(dtype: torch.dtype, clusters: int, channels: int) -> None:
    """Of two images, with several blocks of channels, then of clusters."""
    from tests.harness.traffic import counted_as_recorded

    def call() -> Iterator[None]:
        shapes = (2, 3, 5, channels), (clusters, channels), (clusters,)
        leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
        yield
        loss = ops.linear_clustering_loss(*leaves, backend="triton")[0]
        yield
        loss.backward()
        yield

    forward, backward = counted_as_recorded(call)
    assert (forward.launches, backward.launches) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weighted_losses(dtype: torch.dtype) -> None:
    """Of three images, with several blocks of rows; the gradient of the total alone."""
    from msformer_fast.floors import weighted_losses as floors
    from tests.harness.traffic import counted_as_recorded

    def call() -> Iterator[None]:
        contexts = [torch.randn(3, 7, 1000).to(dtype).requires_grad_() for _ in range(2)]
        losses = [torch.rand((), requires_grad=True) for _ in range(2)]
        yield
        made = ops.weighted_losses(*losses, *contexts, torch.ones(3, dtype=torch.int32), backend="triton")
        yield
        made.total.backward()
        yield

    forward, backward = counted_as_recorded(call)
    assert (forward.launches, backward.launches) == (1, 1)
    floor = floors.bytes_moved(3, 7, 1000, dtype)
    moved = [part.unique_bytes_loaded + part.bytes_stored for part in (forward, backward)]
    assert moved == [floor["forward"], floor["backward"]]


@pytest.mark.parametrize(
    ("dtype", "in_channels", "channels"), [(torch.float32, 3, 20), (torch.bfloat16, 5, 136)], ids=str
)
def test_both_embeddings(dtype: torch.dtype, in_channels: int, channels: int) -> None:
    """Of two images, with one block of channels and of a patch's entries, then several."""
    from msformer_fast.floors import overlap_embedding as floors
    from msformer_fast.ops.overlap_embedding import overlap_embedding_of_two
    from tests.harness.traffic import counted_as_recorded

    def call() -> Iterator[None]:
        image = torch.randn(2, in_channels, 9, 11).to(dtype)
        weights = [torch.randn(channels, in_channels, 3, 3).to(dtype).requires_grad_() for _ in range(2)]
        biases = [torch.randn(channels).to(dtype).requires_grad_() for _ in range(2)]
        yield
        made = overlap_embedding_of_two(image, weights, biases, (1, 2), backend="triton")
        yield
        torch.autograd.backward([each.y for each in made], [each.y.detach() for each in made])
        yield

    forward, backward = counted_as_recorded(call)
    assert (forward.launches, backward.launches) == (2, 2)
    floor = floors.bytes_moved(2, 9, 11, in_channels, channels, dtype)
    for part, counted in (("forward", forward), ("backward", backward)):
        partials = 3 * 3 * (4 if part == "forward" else 9 * in_channels + 1) * channels * 4  # written and read
        assert floor[part] <= counted.unique_bytes_loaded + counted.bytes_stored <= floor[part] + 4 * partials


SMALL: dict[str, dict[str, int]] = {
    "stability_loss": {"side": 17, "channels": 12, "patch": 2},
    "patch_embedding": {"side": 9, "channels": 8, "patch": 3},
    "guided_score_map": {"side": 9, "channels": 8, "patch": 2},
    "efficient_attention": {"side": 9, "channels": 12},
    "cross_scale_attention": {"side": 9, "channels": 32, "window": 4},
}


@pytest.mark.parametrize("name", OPS)
def test_the_call_that_is_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches, kernels and bytes of forward and backward, from the benchmark's sizes alone; what is read back within a
    tile, which a benchmark leaves out, included."""
    from msformer_fast.benchmarks.traffic import recorded

    monkeypatch.setattr(recorded, "WITHIN_A_TILE_LOADED", {})
    monkeypatch.setattr(recorded, "WITHIN_A_TILE_STORED", {})
    from tests.harness.traffic import count_traffic, kernels_of

    bench = bench_of(name)
    case = Case.of(name, SMALL.get(name, {"side": 9, "channels": 8}))
    subject = bench.prepare(case, "triton")
    both = {}
    for part in ("forward", "backward"):
        subject.before[part]()
        with count_traffic() as traffic:
            subject.parts[part]()
        counted = kernels_of(traffic)
        assert bench.kernels(case, part, MULTIPROCESSORS, None) == counted
        both |= {f"{kernel}, {part}": figures for kernel, figures in counted.items()}
    assert bench.kernels(case, "both", MULTIPROCESSORS, None) == both
    subject.close()


def test_launches_on_a_card() -> None:
    """Of another card: more programs, and so more partial sums; no launch is made, and no interpreter asked."""
    bench = bench_of("clustering_loss")
    case = Case.of("clustering_loss", {"side": 65, "channels": 100}, "bfloat16", "cuda")
    kernels = bench.kernels(case, "forward", 132, "sm_90")
    assert kernels is not None and set(kernels) == {"loss_kernel", "finish_kernel"}
    pixels = 65 * 65
    launches, loaded, stored = kernels["loss_kernel"]
    assert (launches, loaded) == (1, pixels * 100 * 2)
    assert 0 < stored - 2 * pixels <= 4 * pixels  # a label and a flag a pixel; a number a program
