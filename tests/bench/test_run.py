"""A run: what is wrong, fails or does not fit is not timed, and is said."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from msformer_fast.benchmarks import clustering_loss
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.clock import Ceilings, Clock
from msformer_fast.benchmarks.records import Results, Row
from msformer_fast.benchmarks.run import Runner
from msformer_fast.kernels.native.library import why_not_built

pytestmark = pytest.mark.usefixtures("one_thread")

CASE = Case.of("clustering_loss", {"side": 9, "channels": 5})

#: Who runs on the CPU of this machine.
OWN = {"reference", "torch"} | ({"native"} if why_not_built() is None else set())


def wrong(inputs: dict[str, Tensor], s: Any) -> tuple[Tensor, ...]:
    return (1.01 * clustering_loss.cross_entropy(inputs, s)[0],)


def broken(inputs: dict[str, Tensor], s: Any) -> tuple[Tensor, ...]:
    raise RuntimeError("no such thing\non this machine")


def run(*, only: list[str] | None = None, ceilings: Ceilings | None = None, **rivals: Callable[..., Any]) -> Results:
    results = Results({}, {})
    bench = dataclasses.replace(clustering_loss.BENCH, rivals=rivals, compiled_rivals=(), compiled=False)
    runner = Runner(results, Clock("cpu"), ceilings, seconds=0.0, only=only, least=3, say=lambda _: None)
    runner.run(bench, CASE)
    return results


def test_wrong_and_broken_providers_have_no_row() -> None:
    results = run(wrong=wrong, broken=broken, right=clustering_loss.cross_entropy)
    assert {row.provider for row in results.rows} == {*OWN, "right"}
    reasons = {refused.provider: refused.reason for refused in results.refused}
    assert reasons["wrong"].startswith("wrong: output 0 is off by 1.0e-02, more than")
    assert reasons["broken"] == "RuntimeError: no such thing on this machine"
    assert "interpreter" in reasons["triton"]


def test_rows_say_all_that_was_seen() -> None:
    results = run(only=["reference", "torch"], ceilings=Ceilings(1e9, {"float32": 1e9}))
    assert len(results.rows) == 2 * 3
    for row in results.rows:
        assert (row.label, row.case) == ("measured", CASE)
        assert len(row.seconds) == len(row.anchor) == 3 and row.error is not None and row.error <= (row.allowed or 0)
        assert row.peak_bytes is not None and row.launches is None
    forward = results.find(CASE, "forward")["torch"]
    pixels, clusters = 81, 5
    assert forward.floor_bytes == pixels * clusters * 4 + pixels + 4 + 4, "logits, labels, loss, count"
    assert forward.floor_seconds == max(forward.floor_bytes, 4 * pixels * clusters) / 1e9
    assert forward.share == forward.floor_seconds / forward.median
    both = results.find(CASE, "both")["torch"]
    backward = results.find(CASE, "backward")["torch"]
    assert both.floor_bytes == forward.floor_bytes + (backward.floor_bytes or 0)


def test_what_would_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results({}, {})
    runner = Runner(results, Clock("cpu"), None, seconds=0.0, only=["reference", "torch"], least=1, say=lambda _: None)
    bench = dataclasses.replace(clustering_loss.BENCH, rivals={}, compiled_rivals=(), compiled=False)
    runner.run(bench, CASE)
    small = max(row.peak_bytes or 0 for row in results.rows)
    monkeypatch.setattr("msformer_fast.benchmarks.run.available_memory", lambda device: 100 * small)
    runner.run(bench, Case.of("clustering_loss", {"side": 90 * 3, "channels": 5}))
    assert all(row.sizes["side"] == 9 for row in results.rows)
    assert "would need about" in results.refused[-1].reason


def test_what_cannot_be_checked_is_not_timed() -> None:
    def truth(case: Case) -> dict[str, Tensor]:
        raise RuntimeError("CUDA out of memory")

    results = Results({}, {})
    bench = dataclasses.replace(clustering_loss.BENCH, rivals={}, compiled_rivals=(), compiled=False)
    object.__setattr__(bench, "truth", truth)
    Runner(results, Clock("cpu"), None, seconds=0.0, least=1, say=lambda _: None).run(bench, CASE)
    assert not results.rows
    reasons = {refused.provider: refused.reason for refused in results.refused}
    assert reasons["torch"] == "not checked, so not timed: RuntimeError: CUDA out of memory"


def test_a_dry_run_is_no_measurement() -> None:
    results = Results({}, {})
    bench = dataclasses.replace(clustering_loss.BENCH, rivals={}, compiled_rivals=(), compiled=False)
    Runner(results, Clock("cpu"), None, say=lambda _: None, dry=True).run(bench, CASE)
    assert {row.label for row in results.rows} == {"dry run"}
    assert {len(row.seconds) for row in results.rows} == {1}


def test_a_part_that_fails_costs_its_provider_the_row_alone() -> None:
    calls = []

    def late(inputs: dict[str, Tensor], s: Any) -> tuple[Tensor, ...]:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("out of memory")
        return clustering_loss.cross_entropy(inputs, s)

    results = run(late=late)
    assert {row.provider for row in results.rows} == OWN
    assert [r.reason for r in results.refused if r.provider == "late"] == ["RuntimeError: out of memory"]


def test_who_is_far_too_slow_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still but for calls of one provider."""
    now = [0.0]

    def slow(inputs: dict[str, Tensor], s: Any) -> tuple[Tensor, ...]:
        now[0] += 30.0
        return clustering_loss.cross_entropy(inputs, s)

    def quick(inputs: dict[str, Tensor], s: Any) -> tuple[Tensor, ...]:
        now[0] += 0.5
        return clustering_loss.cross_entropy(inputs, s)

    monkeypatch.setattr("msformer_fast.benchmarks.run.time.perf_counter", lambda: now[0])
    results = run(slow=slow, quick=quick)
    assert "slow" not in {row.provider for row in results.rows if row.part == "forward"}
    assert {"reference", "torch", "quick"} <= {row.provider for row in results.rows}
    (reason,) = (refused.reason for refused in results.refused if refused.provider == "slow")
    assert reason == "too slow to be timed with the others: a call took 30.0 s, plain code 0 s"


def test_inputs_are_drawn_anew_by_seed_and_the_same_for_all() -> None:
    bench = clustering_loss.BENCH
    one, same, other = (bench.inputs(CASE.replace(seed=seed))["logits"] for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    half = bench.inputs(CASE.replace(dtype="bfloat16"), torch.float64)["logits"]
    assert torch.equal(half, half.bfloat16().double()), "the truth starts from what the provider gets"


def test_results_survive_a_file(tmp_path) -> None:
    from msformer_fast.benchmarks.records import read_results
    from msformer_fast.files import write_json

    results = run(only=["reference", "torch"])
    write_json(tmp_path / "results.json", results.to_json())
    again = read_results(tmp_path / "results.json")
    assert again.rows == results.rows and again.refused == results.refused
    assert isinstance(again.rows[0], Row) and again.rows[0].key == results.rows[0].key


def test_calls_are_named_for_a_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    @contextlib.contextmanager
    def noted(name: str) -> Iterator[None]:
        names.append(name)
        yield

    monkeypatch.setattr("msformer_fast.benchmarks.run.nvtx_range", noted)
    run(only=["reference", "torch"])
    expected = {
        f"clustering_loss.{part}.{who}" for part in ("forward", "backward", "both") for who in ("reference", "torch")
    }
    assert set(names) == expected
