"""``torch.compile`` and ``torch.export`` of the network and of every module; ``tests/harness/compile_table.py`` has the
modules, and prints what these tests hold."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._inductor.compile_fx import compile_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from msformer_fast.identities.stability_loss import stability_loss as identity
from msformer_fast.reference.stability_loss import stability_loss as reference
from tests.harness.compile_table import BACKENDS, CASES, DYNAMIC, Step, compiled, doubles, error, graph_breaks, strict

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="in float64, on the CPU"),
    # PyTorch's own, while it lowers.
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]

every_module = pytest.mark.parametrize("name", CASES)

#: Those that compile in a few seconds.
QUICK = [name for name in CASES if not any(word in name for word in ("lean", "window", "Cross", "Swin"))]

#: Two scales ask whether a size is even: one compilation each.
PARITY = ("MSFormer, cross_scale window", "TwoWayCrossScaleAttention")


@pytest.fixture
def kernels() -> Iterator[None]:
    with strict():
        yield


def assert_compiles(name: str, backend: str, way: str, compiler: str = "aot_eager") -> None:
    found = compiled(CASES[name], backend, compiler, DYNAMIC[way])
    most = 3 if way == "static" or name in PARITY else 2
    assert found.frames <= most
    assert found.value <= 1e-12
    assert found.gradient <= 1e-9


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CASES])
def test_a_module_compiles_whole(name: str) -> None:
    """Values and every gradient; a second and third size compile once more, for the dynamic shapes."""
    assert_compiles(name, "torch", "automatic")


@pytest.mark.usefixtures("kernels")
@pytest.mark.slow
@every_module
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", DYNAMIC)
def test_every_way_to_compile(name: str, backend: str, way: str) -> None:
    if way == "static":
        assert graph_breaks(CASES[name], backend) == 0
    assert_compiles(name, backend, way)


#: Whose expression, a convolution of a permuted map, Inductor of PyTorch 2.13 does not lower with dynamic sizes.
NOT_LOWERED = ("MSFormer", "MixFFN", "TransformerBlock")


@pytest.mark.slow
@every_module
@pytest.mark.parametrize("expression", [False, True])
def test_through_inductor(
    name: str, expression: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Strips as the registered ops that they are, and the expressions that stand for them elsewhere."""
    if expression:
        no_strips(monkeypatch)
        if any(word in name for word in NOT_LOWERED):
            request.applymarker(pytest.mark.xfail(reason="PyTorch: cannot determine truth value of Relational"))
    assert_compiles(name, "torch", "automatic", "inductor")


@pytest.mark.usefixtures("kernels")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["MixFFN", "ScoreMap", "StabilityLoss"])
def test_kernels_through_inductor(name: str) -> None:
    assert_compiles(name, "triton", "automatic", "inductor")


def no_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ``"torch"`` backend as an expression, as on a GPU."""
    always = torch.compiler.assume_constant_result(lambda: True)
    monkeypatch.setattr("msformer_fast.ops.backend.transformed", always)


def views_saved(call: Callable[..., Tensor], *inputs: Any) -> list[tuple[str, str]]:
    """Pairs of what Inductor's graphs keep for the backward, of which one is a view of the other's memory.

    Inductor takes each for its own to overwrite, and its backward may read one after it wrote the other.
    """
    found: list[tuple[str, str]] = []
    forward: list[torch.fx.GraphModule] = []

    def storage(node: torch.fx.Node) -> StorageWeakRef | None:
        value = node.meta.get("val")
        return StorageWeakRef(value.untyped_storage()) if isinstance(value, Tensor) else None

    def look(graph: torch.fx.GraphModule, _: Any, **options: Any) -> Any:
        if not forward:
            forward.append(graph)
            given = {storage(node) for node in graph.graph.find_nodes(op="placeholder")}
            (made,) = next(reversed(graph.graph.find_nodes(op="output"))).args
            kept = [node for node in dict.fromkeys(made) if isinstance(node, torch.fx.Node)]
            kept = [node for node in kept if storage(node) is not None and storage(node) not in given]
            for index, node in enumerate(kept):
                found.extend((other.name, node.name) for other in kept[:index] if storage(other) == storage(node))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        backend = lambda graph, example: compile_fx(graph, example, inner_compile=look)  # noqa: E731
        torch.compile(call, fullgraph=True, backend=backend)(*inputs).backward()
    assert forward
    return found


def halves(scores: Tensor) -> Tensor:
    """The smallest case: Inductor writes the gradient of ``x`` over ``x`` and goes on reading its diagonal there."""
    x = scores / 2
    return (x.diagonal().sin() * x.sin().sum(-1)).sum()


def by_expm1(scores: Tensor) -> Tensor:
    """``1 - A_ii`` of the stability loss, as this package does not write it."""
    x = scores / 8
    return -torch.expm1(x.diagonal() - x.logsumexp(-1)).sum()


def test_no_view_is_saved_beside_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the losses and the head, whose elementwise backward could overwrite it; the check sees where one is."""
    for wrong in (halves, by_expm1):
        assert views_saved(wrong, torch.randn(17, 17, requires_grad=True)) == [("div", "diagonal")]
    no_strips(monkeypatch)
    for name in (
        "ClusteringLoss",
        "StabilityLoss",
        "PatchEmbedding",
        "ScoreMap",
        "MixFFN",
        "EfficientAttention",
    ):
        for backend in ("torch", "reference"):
            module = CASES[name].build(backend)

            def total(*inputs: Any, module: torch.nn.Module = module) -> Tensor:
                made = module(*inputs)
                made = (made,) if isinstance(made, Tensor) else made
                return sum((value.sin() * value).sum() for value in made if value.requires_grad)

            assert views_saved(total, *doubles_as_floats(CASES[name].draw(*CASES[name].sizes[0]))) == [], (
                name,
                backend,
            )


def doubles_as_floats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.detach().float().requires_grad_(v.requires_grad) for v in doubles(values))


def inductor_errors(call: Callable[..., Tensor], *inputs: Tensor, dynamic: bool | None = None) -> float:
    """Of any gradient, relative to its largest entry."""
    torch._dynamo.reset()
    inputs = tuple(value.clone().requires_grad_() for value in inputs)
    wanted = torch.autograd.grad(call(*inputs), inputs)
    found = torch.autograd.grad(torch.compile(call, fullgraph=True, dynamic=dynamic)(*inputs), inputs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "batch", "patches", "dtype", "dynamic"),
    [
        (identity, 2, 37, torch.float32, None),
        *(
            (loss, batch, patches, dtype, dynamic)
            for loss in (identity, reference)
            for batch, patches, dtype, dynamic in (
                (1, 2, torch.float64, None),
                (1, 16, torch.float32, False),
                (3, 17, torch.float64, True),
                (1, 64, torch.float32, True),
                (2, 64, torch.float64, False),
            )
        ),
    ],
)
def test_stability_gradients_through_inductor(
    loss: Callable[..., Tensor], batch: int, patches: int, dtype: torch.dtype, dynamic: bool | None
) -> None:
    queries, keys = torch.randn(2, batch, patches, 7, dtype=dtype)
    error = inductor_errors(lambda q, k: loss(q, k, 3.0), queries, keys, dynamic=dynamic)
    assert error < (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.slow
@pytest.mark.xfail(
    reason="PyTorch 2.13: two saved tensors that share memory are both given to Inductor to overwrite, in place in the "
    "backward of a base and its diagonal; torch._functorch.config.donated_buffer = False avoids it",
    strict=False,
)
@pytest.mark.parametrize("call", [halves, by_expm1])
def test_pytorchs_own_gradient_of_a_diagonal(call: Callable[[Tensor], Tensor]) -> None:
    assert inductor_errors(call, torch.randn(17, 17, dtype=torch.float64)) < 1e-10


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    "context", ["autocast", pytest.param("no_grad", marks=pytest.mark.slow), "inference_mode", "checkpoint"]
)
@pytest.mark.parametrize("backend", [None, pytest.param("triton", marks=pytest.mark.slow)])
def test_the_compiled_network_in_a_mode(context: str, backend: str | None) -> None:
    """As eager in the same mode; under a mode that records nothing a gradient is had after it."""
    torch._dynamo.reset()
    dtype = torch.float32 if context == "autocast" else torch.float64
    step, image = Step(backend=backend).to(dtype).eval(), torch.rand(1, 3, 11, 14, dtype=dtype)

    def call(image: Tensor) -> Tensor:
        return checkpoint(step, image, use_reentrant=False) if context == "checkpoint" else step(image)

    whole = torch.compile(call, fullgraph=True, backend="aot_eager")
    modes: dict[str, Callable[[], Any]] = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "checkpoint": torch.enable_grad,
    }
    with modes[context]():
        found, wanted = whole(image), step(image)
    assert torch.equal(found, wanted)
    if context in ("no_grad", "inference_mode"):
        assert not found.requires_grad and found.is_inference() == (context == "inference_mode")
        found, wanted = whole(image), step(image)
    parameters = list(step.parameters())
    gradients, truth = (torch.autograd.grad(o, parameters) for o in (found, wanted))
    assert error(list(gradients), list(truth)) < (1e-5 if context == "autocast" else 1e-12)
    assert {gradient.dtype for gradient in gradients} == {dtype}


@pytest.mark.slow
def test_a_compiled_network_copied_and_saved() -> None:
    torch._dynamo.reset()
    image = torch.rand(1, 3, 17, 20)
    wrapped = torch.compile(Step(backend=None).eval(), backend="aot_eager")
    in_place = Step(backend=None).eval()
    in_place.compile(backend="aot_eager")
    for module in (wrapped, in_place):
        wanted, file = module(image), io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        for twin in (copy.deepcopy(module), torch.load(file, weights_only=False)):
            assert torch.equal(twin(image), wanted)
    plain = Step(backend=None).eval()
    plain.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in wrapped.state_dict().items()})
    assert torch.equal(plain(image), wrapped(image))
