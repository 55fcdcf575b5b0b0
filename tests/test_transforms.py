"""``torch.func``, forward-mode AD, checkpointing, inference, autocast and copies: of every op, module and the network.

Where a registered op has no rule, the default backend takes an expression that has one, and the kernels refuse."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vjp, vmap
from torch.utils.checkpoint import checkpoint

import msformer_fast as mf
from msformer_fast import BackendError
from tests.harness.compile_table import CASES, Step, doubles, error, outputs_and_gradients, strict
from tests.ops.cases import OPS
from tests.ops.op import Op

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="in float64, on the CPU")

every_op = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.row)
every_module = pytest.mark.parametrize("name", CASES)
QUICK_KERNELS = ("ClusteringLoss", "MixFFN", "OverlapEmbedding", "ScoreMap", "StabilityLoss")
every_pair = pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, marks=[pytest.mark.slow] * (backend == "triton" and name not in QUICK_KERNELS))
        for name in CASES
        for backend in ("torch", "triton")
    ],
)

Values = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with strict():
        yield


def drawn(op: Op) -> tuple[Values, Callable[[str | None], Callable[..., Values]]]:
    """Tiny inputs in float64, and the op of a backend as a function of them, its differentiable outputs alone."""
    inputs = op.draw(op.tiny)

    def of(backend: str | None) -> Callable[..., Values]:
        return lambda *v: op.run(dict(zip(inputs, v, strict=True)), op.tiny, backend)[: op.differentiable]

    return tuple(inputs.values()), of


def total(call: Callable[..., Values]) -> Callable[..., Tensor]:
    return lambda *v: sum(o.sin().sum() for o in call(*v))


def assert_same(ours: Any, theirs: Any) -> None:
    assert error(list(ours), list(theirs)) < 1e-9


@every_op
@pytest.mark.parametrize("backend", [None, "torch"])
def test_transforms_of_an_op(op: Op, backend: str | None) -> None:
    """grad, vjp, jvp, vmap and vmap of grad against the reference without them."""
    if backend is not None and backend not in op.backends:
        pytest.skip("not built")
    values, of = drawn(op)
    call, truth = of(backend), of("reference")
    leaves = [v.clone().requires_grad_() for v in values]
    wanted = torch.autograd.grad(total(truth)(*leaves), leaves)
    places = tuple(range(len(values)))
    assert_same(grad(total(call), places)(*values), wanted)
    outputs, pull = vjp(call, *values)
    assert_same(pull(tuple(o.cos() for o in outputs)), wanted)
    tangents = tuple(torch.randn_like(v) for v in values)
    slope = sum((g * t).sum() for g, t in zip(wanted, tangents, strict=True))
    assert_same([jvp(total(call), values, tangents)[1]], [slope])

    batched = tuple(torch.stack([v, 1.5 * v]) for v in values)
    both = [truth(*(v[index] for v in batched)) for index in (0, 1)]
    assert_same(vmap(call)(*batched), [torch.stack(pair) for pair in zip(*both, strict=True)])
    found = vmap(grad(total(call), places))(*batched)
    assert_same([g[0] for g in found], wanted)


@every_op
@pytest.mark.parametrize("backend", [None, "torch"])
def test_forward_mode(op: Op, backend: str | None) -> None:
    """A tangent comes out, and the right one: a registered op would drop it."""
    if backend is not None and backend not in op.backends:
        pytest.skip("not built")
    values, of = drawn(op)
    leaves, tangents = [v.clone().requires_grad_() for v in values], [torch.randn_like(v) for v in values]
    wanted = torch.autograd.grad(total(of("reference"))(*leaves), leaves)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(v, t) for v, t in zip(values, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(total(of(backend))(*duals)).tangent
    assert tangent is not None
    assert_same([tangent], [sum((g * t).sum() for g, t in zip(wanted, tangents, strict=True))])


@every_op
def test_kernels_refuse_transforms(op: Op) -> None:
    """In a sentence that names the op, so that the default falls back."""
    if "triton" not in op.backends:
        pytest.skip("no kernels")
    values, of = drawn(op)
    call = of("triton")
    sentence = rf'{op.name}: backend="triton" cannot run inside torch.func .*; use backend="torch" or "reference"'
    batched = tuple(torch.stack([v, v]) for v in values)
    transformed: tuple[Callable[[], Any], ...] = (
        lambda: grad(total(call))(*values),
        lambda: vjp(call, *values),
        lambda: jvp(call, values, values),
        lambda: vmap(call)(*batched),
    )
    for run in transformed:
        with pytest.raises(BackendError, match=sentence):
            run()
    with forward_ad.dual_level(), pytest.raises(BackendError, match=sentence):
        call(*(forward_ad.make_dual(v, v) for v in values))


@every_op
def test_kernels_refuse_a_second_derivative(op: Op) -> None:
    """Where it is asked for, not where the first one only could be differentiated."""
    if "triton" not in op.backends:
        pytest.skip("no kernels")
    values, of = drawn(op)
    leaves = [v.clone().requires_grad_() for v in values]
    first = torch.autograd.grad(total(of("triton"))(*leaves), leaves, create_graph=True)
    leaf = [v.clone().requires_grad_() for v in values]
    assert_same(first, torch.autograd.grad(total(of("reference"))(*leaf), leaf))
    with pytest.raises(BackendError, match=rf'{op.name}: the gradient of backend="triton" cannot be differentiated'):
        torch.autograd.grad(sum(g.sum() for g in first), leaves, allow_unused=True)


@pytest.mark.parametrize("backend", [None, "triton"])
def test_transforms_inside_compiled_code(backend: str | None) -> None:
    queries, keys = torch.randn(2, 2, 5, 3)
    truth = grad(lambda q: mf.ops.stability_loss(q, keys, backend="reference"))(queries)

    def loss(q: Tensor) -> Tensor:
        return mf.ops.stability_loss(q, keys, backend=backend)

    def slope(q: Tensor) -> Tensor:
        return jvp(loss, (q,), (queries,))[1]

    torch._dynamo.reset()
    whole = [torch.compile(call, fullgraph=True, backend="aot_eager") for call in (grad(loss), slope)]
    if backend == "triton":
        for call in whole:
            with pytest.raises(Exception, match="cannot run inside torch.func"):
                call(queries)
        return
    torch.testing.assert_close(whole[0](queries), truth)
    torch.testing.assert_close(whole[1](queries), (truth * queries).sum(), check_dtype=False)


@pytest.mark.parametrize(
    ("memory", "cross_scale"),
    [("fast", "none"), *(pytest.param(*row, marks=pytest.mark.slow) for row in (("lean", "none"), ("fast", "window")))],
)
def test_functional_network(memory: str, cross_scale: str) -> None:
    """Gradients for a dictionary of parameters in training, its buffers an argument too; an ensemble and a batch of
    images by vmap in evaluation."""
    options = {"memory": memory, "cross_scale": cross_scale, "backend": None}
    step, image = Step(**options).double(), torch.rand(1, 3, 11, 14, dtype=torch.float64)
    parameters, buffers = dict(step.named_parameters()), {name: b.clone() for name, b in step.named_buffers()}
    found = grad(lambda p, b, x: functional_call(step, (p, b), (x,)))(parameters, buffers, image)
    wanted = torch.autograd.grad(step(image), list(parameters.values()))
    assert_same(found.values(), wanted)

    nets = [mf.MSFormer(3, 4, 6, depth=1, patch=8, seed=s, memory=memory).double().eval() for s in range(2)]
    state = stack_module_state(nets)
    logits = vmap(lambda p, b: functional_call(nets[0], (p, b), (image,)).logits)(*state)
    assert_same(logits, [net(image).logits for net in nets])
    images = torch.rand(3, 1, 3, 11, 14, dtype=torch.float64)
    assert_same(vmap(step.eval())(images), [step(each) for each in images])


def test_the_networks_kernels_refuse_transforms() -> None:
    step = Step(backend="triton").eval()
    with pytest.raises(BackendError, match='backend="triton" cannot run inside torch.func'):
        vmap(step)(torch.rand(2, 1, 3, 11, 14))


def recorded_alike(name: str, backend: str) -> bool:
    """Whether what runs does not ask for a graph: PyTorch's fused attention on the CPU takes another path without."""
    return backend == "triton" or not ("Swin" in name or "ross" in name)


def assert_equal(ours: list[Tensor | None], theirs: list[Tensor | None], exact: bool) -> None:
    """To the bit, or up to rounding."""
    if not exact:
        assert error(ours, theirs) < 1e-12
        return
    for mine, truth in zip(ours, theirs, strict=True):
        assert (mine is truth is None) or torch.equal(mine, truth)


@every_pair
def test_checkpointing_changes_no_bit(name: str, backend: str) -> None:
    """Activation checkpointing of both kinds, outputs and every gradient. The reentrant kind first records no graph."""
    case = CASES[name]
    module, inputs = case.build(backend).double().eval(), doubles(case.draw(*case.sizes[0]))
    wanted, gradients = outputs_and_gradients(module, module, inputs)
    plain = outputs_and_gradients(lambda *given: checkpoint(module, *given, use_reentrant=False), module, inputs)
    for (outputs, found), exact in ((plain, True), (_reentrant(module, inputs), recorded_alike(name, backend))):
        assert_equal([*outputs, *found], [*wanted, *gradients], exact)


def _reentrant(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor | None]]:
    """As ``outputs_and_gradients``, with ``backward``: reentrant checkpoints know no ``torch.autograd.grad``."""
    made = checkpoint(module, *inputs, use_reentrant=True)
    outputs = [made] if isinstance(made, Tensor) else list(made)
    wanted = [v for v in (*inputs, *module.parameters()) if isinstance(v, Tensor) and v.requires_grad]
    for value in wanted:
        value.grad = None
    weighted = [
        (o * torch.linspace(-1, 2, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in outputs if o.requires_grad
    ]
    sum(weighted).backward()
    return [o.detach() for o in outputs], [value.grad for value in wanted]


@every_pair
def test_inference_and_no_grad(name: str, backend: str) -> None:
    """The same numbers; what was made records nothing, and PyTorch's own error says so to a later backward."""
    case = CASES[name]
    module, inputs = case.build(backend).double().eval(), doubles(case.draw(*case.sizes[0]))

    def first(made: Any) -> Tensor:
        return made if isinstance(made, Tensor) else made[0]

    wanted = first(module(*inputs))
    with torch.no_grad():
        assert_equal([first(module(*inputs))], [wanted], recorded_alike(name, backend))
    with torch.inference_mode():
        found = first(module(*inputs))
    assert_equal([found], [wanted], recorded_alike(name, backend))
    assert found.is_inference()
    with pytest.raises(RuntimeError, match="does not require grad"):
        found.sum().backward()
    assert wanted.requires_grad
    wanted.sum().backward()


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        module = mf.nn.MixFFN(4)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        module(torch.randn(1, 5, 6, 4, requires_grad=True))


@every_module
@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.slow)])
def test_autocast(name: str, backend: str) -> None:
    """Dtypes of the outputs as the reference's; gradients in the parameters' dtype, finite."""
    case = CASES[name]
    module, inputs = case.build(backend).float().eval(), case.draw(*case.sizes[0])
    plain = case.build("reference").float().eval()
    plain.load_state_dict(module.state_dict())

    def outputs(module: torch.nn.Module) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            made = module(*inputs)
        return [made] if isinstance(made, Tensor) else list(made)

    ours, theirs = outputs(module), outputs(plain)
    assert [o.dtype for o in ours] == [o.dtype for o in theirs]
    for mine, truth in zip(ours, theirs, strict=True):
        if mine.is_floating_point():
            scale = float(truth.abs().max())
            assert float((mine.double() - truth.double()).abs().max()) < 0.2 * scale
    parameters = list(module.parameters())
    if not parameters:
        return
    loss = sum(o.float().sin().sum() for o in ours if o.requires_grad)
    for value, parameter in zip(torch.autograd.grad(loss, parameters, allow_unused=True), parameters, strict=True):
        assert value is None or (value.dtype == parameter.dtype == torch.float32 and value.isfinite().all())


@every_module
def test_copied_and_pickled(name: str) -> None:
    case = CASES[name]
    module, inputs = case.build("torch").float().eval(), case.draw(*case.sizes[0])
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    wanted = module(*inputs)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        torch.testing.assert_close(twin(*inputs), wanted, rtol=0, atol=0)
