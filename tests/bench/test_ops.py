"""Every benchmark of an op: all providers compute what float64 says, through every part that is timed."""

from __future__ import annotations

import pytest
import torch

from msformer_fast.benchmarks import check
from msformer_fast.benchmarks.case import Case, Wanted
from msformer_fast.benchmarks.options import NAMES, OPS
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"patch": 4, "window": 4, "depth": 1, "iterations": 4}


def small(name: str, dtype: str = "float32", seed: int | None = None) -> Case:
    bench = bench_of(name)
    (case,) = bench.cases("cpu", [dtype], Wanted(sides=(33,), channels=(32 if name in OPS else 8,)))
    sizes = {size: min(value, SMALL.get(size, value)) for size, value in case.sizes}
    fresh = int(torch.randint(1 << 20, ())) if seed is None else seed
    return Case.of(name, sizes, dtype, "cpu", fresh)


@pytest.mark.parametrize("name", NAMES)
def test_providers_agree_with_float64(name: str) -> None:
    bench, case = bench_of(name), small(name)
    truth = bench.truth(case)
    assert truth and all(value.dtype == torch.float64 for value in truth.values())
    tried = [p for p in bench.providers() if bench.why_not(case, p) is None and not p.endswith("compiled")]
    assert bench.plain in tried and len(tried) >= 2
    plain, where = check.error_of(bench.prepare(case, bench.plain).results(), truth)
    assert plain < 1e-3, where
    for provider in tried:
        error, where = check.error_of(bench.prepare(case, provider).results(), truth)
        assert error <= check.allowed("float32", plain), (provider, where)


@pytest.mark.parametrize("name", OPS)
def test_a_wrong_provider_is_seen(name: str) -> None:
    """Inputs of another seed: the results are those of another call."""
    bench, case = bench_of(name), small(name, seed=1)
    error, _ = check.error_of(bench.prepare(case.replace(seed=2), bench.plain).results(), bench.truth(case))
    assert error > check.allowed("float32", None)


@pytest.mark.parametrize("name", NAMES)
def test_parts_leave_what_they_need(name: str) -> None:
    """Any part may follow any other, as in rounds."""
    bench, case = bench_of(name), small(name)
    subject = bench.prepare(case, bench.plain)
    for part in (*bench.parts, *reversed(bench.parts)):
        subject.before[part]()
        subject.parts[part]()
        floor = bench.floor(case, part)
        assert floor is not None and floor.bytes > 0 and floor.flops > 0
    subject.close()


def test_the_interpreter_is_no_figure_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msformer_fast.kernels.launch.target_of", lambda device: "sm_90")
    for name in NAMES:
        bench, case = bench_of(name), small(name)
        kernels = [provider for provider in bench.providers() if provider.startswith("triton")]
        assert kernels
        for provider in kernels:
            monkeypatch.setenv("TRITON_INTERPRET", "1")
            assert "on the CPU in Triton's interpreter only" in (bench.why_not(case, provider) or "")
            assert "TRITON_INTERPRET=1 is set" in (bench.why_not(case.replace(device="cuda"), provider) or "")
            monkeypatch.setenv("TRITON_INTERPRET", "0")
            assert bench.why_not(case.replace(device="cuda"), provider) is None


def test_sizes_of_runs() -> None:
    bench = bench_of("mix_ffn")
    sides = [case["side"] for case in bench.cases("cuda", ["float32"], Wanted()) if case["channels"] == 100]
    assert sides == [65, 129, 257, 513, 1025]
    widths = {case["channels"] for case in bench.cases("cuda", ["float32"], Wanted())}
    assert widths == {64, 100, 128, 256}
    windows = bench_of("cross_scale_attention").cases("cpu", ["float32"], Wanted(channels=(100, 128)))
    assert [case["channels"] for case in windows] == [128], "whole heads of 32 channels"
    quick = bench.cases("cpu", ["float32", "bfloat16"], Wanted(quick=True))
    assert len(quick) == 4 and {case.dtype for case in quick} == {"float32", "bfloat16"}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"'nothing' is not known; choose from clustering_loss, "):
        bench_of("nothing")


def test_what_is_compiled_is_the_plain_code_or_the_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call) or call)
    bench, case = bench_of("clustering_loss"), small("clustering_loss")
    for provider in ("compiled", "cross-entropy-compiled"):
        results = bench.prepare(case, provider).results()
        expected = bench.prepare(case, {"compiled": "reference"}.get(provider, "cross-entropy")).results()
        assert all(torch.equal(results[name], expected[name]) for name in expected)
    assert len(compiled) == 2
