"""The choice of backend."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from msformer_fast import BackendError, InputError
from msformer_fast.doctor import backends, report
from msformer_fast.ops import backend
from msformer_fast.ops.backend import BACKENDS, choose

from .conftest import ROOT


def refuse(reason: str | None):
    return lambda: reason


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_fastest_that_can_run() -> None:
    assert choose("op", None, GPU, {"triton": refuse(None), "torch": refuse(None)}) == "triton"
    assert choose("op", None, GPU, {"triton": refuse("no"), "torch": refuse(None)}) == "torch"
    assert choose("op", None, GPU, {"triton": refuse("no"), "torch": refuse("no")}) == "reference"
    assert choose("op", None, CPU, {"triton": refuse(None), "torch": refuse(None)}) == "torch"
    every = {"triton": refuse(None), "native": refuse(None), "torch": refuse(None)}
    assert choose("op", None, CPU, every) == "native"
    assert choose("op", None, CPU, {**every, "native": refuse("no")}) == "torch"
    assert choose("op", None, GPU, {**every, "triton": refuse("no")}) == "torch"
    assert choose("op", None, CPU, {"triton": refuse(None)}) == "reference"
    assert choose("op", "reference", GPU, {"triton": refuse(None)}) == "reference"
    assert choose("op", "triton", CPU, {"triton": refuse(None)}) == "triton"


def test_asked_for_by_name_raises_the_reason() -> None:
    with pytest.raises(BackendError, match="needs a GPU"):
        choose("op", "triton", GPU, {"triton": refuse("op: needs a GPU")})


def test_a_fallback_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="msformer_fast"):
        for _ in range(2):
            choose("logged_once", None, GPU, {"torch": refuse(None), "triton": refuse("logged_once: no GPU")})
    assert [record.message for record in caplog.records] == ["logged_once: no GPU"]


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="triton, native, torch, reference; got 'cuda'"):
        choose("op", "cuda", CPU, {})


def test_every_op_runs_its_reference_or_says_why_not() -> None:
    table = backends("cpu")
    assert len(table) == 11
    for op, states in table.items():
        assert list(states) == list(BACKENDS)
        assert states["reference"] == "runs"
        for state in states.values():
            assert state == "runs" or state.startswith(op)


def test_the_oldest_triton_is_one_and_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the requirements, the README and the refusal of an older one."""
    needs = dict(re.findall(r'"(torch|triton)>=([\d.]+)', (ROOT / "pyproject.toml").read_text()))
    assert needs["triton"] == ".".join(map(str, backend.OLDEST_TRITON))
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"any torch from {needs['torch']}, and its kernels any Triton from {needs['triton']}" in readme

    monkeypatch.setattr(backend, "_triton_version", lambda: (3, 2))
    monkeypatch.setattr(backend, "interpreting", lambda: True)
    refusal = backend.why_not_triton("mix_ffn", torch.zeros(1))
    assert refusal == 'mix_ffn: backend="triton" needs Triton 3.3 or newer, which compiles every kernel; found 3.2'


def test_report_names_versions_and_ops() -> None:
    text = report()
    for word in ("msformer_fast", "torch", "triton", "devices", "clustering_loss", "stability_loss"):
        assert word in text
