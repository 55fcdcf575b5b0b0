"""``torch.export`` of the network and of every module."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

import msformer_fast as mf
from tests.harness.compile_table import CASES, Step, doubles

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="in float64, on the CPU"),
    # PyTorch's own, while it lowers.
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]

every_module = pytest.mark.parametrize("name", CASES)


class _Outputs(torch.nn.Module):
    """The five tensors of the scores, which a file of an exported program can hold."""

    def __init__(self, net: mf.MSFormer) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        scores = self.net(image)
        return scores.logits, scores.context_fine, scores.context_coarse, scores.queries, scores.keys


SIZE = {2: Dim("height", min=9, max=4096), 3: Dim("width", min=9, max=4096)}


@pytest.mark.parametrize(
    ("memory", "training", "strict"),
    [
        pytest.param(memory, training, strict, marks=[pytest.mark.slow] * (memory == "lean" or training != strict))
        for memory in ("fast", "lean")
        for training in (True, False)
        for strict in (True, False)
    ],
)
def test_exported_with_any_size(memory: str, training: bool, strict: bool) -> None:
    """To the bit: outputs, running statistics and, through the exported program, every gradient. By default it holds
    ``"torch"``, which runs anywhere."""
    model, torchs = (
        mf.MSFormer(3, 4, 6, depth=1, patch=8, seed=0, memory=memory, backend=backend).train(training)
        for backend in (None, "torch")
    )
    program = export(model, (torch.rand(1, 3, 19, 22),), dynamic_shapes={"image": SIZE}, strict=strict)
    for size in ((19, 22), (33, 25), (16, 40)):
        image, eager, exported = torch.rand(1, 3, *size), copy.deepcopy(torchs), copy.deepcopy(program).module()
        wanted, found = eager(image), exported(image)
        for mine, truth in zip(found[:5], wanted[:5], strict=True):
            assert torch.equal(mine, truth)
        mf.self_guiding_losses(wanted, backend="torch").total.backward()
        mf.self_guiding_losses(mf.model.Scores(*found), backend="torch").total.backward()
        state, parameters = exported.state_dict(), dict(exported.named_parameters())
        for name, value in eager.state_dict().items():
            # Strict export leaves out what evaluation does not read.
            assert torch.equal(state[name], value) if training or name in state else "num_batches" in name, name
        for name, value in eager.named_parameters():
            assert torch.equal(parameters[name].grad, value.grad), name


def test_exported_with_any_batch_its_losses_and_a_file(tmp_path: Path) -> None:
    model, torchs = (
        mf.MSFormer(3, 4, 6, depth=1, patch=8, seed=0, backend=backend).eval() for backend in (None, "torch")
    )
    shapes = {"image": {0: Dim("batch", min=2), **SIZE}}
    image = torch.rand(5, 3, 33, 16)
    torch.export.save(export(_Outputs(model), (torch.rand(2, 3, 19, 22),), dynamic_shapes=shapes), tmp_path / "net.pt2")
    found = torch.export.load(tmp_path / "net.pt2").module()(image)
    for mine, truth in zip(found, torchs(image)[:5], strict=True):
        assert torch.equal(mine, truth)
    step = Step(backend=None).eval()
    exported = export(step, (torch.rand(2, 3, 19, 22),), dynamic_shapes=shapes).module()
    assert torch.equal(exported(image), Step(backend="torch").eval()(image))


#: Whose sizes an exported program does not leave open: windows ask what divides and what is even, which explicit
#: dimensions refuse, and with ``Dim.AUTO`` the program runs at sizes that answer alike. The reference's patches too.
ONE_SIZE = ("window", "Window", "CrossScale", "Swin")


def detached(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in doubles(values))


#: In which the first size has a single patch: to an export one is a constant, and two are any number but one.
OF_PATCHES = ("PatchEmbedding", "MSFormer")


@every_module
def test_a_module_exported(name: str) -> None:
    case = CASES[name]
    module, inputs = case.build("torch").double().eval(), detached(case.draw(*case.sizes[0]))
    with torch.no_grad():
        program = export(module, inputs)
        found, wanted = program.module()(*inputs), module(*inputs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.slow
@every_module
@pytest.mark.parametrize("strict", [True, False])
def test_a_module_exported_for_other_sizes(name: str, strict: bool) -> None:
    case = CASES[name]
    if any(word in name for word in ONE_SIZE):
        pytest.skip("windows fix the remainders of the sizes")
    sizes = case.sizes[1:] if any(word in name for word in OF_PATCHES) else case.sizes
    module, inputs = case.build("torch").double().eval(), detached(case.draw(*sizes[0]))
    shapes: Any = tuple(
        {axis: Dim.AUTO for axis in range(1, value.ndim)} if isinstance(value, Tensor) else Dim.AUTO for value in inputs
    )
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters):
        shapes = (shapes,)
    with torch.no_grad():
        if isinstance(module, Step):
            shapes = ({2: Dim.AUTO, 3: Dim.AUTO},)
        program = export(module, inputs, dynamic_shapes=shapes, strict=strict).module()
        for size in sizes:
            given = detached(case.draw(*size))
            torch.testing.assert_close(program(*given), module(*given), rtol=0, atol=0)
