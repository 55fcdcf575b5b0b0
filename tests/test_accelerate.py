"""``accelerate``: the very parameters, the same numbers, a report, and the way back."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import msformer_fast as mf
from msformer_fast.nn import DropIn, PublishedEfficientAttention, PublishedMixFFN, PublishedTransformerBlock
from msformer_fast.swaps.probe import probe
from tests import published_networks as published
from tests.harness.differences import assert_same
from tests.harness.networks import NETWORKS, batch, loss_of, net, results

pytestmark = pytest.mark.usefixtures("drop_ins_compute")

every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_networks(name: str) -> None:
    """The same loss and gradients in float64, the very parameters, the same state dict; and back again."""
    model, image = net(name).double(), batch().double()
    before = results(model, image)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    swaps = mf.accelerate(model)
    assert len(swaps) == NETWORKS[name][1], str(swaps)
    assert all(0 < swap.difference <= 1e-9 for swap in swaps.swapped)
    assert_same(results(model, image), before, 1e-9)
    assert all(model.get_parameter(key) is value for key, value in parameters.items())
    assert all(model.get_buffer(key) is value for key, value in buffers.items())
    assert list(model.state_dict()) == list(state)
    fresh = net(name).double()
    fresh.load_state_dict(model.state_dict())
    model.load_state_dict(state)
    swaps.undo()
    assert dict(model.named_modules()) == modules
    assert_same(results(model, image), before, 1e-12 if "timm" not in name else 1e-9)


def test_what_is_swapped_and_left() -> None:
    model = net()
    swaps = mf.accelerate(model)
    names = {name: swap for swap in swaps.swapped for name in swap.names}
    assert isinstance(model.get_submodule("up.0"), PublishedTransformerBlock)
    assert isinstance(model.get_submodule("block1.0.attn"), PublishedEfficientAttention)
    assert isinstance(model.get_submodule("block2.1.mlp2"), PublishedMixFFN)
    assert names["up.0"].replacement is model.get_submodule("up.0")
    assert type(names["up.0"].original) is published.EfficientTransformerBlock
    (left,) = swaps.left
    assert left.name == "cross_attn" and "its forward takes (target, source)" in left.reason
    text = str(swaps)
    assert text.startswith("swapped 13\n") and "block1.0.attn: EfficientAttention" in text
    assert "left 1 that look alike" in text and f"{swaps.others} other modules have no drop-in" in text
    again = mf.accelerate(model)
    assert len(again) == 0 and sum(left.reason == "it is a drop-in already" for left in again.left) == 13


def test_mode_and_requires_grad_stay() -> None:
    model = net().eval()
    model.block1.train()
    model.get_submodule("up.0").norm1.weight.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    swaps = mf.accelerate(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not model.get_parameter("up.0.norm1.weight").requires_grad
    model.train()
    swaps.undo()
    assert all(module.training for module in model.modules())


def test_an_optimizer_made_before_goes_on() -> None:
    model = net().double()
    twin, image = copy.deepcopy(model), batch().double()
    optimizers = [torch.optim.AdamW(each.parameters(), 1e-3) for each in (model, twin)]
    for step in range(4):
        if step == 1:
            swaps = mf.accelerate(model)
        if step == 3:
            swaps.undo()
        for each, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(each, image).backward()
            optimizer.step()
    for ours, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-8)  # Adam divides by small numbers


def test_hooks_of_the_module_stay() -> None:
    model, seen = net(), []
    block = model.get_submodule("up.0")
    handle = block.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    block.register_full_backward_hook(lambda *_: seen.append("backward"))
    with mf.accelerate(model):
        loss_of(model, batch()).backward()
        assert seen == ["PublishedTransformerBlock", "backward"]
        handle.remove()
        later = model.get_submodule("up.0").register_forward_hook(lambda module, *_: seen.append("later"))
        model(batch())
        assert seen[2:] == ["later"]
    model(batch())
    assert seen[3:] == ["later"]
    later.remove()
    model(batch())
    assert len(seen) == 4


def test_a_context_undoes_also_after_an_error() -> None:
    model = net()
    swaps = mf.accelerate(model)
    with pytest.raises(RuntimeError, match="mine"), swaps:
        raise RuntimeError("mine")
    assert not any(isinstance(module, DropIn) for module in model.modules())
    swaps.undo()
    assert "(undone)" in str(swaps)


def test_undo_does_not_overwrite_what_came_later() -> None:
    model = net()
    swaps = mf.accelerate(model)
    model.get_submodule("block1.0").mlp1 = other = nn.Identity()
    with pytest.raises(mf.InputError, match=r"undo: block1\.0\.mlp1 must still be the replacement, got a Identity"):
        swaps.undo()
    assert model.get_submodule("block1.0").mlp1 is other and isinstance(model.get_submodule("up.0"), DropIn)


def test_attributes_set_meanwhile_reach_the_original() -> None:
    model = nn.Sequential(published.EfficientAttention(6))
    with mf.accelerate(model) as swaps:
        model[0].head_count = 2
        model[0].keys = nn.Conv2d(6, 6, 1, bias=False)
        assert model[0].scored.__func__ is published.EfficientAttention.scored
    original = swaps.swapped[0].original
    assert model[0] is original and original.head_count == 2 and original.keys.bias is None


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(how: str) -> None:
    """A copy before is swapped for itself; one after is swapped; one together with the swaps has its own way back."""
    model, image = net(), batch()
    want = model(image)

    def copied(value: Any) -> Any:
        if how == "deepcopy":
            return copy.deepcopy(value)
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    before = copied(model)
    swaps = mf.accelerate(before)
    assert not any(isinstance(module, DropIn) for module in model.modules())
    after = copied(before)
    assert sum(isinstance(module, DropIn) for module in after.modules()) == 13
    torch.testing.assert_close(after(image), want)
    both, way_back = copied((before, swaps))
    way_back.undo()
    assert not any(isinstance(module, DropIn) for module in both.modules())
    assert sum(isinstance(module, DropIn) for module in before.modules()) == 13
    torch.testing.assert_close(both(image), want, rtol=0, atol=0)


def test_two_models_with_different_options() -> None:
    first, second = net(), net()
    mf.accelerate(first, backend="reference")
    mf.accelerate(second, only="MixFFN")
    backends = [module.backend for module in first.modules() if isinstance(module, DropIn)]
    assert backends == ["reference"] * 13
    kinds = {type(module) for module in second.modules() if isinstance(module, DropIn)}
    assert kinds == {PublishedMixFFN}


@pytest.mark.parametrize(
    ("only", "skip", "count"),
    [
        ("EfficientAttention", None, 5),
        ("MixFFN_skip", None, 9),
        (["block1.*"], None, 6),
        (["block1.*", "up.0"], "*.mlp2", 5),
        (None, ["MixFFN", "EfficientTransformerBlock"], 5),
        (None, "SwinTransformerBlock of timm", 13),
    ],
)
def test_only_and_skip(only: Any, skip: Any, count: int) -> None:
    model = net()
    swaps = mf.accelerate(model, only=only, skip=skip)
    assert len(swaps) == count, str(swaps)
    assert sum(isinstance(module, DropIn) for module in model.modules()) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "blocks.*"}, r"accelerate: only must hold kinds .*; 'blocks\.\*' is none"),
        ({"skip": ["MixFNN"]}, "accelerate: skip must hold kinds .*; 'MixFNN' is none"),
        ({"only": [3]}, "accelerate: only must hold strings, got 3"),
        (
            {"backend": "cuda"},
            "accelerate: backend must be None or one of triton, native, torch, reference; got 'cuda'",
        ),
    ],
)
def test_wrong_arguments_change_nothing(options: dict[str, Any], message: str) -> None:
    model = net()
    with pytest.raises(mf.InputError, match=message):
        mf.accelerate(model, **options)
    assert not any(isinstance(module, DropIn) for module in model.modules())


def test_models_that_cannot_be_changed() -> None:
    with pytest.raises(
        mf.InputError, match=r"got one itself \(EfficientAttention\); put it into a torch.nn.Sequential"
    ):
        mf.accelerate(published.EfficientAttention(6))
    with pytest.raises(mf.InputError, match="must not be compiled yet, got a OptimizedModule"):
        mf.accelerate(torch.compile(net(), backend="eager"))
    with pytest.raises(mf.InputError, match=r"model must be a torch\.nn\.Module, got a list"):
        mf.accelerate([net()])  # type: ignore[arg-type]


def test_compiled_parts_are_left() -> None:
    model = nn.ModuleList([torch.compile(published.EfficientAttention(6), backend="eager")])
    swaps = mf.accelerate(model)
    assert len(swaps) == 0
    assert [left.reason for left in swaps.left] == ["its code was taken before: call accelerate, then compile"]


def test_a_shared_module_has_one_drop_in() -> None:
    shared = published.MixFFN(6, 12)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared, published.MixFFN(6, 12)])})
    swaps = mf.accelerate(model)
    assert [swap.names for swap in swaps.swapped] == [("a", "b.0"), ("b.1",)]
    assert model["a"] is model["b"][0]
    swaps.undo()
    assert model["a"] is shared and model["b"][0] is shared


def test_own_modules_on_the_reference() -> None:
    """Its own parts go with it, and those on another backend stay."""
    model = nn.ModuleDict({"net": mf.MSFormer(3, 8, 6, patch=8, seed=0, backend="reference"), "fast": mf.nn.MixFFN(6)})
    image = torch.rand(1, 3, 17, 20)
    original, want = model["net"], model["net"](image).logits
    swaps = mf.accelerate(model)
    assert len(swaps) == 9 and model["fast"].backend is None
    assert type(model["net"]) is mf.MSFormer and model["net"] is not original
    assert {m.backend for m in model["net"].modules() if hasattr(m, "backend")} == {None}
    torch.testing.assert_close(model["net"](image).logits, want)
    swaps.undo()
    assert model["net"] is original
    assert {m.backend for m in original.modules() if hasattr(m, "backend")} == {"reference"}
    swaps = mf.accelerate(original)
    assert len(swaps) == 8 and "set its backend attribute" in str(swaps)


def test_a_module_that_is_reached_otherwise() -> None:
    """Through a plain list the module itself would be called: the swap would change nothing."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = published.MixFFN(6, 12), published.MixFFN(6, 12)
            self.order = [{"then": (self.second,)}]

        def forward(self, x: Tensor) -> Tensor:
            return self.order[0]["then"][0](self.first(x, 5, 7), 5, 7)

    model = nn.Sequential(Listed())
    swaps = mf.accelerate(model)
    assert [swap.names for swap in swaps.swapped] == [("0.first",)]
    (left,) = swaps.left
    assert left.name == "0.second" and left.reason.startswith("0.order holds it besides")
    assert type(model[0].second) is published.MixFFN


def test_a_module_that_is_never_called() -> None:
    model = nn.ModuleList([published.MixFFN(6, 12), published.MixFFN(6, 12)])
    swaps = mf.accelerate(model)
    assert "NOT CALLED" not in str(swaps)
    model[1](torch.randn(1, 35, 6), 5, 7)
    assert [swap.was_called for swap in swaps.swapped] == [False, True]
    first, second = str(swaps).splitlines()[1:3]
    assert first.endswith("NOT CALLED so far") and "NOT CALLED" not in second


def test_modules_of_one_structure_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def counted(module: nn.Module, *others: Any) -> Any:
        tried.append(module)
        return probe(module, *others)

    monkeypatch.setattr("msformer_fast.swaps.search.probe", counted)
    blocks = [published.MixFFN(6, 12, drop) for drop in (0.0, 0.1, 0.1)] + [published.MixFFN(6, 18)]
    blocks[2].act = nn.GELU("tanh")
    other = published.MixFFN(6, 12)
    other.fc1.bias = None
    swaps = mf.accelerate(nn.ModuleList([*blocks, other]))
    assert tried == [blocks[0], blocks[3], other] and len(swaps) == 4
    assert [left.reason for left in swaps.left] == ["its GELU is the tanh approximation"]


def test_the_trial_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints nothing, and seeds no generator but the CPU's, which is as it was afterwards."""

    class Talking(published.MixFFN):
        def forward(self, x: Tensor, H: int, W: int) -> Tensor:
            print("called")
            return super().forward(x, H, W)

    def refuse(seed: int) -> None:
        raise AssertionError("seeds every device")

    monkeypatch.setattr(torch, "manual_seed", refuse)
    model = nn.Sequential(Talking(6, 12))
    state = torch.random.get_rng_state()
    assert len(mf.accelerate(model)) == 1
    assert capsys.readouterr().out == "" and torch.equal(torch.random.get_rng_state(), state)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(5))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain * self.factor


class FastScaled(DropIn):
    def forward(self, x: Tensor) -> Tensor:
        return x * (2 * self.gain)


class Other(nn.Module):
    """Equal, with parameters of its own."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.gain = nn.Parameter(module.gain.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 * self.gain)


def test_a_kind_of_ones_own() -> None:
    """It is proved like any other."""

    def register(way: Callable[..., nn.Module]) -> None:
        mf.register_swap(
            "Scaled",
            recognise=lambda module: type(module) is Scaled and (module.factor < 9 or "its factor is too large"),
            ways=lambda module: [way],
            calls=lambda module: [(torch.randn(2, 5),)],
        )

    register(lambda module, backend: FastScaled(module, backend=backend))
    try:
        model = nn.Sequential(Scaled(2.0), Scaled(3.0), Scaled(9.0))
        swaps = mf.accelerate(model, backend="torch")
        assert isinstance(model[0], FastScaled) and model[0].backend == "torch"
        assert type(model[1]) is Scaled and "its result differs by" in swaps.left[0].reason
        assert swaps.left[1].reason == "its factor is too large"
        with pytest.raises(mf.InputError, match="name must be a new one, 'Scaled' is taken"):
            register(lambda module, backend: module)
        swaps.undo()
        mf.unregister_swap("Scaled")
        register(lambda module, backend: Other(module))
        swaps = mf.accelerate(model, only="0")
        assert swaps.left[0].reason == "its drop-in does not hold its very parameters and buffers"
    finally:
        mf.unregister_swap("Scaled")
    with pytest.raises(mf.InputError, match="name must be one of"):
        mf.unregister_swap("Scaled")
    assert len(mf.accelerate(model)) == 0
