"""Swin layers of HuggingFace's transformers: since version 5, and as before, which other models there still have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import msformer_fast as mf
from msformer_fast.nn import HuggingFaceSwinLayer
from tests.swin_blocks import has_torchvision

pytestmark = pytest.mark.usefixtures("drop_ins_compute")

both_layouts = pytest.mark.parametrize("which", ["swin", "donut"])


def model_of(which: str, **options: Any) -> Any:
    """A small network of random parameters in float64."""
    has_torchvision()  # which transformers imports where it is
    transformers = pytest.importorskip("transformers")
    settings = dict(image_size=56, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[3, 4], window_size=7) | options
    if which == "swin":
        model = transformers.SwinModel(transformers.SwinConfig(**settings), add_pooling_layer=False)
    else:
        config = transformers.DonutSwinConfig(**settings)
        model = transformers.models.donut.modeling_donut_swin.DonutSwinModel(config, add_pooling_layer=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    y = model(x).last_hidden_state
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return {"": y.detach()} | {
        name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
    }


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Relative to the largest value of each; a key's bias has no gradient but rounding: measured by the others."""
    assert ours.keys() == theirs.keys()
    least = 1e-3 * max(float(want.abs().max()) for want in theirs.values())
    for name, want in theirs.items():
        error = float((ours[name] - want).abs().max()) / max(float(want.abs().max()), least)
        assert error <= 1e-9, f"{name}: {error}"


def computed(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """A list that grows with every call which a drop-in leaves to the layer's own code."""
    seen: list[type] = []
    own_code = HuggingFaceSwinLayer.own_code

    def counted(self: Any, *inputs: Any, **named: Any) -> Any:
        seen.append(self.library)
        return own_code(self, *inputs, **named)

    monkeypatch.setattr(HuggingFaceSwinLayer, "own_code", counted)
    return seen


@both_layouts
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (26, 60)),
        ({"qkv_bias": False, "window_size": 5, "drop_path_rate": 0.0}, (58, 62)),
        pytest.param({}, (58, 62), marks=pytest.mark.slow),
    ],
    ids=["one window high", "no bias", "padded"],
)
def test_network(which: str, options: dict[str, Any], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that divide the map or do not; a map that is one window high, where the layer changes its shift."""
    model, x = model_of(which, **options), torch.randn(2, 3, *size, dtype=torch.float64)
    untouched = copy.deepcopy(model)
    swaps = mf.accelerate(model)
    assert [swap.kind for swap in swaps.swapped] == ["SwinLayer of HuggingFace"] * 4, str(swaps)
    assert model.state_dict().keys() == untouched.state_dict().keys()
    for training in (False, True, False):  # again, on what the layers have made of their settings
        model.train(training)
        untouched.train(training)
        seen = computed(monkeypatch)
        torch.manual_seed(0)
        ours = gradients(model, x)
        torch.manual_seed(0)
        compare(ours, gradients(untouched, x))
        assert not seen
    for mine, theirs in zip(model.encoder.layers, untouched.encoder.layers, strict=True):
        assert [block.shift_size for block in mine.blocks] == [block.shift_size for block in theirs.blocks]


@both_layouts
def test_always_partition(which: str) -> None:
    """A shifted window on a map that it covers; by position and by name."""
    layer = model_of(which).eval().encoder.layers[0].blocks[1]
    drop_in, x = HuggingFaceSwinLayer(copy.deepcopy(layer)), torch.randn(1, 7 * 7, 12, dtype=torch.float64)
    calls: list[tuple[Any, ...]] = [
        ({"always_partition": True}, ()),
        ({}, (True,) if which == "swin" else (False, True)),
    ]
    for named, inputs in calls:
        ours, theirs = (module(x, (7, 7), *inputs, **named) for module in (drop_in, layer))
        assert len(ours) == len(theirs) and drop_in.shift_size == layer.shift_size == 3
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-10)


@both_layouts
def test_probabilities(which: str) -> None:
    """Somebody who asks for them gets them, from the layer's own code."""
    options = {"attn_implementation": "eager"} if which == "swin" else {}
    model, x = model_of(which), torch.randn(1, 3, 56, 56, dtype=torch.float64)
    mf.accelerate(model)
    if options:
        model.set_attn_implementation("eager")
    found = model(x, output_attentions=True).attentions
    assert found is not None and all(isinstance(each, Tensor) for each in found)


def test_eager_stays() -> None:
    swaps = mf.accelerate(model_of("swin", attn_implementation="eager"))
    assert len(swaps) == 0
    assert {left.reason[:44] for left in swaps.left} == {"its attention returns its probabilities; bui"}


@both_layouts
def test_own_code(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a hook sees windows, something was changed, a dropout is at work."""
    model = model_of(which, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
    layer = model.encoder.layers[0].blocks[0]
    drop_in, x = HuggingFaceSwinLayer(layer), torch.randn(2, 14 * 9, 12, dtype=torch.float64)
    seen = computed(monkeypatch)

    def same(expected: int) -> None:
        torch.manual_seed(1)
        ours = drop_in(x, (14, 9))[0]
        torch.manual_seed(1)
        torch.testing.assert_close(ours, layer(x, (14, 9))[0], rtol=1e-10, atol=1e-10)
        assert len(seen) == expected

    drop_in.train()
    layer.train()
    same(1)
    drop_in.eval()
    layer.eval()
    same(1)
    handle = layer.attention.register_forward_hook(lambda *_: None)
    same(2)
    handle.remove()
    same(2)
    layer.layernorm_before.eps = 0.5
    same(3)


def test_gradient_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set on the model before or after the swap."""
    model, x = model_of("swin", drop_path_rate=0.0).train(), torch.randn(1, 3, 56, 56, dtype=torch.float64)
    theirs = gradients(model, x)
    calls: list[int] = []
    layer = HuggingFaceSwinLayer._layer
    monkeypatch.setattr(
        HuggingFaceSwinLayer, "_layer", lambda *inputs, **named: calls.append(1) or layer(*inputs, **named)
    )
    swaps = mf.accelerate(model)
    calls.clear()
    model.gradient_checkpointing_enable()
    compare(gradients(model, x), theirs)
    assert len(calls) > 4  # layers, each again in the backward
    swaps.undo()
    assert model.encoder.layers[0].blocks[0].gradient_checkpointing


def test_compiled() -> None:
    model, x = model_of("swin", drop_path_rate=0.0).eval(), torch.randn(1, 3, 58, 62, dtype=torch.float64)
    theirs = gradients(model, x)
    mf.accelerate(model)
    model.compile(backend="aot_eager")
    compare(gradients(model, x), theirs)


def test_another_make() -> None:
    layer = model_of("swin").encoder.layers[0].blocks[0]
    layer.attention.extra = nn.Linear(3, 3)
    with pytest.raises(
        mf.InputError, match="layer must be a SwinLayer of transformers: its attention is made of extra"
    ):
        HuggingFaceSwinLayer(layer)
    with pytest.raises(mf.InputError, match="it has no layernorm_before"):
        HuggingFaceSwinLayer(nn.Linear(3, 3))
