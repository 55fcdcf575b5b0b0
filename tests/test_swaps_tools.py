"""Tools that worked on a network go on working on it when modules are swapped: tracers see PyTorch's operators."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import msformer_fast as mf
from msformer_fast.nn import DropIn
from tests.test_swin_copies import microsoft


class EfficientAttention(nn.Module):
    """Plain enough for TorchScript."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.keys, self.queries = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.values, self.reprojection = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape
        keys = self.keys(x).flatten(2).softmax(2)
        context = torch.matmul(keys, self.values(x).flatten(2).transpose(1, 2))
        attended = torch.matmul(context.transpose(1, 2), self.queries(x).flatten(2).softmax(1))
        return self.reprojection(attended.reshape(size))


@pytest.fixture(params=[None, "torch"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Swapped, with a map for which the op computes."""
    model = nn.Sequential(EfficientAttention(8)).double().eval()
    swaps = mf.accelerate(model, backend=request.param)
    assert len(swaps) == 1, str(swaps)
    return model


pytestmark = pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and says so

X = torch.linspace(-1, 1, 2 * 8 * 400 * 400, dtype=torch.float64).view(2, 8, 400, 400)


def same(ours: Any, model: nn.Module) -> None:
    torch.testing.assert_close(ours, model(X), rtol=1e-9, atol=1e-10)


def test_torchscript(model: nn.Module) -> None:
    """Both ways; a script is made of the module's own code, which it leaves in the model, and undo knows that."""
    original = model[0].__prepare_scriptable__()
    with torch.no_grad():
        same(torch.jit.trace(model, X, check_trace=False)(X), model)
        assert isinstance(model[0], DropIn)
        script = torch.jit.script(model)
        same(script(X), model)
    assert type(original) is EfficientAttention and original.keys is model[0].keys


def test_undo_after_a_script() -> None:
    module = EfficientAttention(8)
    model = nn.Sequential(module)
    swaps = mf.accelerate(model)
    torch.jit.script(model)
    swaps.undo()
    assert model[0] is module


def test_fx(model: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(model)
    assert {"0.keys", "0.queries", "0.values", "0.reprojection"} <= {str(node.target) for node in traced.graph.nodes}
    with torch.no_grad():
        same(traced(X), model)


def test_onnx_through_torchscript(model: nn.Module) -> None:
    pytest.importorskip("onnx")
    file = io.BytesIO()
    torch.onnx.export(model, (X[:, :, :9, :9],), file, dynamo=False)
    assert file.tell()


def test_flops_and_meta(model: nn.Module) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(X[:, :, :9, :9])
    assert counter.get_total_flops() > 0
    assert model.to("meta")(X.to("meta")).shape == X.shape


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_chosen_device(device: str) -> None:
    """For new tensors: the trial makes its own on the CPU."""
    with torch.device(device):
        model = nn.Sequential(EfficientAttention(8))
        assert len(mf.accelerate(model)) == 1
    assert model[0].keys.weight.device.type == device
    assert torch.ones(1).device.type == "cpu"


def test_hooks_on_every_module(model: nn.Module) -> None:
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        model(X[:, :, :5, :5])
    finally:
        handle.remove()
    assert seen.count("Conv2d") == 4


def test_hooks_on_the_projections_of_windows(drop_ins_compute: None) -> None:
    """They see windows, as in the module's own code."""
    block, seen = microsoft(), []
    model = nn.Sequential(block)
    mf.accelerate(model)
    block.attn.qkv.register_forward_hook(lambda module, inputs, out: seen.append(tuple(inputs[0].shape)))
    model[0](torch.randn(2, 96, 12, dtype=torch.float64))
    assert seen == [(2 * 2 * 3, 16, 12)]
