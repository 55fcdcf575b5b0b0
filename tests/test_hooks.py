"""Hooks of every module and of all that is inside it run, whatever op would take the place of its call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import msformer_fast as mf
from msformer_fast.nn import DropIn
from tests.harness.compile_table import CASES, Case, doubles, error, outputs_and_gradients, strict

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="in float64, on the CPU"),
    # PyTorch's, where the hooked module is the first to need a gradient.
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

KINDS = (
    "register_forward_pre_hook",
    "register_forward_hook",
    "register_full_backward_pre_hook",
    "register_full_backward_hook",
)

MSFORMER = CASES["MSFormer, memory fast"]

#: Besides those that torch.compile is tried on.
MORE = {
    "MixFFN, no inner skip": Case(lambda b: mf.nn.MixFFN(4, 7, inner_skip=False, backend=b), CASES["MixFFN"].draw),
}


def built(case: Case, backend: str | None = "torch") -> nn.Module:
    torch.manual_seed(1)
    return case.build(backend).double()


def drawn(case: Case) -> tuple[Any, ...]:
    torch.manual_seed(2)
    return doubles(case.draw(*case.sizes[0]))


def parts(case: Case) -> list[str]:
    """Names of the modules that can be called: PyTorch never calls a list of modules."""
    try:
        module = built(case)
    except pytest.skip.Exception:  # its library is not installed
        return []
    return [name for name, part in module.named_modules() if not isinstance(part, nn.ModuleList)]


EVERY = [
    pytest.param(case, part, id=f"{name}-{part or 'itself'}")
    for name, case in (CASES | MORE).items()
    if "lean" not in name
    for part in parts(case)
]


@contextlib.contextmanager
def hooked(module: nn.Module, kinds: tuple[str, ...] = KINDS) -> Iterator[list[str]]:
    """Hooks of these kinds that change nothing; which of them ran."""
    seen: list[str] = []

    def hook_of(kind: str) -> Callable[..., None]:
        return lambda *_: seen.append(kind)

    handles = [getattr(module, kind)(hook_of(kind)) for kind in kinds]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def assert_same(ours: tuple[list[Any], list[Any]], theirs: tuple[list[Any], list[Any]]) -> None:
    """Outputs and gradients, up to rounding in float64."""
    for mine, yours in zip(ours, theirs, strict=True):
        assert error(mine, yours) <= 1e-9


def library_calls(module: DropIn, part: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether the code of the class that a drop-in stands in for calls this part: some have norms that nobody reads."""
    with hooked(part, KINDS[:2]) as seen:
        module.library.forward(module, *inputs)
    return bool(seen)


@pytest.mark.parametrize(("case", "part"), EVERY)
def test_every_part_is_called(case: Case, part: str) -> None:
    """All four kinds of hooks, on each part by itself, with the results and gradients that there are without."""
    module, inputs = built(case), drawn(case)
    wanted = outputs_and_gradients(module, module, inputs)
    looked_at = module.get_submodule(part)
    with hooked(looked_at) as seen:
        assert_same(outputs_and_gradients(module, module, inputs), wanted)
    if isinstance(module, DropIn) and part and not library_calls(module, looked_at, inputs):
        assert not seen
    else:
        assert set(seen) == set(KINDS)
    assert_same(outputs_and_gradients(module, module, inputs), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_hook_is_enough(kind: str) -> None:
    module, inputs = built(MSFORMER), drawn(MSFORMER)
    for name in ("net.block_s.0.mlp.fc1", "net.block_l.0.attn.keys", "net.linear_up", "net.bn3"):
        with hooked(module.get_submodule(name), (kind,)) as seen:
            outputs_and_gradients(module, module, inputs)
        assert seen, name


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_all_at_once(backend: str) -> None:
    module, inputs = built(MSFORMER, backend), drawn(MSFORMER)
    wanted = outputs_and_gradients(module, module, inputs)
    with contextlib.ExitStack() as stack:
        seen = {
            name: stack.enter_context(hooked(part))
            for name, part in module.named_modules()
            if not isinstance(part, nn.ModuleList)
        }
        assert_same(outputs_and_gradients(module, module, inputs), wanted)
    assert all(set(kinds) == set(KINDS) for kinds in seen.values())


@pytest.mark.parametrize("name", ["MSFormer, memory fast", "PublishedTransformerBlock", "TimmSwinBlock"])
def test_hooks_on_every_module_of_the_process(name: str) -> None:
    module, inputs = built(CASES[name]), drawn(CASES[name])
    wanted, called = outputs_and_gradients(module, module, inputs), set()
    handle = register_module_forward_hook(lambda part, *_: called.add(part))
    try:
        assert_same(outputs_and_gradients(module, module, inputs), wanted)
    finally:
        handle.remove()
    for part_name, part in module.named_modules():
        if isinstance(part, nn.ModuleList):
            continue
        if not isinstance(module, DropIn) or part is module or library_calls(module, part, inputs):
            assert part in called, part_name


@pytest.mark.parametrize(
    "part",
    [
        "net.block_s.0.mlp.fc1",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("net.to_patch_embedding.1", "net.patch_embed_s.norm", "net.linear_up")
        ),
    ],
)
def test_through_the_kernels(part: str) -> None:
    """One hook, and nothing is folded; the parts that nobody looks at run on their kernels."""
    pytest.importorskip("triton")
    with strict():
        module, inputs = built(MSFORMER, "triton"), drawn(MSFORMER)
        wanted = outputs_and_gradients(module, module, inputs)
        with hooked(module.get_submodule(part)) as seen:
            assert_same(outputs_and_gradients(module, module, inputs), wanted)
    assert set(seen) == set(KINDS)


def test_what_a_hook_returns_counts() -> None:
    """The output of a part doubled: as if the part's weights were."""
    module, inputs = built(MSFORMER), drawn(MSFORMER)
    before = module(*inputs)
    for name in ("net.linear_down", "net.block_s.0.mlp.fc2", "net.block_l.0.attn.reprojection"):
        part = module.get_submodule(name)
        handle = part.register_forward_hook(lambda part, given, made: 2 * made)
        doubled = module(*inputs)
        handle.remove()
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.mul_(2)
            torch.testing.assert_close(module(*inputs), doubled)
            assert not torch.equal(doubled, before)
            for parameter in part.parameters():
                parameter.div_(2)


class LowRank(nn.Linear):
    """A linear layer with a second one beside it, as LoRA puts in the place of one: its weight is not all of it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, dtype=torch.float64)
        self.weight, self.bias = linear.weight, linear.bias
        self.beside = nn.Linear(linear.in_features, linear.out_features, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.beside(x)


@pytest.mark.parametrize("name", ["net.block_s.0.mlp.fc1", "net.linear_up", "net.to_patch_embedding.1"])
def test_a_part_of_another_class_is_called(name: str) -> None:
    module, inputs = built(MSFORMER), drawn(MSFORMER)
    holder, _, key = name.rpartition(".")
    part = LowRank(module.get_submodule(name))
    setattr(module.get_submodule(holder), key, part)
    found = outputs_and_gradients(module, module, inputs)
    setattr(module.get_submodule(holder), key, nn.Linear(part.in_features, part.out_features, part.bias is not None))
    plain = module.double().get_submodule(name)
    with torch.no_grad():
        plain.weight.copy_(part.weight + part.beside.weight)
        if part.bias is not None:
            plain.bias.copy_(part.bias)
    torch.testing.assert_close(found[0][0], module(*inputs).detach())


def test_a_replaced_forward_is_called() -> None:
    module, inputs = built(MSFORMER), drawn(MSFORMER)
    part, seen = module.get_submodule("net.block_s.0.norm1"), []

    def forward(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return type(part).forward(part, x)

    part.forward = forward
    module(*inputs)
    assert len(seen) == 1


def test_compiled_hooks_are_traced() -> None:
    """Those that are there before; the graph is whole, and no guard of the compiled code reads a hook's dictionary."""
    torch._dynamo.reset()
    block, x = mf.nn.EfficientTransformerBlock(4, dtype=torch.float64), torch.randn(1, 9, 7, 4, dtype=torch.float64)
    plain = block(x).y
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x).y, plain)
    (entry,) = torch._dynamo.eval_frame._debug_get_cache_entry_list(type(block).forward.__code__)
    assert "fc1._forward_hooks" not in str(entry.guard_manager)

    torch._dynamo.reset()
    block.mlp.fc1.register_forward_hook(lambda part, given, made: 2 * made)
    hooked_eager = block(x).y
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x).y, hooked_eager)
    assert not torch.allclose(hooked_eager, plain)
