"""``torch.onnx.export``, by both exporters: what runs is PyTorch's operators, which ONNX knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import msformer_fast as mf
from tests.published_networks import MixFFN

pytestmark = pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and says so
both_exporters = pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])


class Logits(nn.Module):
    def __init__(self, network: mf.MSFormer) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).logits


class OfOneMap(nn.Module):
    """Tokens of a map whose size is known."""

    def __init__(self, module: nn.Module, side: int) -> None:
        super().__init__()
        self.module, self.side = module, side

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x, self.side, self.side)
        return result


def run_in_onnx(model: nn.Module, x: Tensor, file: Path, dynamo: bool) -> Tensor:
    """The result of the exported file, in another program's runtime."""
    pytest.importorskip("onnxscript")
    runtime: Any = pytest.importorskip("onnxruntime")
    torch.onnx.export(model, (x,), file, dynamo=dynamo)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(result)


@both_exporters
def test_network(tmp_path: Path, dynamo: bool) -> None:
    model = Logits(mf.MSFormer(3, 4, 6, depth=1, patch=8, seed=0)).eval()
    x = torch.rand(1, 3, 33, 41)
    with torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(run_in_onnx(model, x, tmp_path / "model.onnx", dynamo), wanted, rtol=1e-3, atol=1e-4)


@both_exporters
def test_swapped_module(tmp_path: Path, dynamo: bool) -> None:
    """With a map for which its op computes otherwise."""
    model = OfOneMap(MixFFN(8, 12), 160).eval()
    x = torch.randn(1, 160 * 160, 8)
    assert len(mf.accelerate(model)) == 1
    with torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(run_in_onnx(model, x, tmp_path / "model.onnx", dynamo), wanted, rtol=1e-4, atol=1e-5)
