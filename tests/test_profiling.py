"""NVTX ranges: named when switched on, nothing otherwise."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch

from msformer_fast import InputError, ops, profiling


@pytest.fixture(autouse=True)
def _off_again():
    yield
    profiling.enable_nvtx(False)


def test_off_by_default() -> None:
    assert isinstance(profiling.nvtx_range("x"), contextlib.nullcontext)


def test_forward_and_backward_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nvtx = pytest.importorskip("nvtx")
    pytest.importorskip("triton")
    names: list[str] = []

    @contextlib.contextmanager
    def annotate(message: str, domain: str):
        names.append(message)
        yield

    monkeypatch.setattr(nvtx, "annotate", annotate)
    profiling.enable_nvtx()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = torch.randn(1, 3, 4, 5, device=device, requires_grad=True)
    ops.clustering_loss(logits, backend="triton")[0].backward()
    assert names == ["msformer_fast.clustering_loss.forward", "msformer_fast.clustering_loss.backward"]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(InputError, match="pip install"):
        profiling.enable_nvtx()
