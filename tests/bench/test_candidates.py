"""Candidates for the launch tables: the files are sound, and a candidate in force is what is launched."""

from __future__ import annotations

import importlib
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from msformer_fast.benchmarks import candidate_rows, judge
from msformer_fast.benchmarks.candidate_rows import Candidate, candidates_of
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.benchmarks.tune_tables import TABLES, present
from msformer_fast.kernels.launch import compile_options

BY_OP = {table.op: table for table in TABLES}
ALL = [(table, candidate) for table in TABLES for candidate in candidates_of(table.op)]


@pytest.mark.parametrize("op", BY_OP)
def test_every_op_has_candidates_in_order(op: str) -> None:
    found = candidates_of(op)
    kinds = {each.kind for each in found}
    assert "half" in kinds and kinds & {"ieee", "tf32x3"}
    assert [each.gain for each in found] == sorted((each.gain for each in found), reverse=True)
    names = [(each.part, each.kind, each.text) for each in found]
    assert len(names) == len(set(names)), "none twice"


def test_every_candidate_is_a_row_of_its_table_that_does_not_spill() -> None:
    for table, each in ALL:
        where = f"{table.op} {each.part} {each.kind} {each.text}"
        assert each.part in table.parts and len(each.row) == len(table.columns), where
        assert each.spill_bytes == 0 and each.versions and 0 < each.registers <= 255, where
        assert each.resident_warps % each.warps == 0 and each.warps <= each.resident_warps <= 64, where
        assert each.shared_bytes <= 227 * 1024, where
        for value, kind in zip(each.row, table.columns, strict=True):
            assert value == 0 or value & (value - 1) == 0 or (kind, value) == ("stages", 3), where
        assert not each.stages or ("stages" not in table.columns and each.part in table.kernels), where
        assert each.grid == 1 or each.part in table.shared, where
        keys, base = present(table, each.part, each.kind, "sm_90", bench_of(table.op).paper)
        assert keys and base is not None, where


def test_something_of_every_kind_was_tried() -> None:
    names = {each.name for _, each in ALL}
    assert {"2 stages", "3 stages", "grid x 0.5", "grid x 2"} <= names
    assert any("halved" in name and "2 stages" not in name for name in names)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.op)
def test_what_a_table_says_of_kernels_and_grids_is_there(table: Any) -> None:
    for path in table.kernels.values():
        assert callable(candidate_rows.kernel_of(path).run)
    for name in table.grids:
        assert hasattr(importlib.import_module(f"msformer_fast.kernels.{name}"), "multiprocessors_of")
    assert set(table.shared) <= set(table.parts) and bool(table.shared) == bool(table.grids)
    if "stages" not in table.columns:
        assert set(table.kernels) == set(table.parts)


def made(part: str, row: tuple[int, ...], stages: int = 0, grid: float = 1.0, kind: str = "ieee") -> Candidate:
    return Candidate(part, kind, "made up", row, stages, grid, 1.0, 1, 1, 1, 1, 0, ("3.6.0",))


def test_stages_are_forced_where_the_launcher_says_one_and_given_back_after_a_failure() -> None:
    seen: list[dict[str, Any]] = []

    class Kernel:
        def run(self, *args: Any, **options: Any) -> None:
            seen.append(options)

    kernel = Kernel()

    def fails() -> None:
        with candidate_rows.staged(kernel, 3):
            kernel.run(num_stages=1, num_warps=8)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    kernel.run(num_stages=1)
    assert seen == [{"num_stages": 3, "num_warps": 8}, {"num_stages": 1}]


def test_grids_follow_the_number_of_multiprocessors_that_is_forced() -> None:
    module = importlib.import_module("msformer_fast.kernels.efficient_attention")
    device = torch.device("cpu")
    with mock.patch.object(module, "multiprocessors_of", return_value=132):
        with candidate_rows.scaled_grids(module, 2.0):
            assert module.multiprocessors_of(device) == 264
        with candidate_rows.scaled_grids(module, 1e-9):
            assert module.multiprocessors_of(device) == 1
        assert module.multiprocessors_of(device) == 132


def test_a_candidate_in_force_is_what_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, told that it is an H100: row, stages and grid reach the launcher."""
    table = BY_OP["stability_loss"]
    monkeypatch.setattr("msformer_fast.kernels.launch.target_of", lambda device: "sm_90")
    monkeypatch.setattr("msformer_fast.kernels.stability_loss.target_of", lambda device: "sm_90")
    case = Case.of("stability_loss", {"side": 9, "channels": 32, "patch": 2})
    subject = judge.Subject(table, "forward", case)
    assert subject.kind == "ieee" and subject.base == (32, 32, 32, 4, 1)
    assert subject.candidates() and {each.part for each in subject.candidates()} == {"forward"}
    module = subject.module
    with subject.with_(made("forward", (16, 16, 16, 2, 3))):
        settings = module.launch_settings("forward", 32, torch.float32, "ieee", "sm_90")
    assert settings == dict(BLOCK_M=16, BLOCK_N=16, BLOCK_K=16, **compile_options(num_warps=2, num_stages=3))
    assert module.launch_settings("forward", 32, torch.float32, "ieee", "sm_90")["num_stages"] == 1


def test_a_wrong_candidate_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = BY_OP["stability_loss"]
    case = Case.of("stability_loss", {"side": 9, "channels": 32, "patch": 2})
    right, other = made("forward", (32, 32, 32, 4, 1)), made("forward", (16, 16, 16, 4, 1))
    monkeypatch.setattr(judge.Subject, "candidates", lambda self, most: [other, right])
    monkeypatch.setattr(judge, "why_not", lambda ready, truth, case: "" if judge_sees(right) else "wrong: it is off")

    def judge_sees(candidate: Candidate) -> bool:
        module = importlib.import_module("msformer_fast.kernels.stability_loss")
        return next(iter(module.TABLE["forward", "ieee"].values())) == candidate.row

    found = judge.judge(table, "forward", case, rounds=3)
    assert found is not None
    by = {each["settings"]["row"]: each for each in found["candidates"]}
    assert by[other.row]["why_not"] == "wrong: it is off" and "seconds" not in by[other.row]
    assert by[right.row]["gain"] > 0 and len(by[right.row]["seconds"]) == len(found["before_seconds"]) == 3
    assert found["key"] == ("forward", "ieee") and found["width"] == 32 and found["half"] == "forward"


def test_faster_is_more_than_the_rounds_spread() -> None:
    def verdict(*ratios: float) -> bool:
        return bool(judge._verdict(made("forward", (1,)), list(ratios), [1.0] * len(ratios))["faster"])

    assert verdict(*[1.10] * 20)
    assert not verdict(*[1.02] * 20), "less than counts"
    assert not verdict(*[1.10] * 17, *[0.99] * 3), "a tenth of the rounds or more say otherwise"
    assert verdict(*[1.10] * 19, 0.5), "one round does not decide"


def test_candidates_of_another_version_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    table = BY_OP["mix_ffn"]
    monkeypatch.setattr("msformer_fast.kernels.launch.target_of", lambda device: "sm_90")
    subject = judge.Subject(table, "hidden", Case.of("mix_ffn", {"side": 9, "channels": 100}))
    old, new = (made("hidden", (8, 8, size, 16, 8, 1), kind="tf32x3") for size in (64, 32))
    new = Candidate(**{**vars(new), "versions": ("3.9.0",)})
    monkeypatch.setattr(judge, "candidates_of", lambda op: (old, new))
    for version, found in (("3.6.0", [old]), ("3.9.0", [new]), ("4.0.0", [old, new])):
        monkeypatch.setattr(judge.triton, "__version__", version)
        assert subject.candidates() == found
    grid = Candidate(**{**vars(old), "grid": 2.0})
    monkeypatch.setattr(judge, "candidates_of", lambda op: (old, new, grid))
    assert [subject.candidates(most) for most in (0, 1, 2)] == [[], [old, grid], [old, new, grid]]
