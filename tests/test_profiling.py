"""NVTX ranges: named when switched on, nothing otherwise."""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace

import pytest
import torch

from msformer_fast import InputError, ops, profiling
from msformer_fast.ops.launch import launching


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


def test_kernels_run_on_the_tensors_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, which need not be the tensors'."""
    entered: list[object] = []

    @contextlib.contextmanager
    def device(chosen: object):
        entered.append(chosen)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    with launching("x", SimpleNamespace(device=torch.device("cuda", 1))):
        assert entered == [torch.device("cuda", 1)]
    with launching("x", torch.zeros(1)):
        assert len(entered) == 1


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(InputError, match="pip install"):
        profiling.enable_nvtx()
