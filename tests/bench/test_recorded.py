"""Bytes from recorded launches are those of the formulas, which are held to what the interpreter counts."""

from __future__ import annotations

import pytest
import torch

from msformer_fast import ops
from msformer_fast.benchmarks import op_bench
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.options import OPS
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.benchmarks.traffic import clustering_loss, stability_loss
from msformer_fast.dtypes import sum_dtype

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from msformer_fast.benchmarks.traffic.recorded import Launch, moved, recorded_launches, size_of  # noqa: E402
from msformer_fast.benchmarks.traffic.uses import uses_of  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="recorded in the interpreter")


@pytest.mark.parametrize("patches", [7, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stability_loss(dtype: torch.dtype, patches: int) -> None:
    images, channels = 2, 100
    sizes = images, patches, channels, dtype
    with recorded_launches() as launches:
        queries, keys = (torch.rand(images, patches, channels).to(dtype).requires_grad_() for _ in range(2))
        loss = ops.stability_loss(queries, keys, backend="triton")
        forward = list(launches)
        loss.backward()
    partials = images * stability_loss.programs_of(1, patches, channels, dtype, None)
    assert forward[0].programs == partials
    assert moved(forward) == stability_loss.forward(*sizes, partials=partials)
    assert moved(launches[len(forward) :]) == stability_loss.backward(*sizes)


def flags(launch: Launch) -> int:
    """Every pixel writes one of the K flags of its image."""
    return int(launch.arguments["p_labels"].numel())


@pytest.mark.parametrize(("side", "clusters"), [(9, 260), (1025, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_clustering_loss(dtype: torch.dtype, side: int, clusters: int) -> None:
    """A flag is written again and again: the tensor's size is not what moves."""
    images, pixels = 2, side**2
    with recorded_launches() as launches:
        logits = torch.rand(images, side, side, clusters).to(dtype).requires_grad_()
        loss = ops.clustering_loss(logits, cluster_dim=-1, backend="triton")[0]
        forward = list(launches)
        loss.backward()
    programs = images * clustering_loss.programs_of(pixels, clusters, dtype, None)
    wanted = clustering_loss.forward(images * pixels, clusters, dtype, programs=programs, images=images)
    assert moved(forward, {("loss_kernel", "p_present"): flags}) == wanted
    assert moved(forward) != wanted
    assert moved(launches[len(forward) :]) == clustering_loss.backward(images * pixels, clusters, dtype)


@pytest.mark.parametrize("name", OPS)
def test_every_launch_of_the_call_that_is_timed_is_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card, at a size that nothing could count there."""
    drawn = op_bench._drawn.__wrapped__  # those without data must not be kept
    monkeypatch.setattr(op_bench, "_drawn", drawn)
    case = Case.of(name, {"side": 257, "channels": 96, "window": 8, "patch": 32})
    bench = bench_of(name)
    with recorded_launches(on_a_card=True) as launches:
        subject = bench.prepare(case, "triton")
        for part in ("forward", "backward"):
            subject.before[part]()
            launches.clear()
            subject.parts[part]()
            formulas = bench.kernels(case, part, 132, "sm_90")
            assert formulas is not None
            found = {kernel: count for kernel, (count, _, _) in moved(launches).items()}
            assert found == {kernel: count for kernel, (count, _, _) in formulas.items()}


@triton.jit
def _row_of(source, o):
    p_map, p_norm = source
    return tl.load(p_map + o) + tl.load(p_norm + o)


@triton.jit
def _stored(p, o, b):
    tl.store(p + o, b.to(p.dtype.element_ty))
    return b


@triton.jit
def _kernel(p_a, p_b, p_norm, p_c, p_out, p_more, n, SECOND: tl.constexpr):
    o = tl.arange(0, 16)
    p_row = p_a + o
    source = (p_b, p_norm) if SECOND else (p_c, p_norm)
    if p_more is not None:
        tl.atomic_add(p_more + o, 1)
    b = tl.load(p_row)
    for _ in range(0, n):
        b += _row_of(source, o)
        p_row = p_row + n
    if tl.program_id(0) == 0:
        _stored(p_out, o, b)


def used(**changes: object) -> tuple[set[str], set[str]]:
    tensors = {name: torch.zeros(16) for name in ("p_a", "p_b", "p_norm", "p_c", "p_out", "p_more")}
    return uses_of(_kernel, {**tensors, "n": 16, "SECOND": True, **changes})


def test_uses_are_read_through_branches_tuples_and_functions() -> None:
    assert used() == ({"p_a", "p_b", "p_norm", "p_more"}, {"p_out", "p_more"})
    assert used(SECOND=False) == ({"p_a", "p_c", "p_norm", "p_more"}, {"p_out", "p_more"})
    assert used(p_more=None) == ({"p_a", "p_b", "p_norm"}, {"p_out"})


def test_a_branch_that_nothing_decides_counts() -> None:
    either = {"p_a", "p_b", "p_c", "p_norm", "p_more"}
    assert uses_of(_kernel, {name: torch.zeros(16) for name in (*either, "p_out")}).loads == either


def test_an_expanded_axis_moves_once() -> None:
    assert size_of(torch.zeros(3, 5)) == size_of(torch.zeros(5, 3).t()) == 60
    assert size_of(torch.zeros(3, 1).expand(3, 100)) == size_of(torch.zeros(6)[::2]) == 12
    assert size_of(torch.zeros(())) == 4 and size_of(torch.zeros(0, 1).expand(0, 7)) == 0


def test_a_tensor_under_two_names_moves_once() -> None:
    dtype = torch.float32
    with recorded_launches() as launches:
        both = torch.zeros(16)
        _kernel[(2,)](both, both, both, both, torch.zeros(16), None, 16, SECOND=True)
    assert moved(launches) == {"_kernel": (1, 64, 16 * sum_dtype(dtype).itemsize)}
    assert launches[0].programs == 2
