"""A provider is timed only where it is right."""

from __future__ import annotations

import math

import pytest
import torch

from msformer_fast.benchmarks import check


def test_the_error_is_that_of_the_worst_tensor() -> None:
    truth = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    found = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.01]), "more": torch.tensor([9.0])}
    error, where = check.error_of(found, truth)
    assert error == pytest.approx(0.1) and where == "a"


@pytest.mark.parametrize(
    "found",
    [{}, {"a": torch.zeros(3)}, {"a": torch.tensor([1.0, math.nan])}, {"a": torch.tensor([1.0, math.inf])}],
    ids=["missing", "another shape", "NaN", "infinite"],
)
def test_what_is_never_right(found: dict[str, torch.Tensor]) -> None:
    assert check.error_of(found, {"a": torch.ones(2)})[0] == math.inf


def test_a_true_zero_and_nothing_at_all() -> None:
    truth = {"zero": torch.zeros(2), "empty": torch.zeros(0)}
    assert check.error_of({"zero": torch.zeros(2), "empty": torch.zeros(0)}, truth) == (0.0, "")
    assert check.error_of({"zero": torch.full((2,), 0.5), "empty": torch.zeros(0)}, truth)[0] > 0.1


def test_plain_code_may_err_and_so_may_others_but_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    least = check.allowed("float32", None)
    assert check.allowed("float32", least / 100) == least
    assert check.allowed("float32", 1e-3) == pytest.approx(4e-3)
    assert check.allowed("float32", 1e9) == check.MOST
    assert check.allowed("float32", math.inf) == least
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert check.allowed("float32", None) > 10 * least
