"""How ops are registered: the schemas that they have, and every kind of parameter in an op that is made up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import msformer_fast.ops  # noqa: F401, registers them
from msformer_fast import BackendError
from msformer_fast.ops.registration import contiguous_like, register

#: Types of arguments and results: whoever calls a registered op, or has saved a graph with it, relies on them.
SCHEMAS = (
    "batch_statistics(Tensor, str) -> (Tensor, Tensor)",
    "batch_statistics_of_two(Tensor, Tensor) -> (Tensor, Tensor)",
    "clustering_loss(Tensor, str, SymInt, str) -> (Tensor, Tensor, Tensor)",
    "clustering_loss_backward(Tensor, Tensor, Tensor, str, SymInt, str) -> Tensor",
    "cross_scale_attention(Tensor[], Tensor?, Tensor?, Tensor?, SymInt[], SymInt[], SymInt[], float, "
    "float, str, str, str) -> (Tensor, Tensor)",
    "cross_scale_attention_backward(Tensor, Tensor[], Tensor?, Tensor?, Tensor?, Tensor, Tensor, "
    "SymInt[], SymInt[], SymInt[], float, float, str, str, str) -> Tensor[]",
    "efficient_attention(Tensor, Tensor[], bool[], SymInt, bool, bool, float, Tensor[], float, "
    "ScalarType, bool, str) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "efficient_attention_backward(Tensor, Tensor?, Tensor, Tensor[], bool[], SymInt, bool, bool, float, "
    "Tensor[], float, ScalarType, Tensor[], str) -> (Tensor, Tensor[])",
    "guided_score_map(Tensor, Tensor, Tensor, Tensor, Tensor[], float, Tensor[], float, Tensor, Tensor?, "
    "Tensor, Tensor, SymInt, float) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor, Tensor, Tensor, Tensor, Tensor)",
    "guided_score_map_backward(Tensor?, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor[], "
    "float, Tensor[], float, Tensor, Tensor, Tensor, SymInt, Tensor[]) -> (Tensor, Tensor, Tensor, "
    "Tensor, Tensor[], Tensor[], Tensor, Tensor, Tensor, Tensor)",
    "linear_clustering_loss(Tensor, Tensor, Tensor?, str, str) -> (Tensor, Tensor, Tensor, Tensor)",
    "linear_clustering_loss_backward(Tensor, Tensor, Tensor, Tensor?, Tensor, Tensor, str, str) -> "
    "(Tensor, Tensor, Tensor)",
    "mix_ffn(Tensor, Tensor[], bool[], bool, bool, bool, bool, float, bool, bool, bool, str) -> (Tensor, "
    "Tensor, Tensor, Tensor, Tensor)",
    "mix_ffn_backward(Tensor, Tensor, Tensor[], bool[], bool, bool, bool, bool, float, Tensor, Tensor, "
    "Tensor, str) -> (Tensor, Tensor[])",
    "patch_embedding(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor?, SymInt, bool, float, str) "
    "-> (Tensor, Tensor)",
    "patch_embedding_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, SymInt, "
    "bool, str) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "score_map(Tensor, Tensor, Tensor, Tensor, Tensor[], float, Tensor[], float, str) -> Tensor",
    "score_map_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor[], float, Tensor[], float, str) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor[], Tensor[])",
    "stability_loss(Tensor, Tensor, float, str) -> (Tensor, Tensor, Tensor)",
    "stability_loss_backward(Tensor, Tensor, Tensor, Tensor, Tensor, float, str) -> (Tensor, Tensor)",
    "stability_loss_native(Tensor, Tensor, float, bool, str) -> (Tensor, Tensor)",
    "stability_loss_native_backward(Tensor, Tensor, Tensor, Tensor, float, str) -> (Tensor, Tensor)",
)


class Weights(NamedTuple):
    weight: Tensor
    bias: Tensor | None


class Options(NamedTuple):
    scale: float
    power: int


class Shift(NamedTuple):
    by: Tensor
    factor: float


class Kept(NamedTuple):
    scaled: Tensor
    total: Tensor


#: Gradients that the backward was called with.
SEEN: list[tuple[Tensor, Tensor | None]] = []


def forward(
    x: Tensor, weights: Weights, options: Options, shift: Shift | None, others: Sequence[Tensor], backend: str
) -> tuple[Tensor, ...]:
    scaled = options.scale * x * weights.weight
    if weights.bias is not None:
        scaled = scaled + weights.bias
    y = scaled**options.power
    if shift is not None:
        y = y + shift.by * shift.factor
    return y, scaled.sum() + sum(other.sum() for other in others), scaled


def backward(
    grad_y: Tensor,
    grad_total: Tensor | None,
    x: Tensor,
    weights: Weights,
    options: Options,
    shift: Shift | None,
    others: Sequence[Tensor],
    kept: Kept,
    backend: str,
) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
    SEEN.append((grad_y, grad_total))
    assert kept.total.shape == ()
    grad_total = grad_y.new_zeros(()) if grad_total is None else grad_total
    d_scaled = grad_y * options.power * kept.scaled ** (options.power - 1) + grad_total
    d_weight = (options.scale * d_scaled * x).sum(0)
    d_bias = None if weights.bias is None else d_scaled.sum(0)
    d_by = None if shift is None else grad_y.sum(0) * shift.factor
    d_others = [grad_total.expand(other.shape).clone() for other in others]
    return options.scale * d_scaled * weights.weight, [d_weight, d_bias, d_by], d_others


def shapes(x: Tensor, options: Options) -> tuple[Tensor, ...]:
    return contiguous_like(x), x.new_empty(()), contiguous_like(x)


@pytest.fixture(scope="module")
def toy() -> Iterator[Callable[..., Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msformer_fast.ops.registration.NAMESPACE", "msformer_fast_tests")
        yield register(
            "toy",
            forward=forward,
            outputs=("y", "total", "scaled"),
            shapes=shapes,
            backward=backward,
            gradients=["x", "weights shift", "others"],
            expression=forward,
        )


def draw(bias: bool = True, shift: bool = True) -> tuple[Any, ...]:
    def rand(*shape: int) -> Tensor:
        return (torch.rand(*shape, dtype=torch.float64) + 0.5).requires_grad_()

    weights, options = Weights(rand(4), rand(4) if bias else None), Options(0.7, 3)
    return rand(3, 4), weights, options, Shift(rand(4), 2.0) if shift else None, [rand(2), rand(5, 1)]


def tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    x, weights, _, shift, others = inputs
    return [value for value in (x, *weights, *(shift or ())[:1], *others) if value is not None]


def packed(inputs: tuple[Any, ...], backend: str) -> tuple[Any, ...]:
    """The arguments of the registered op."""
    x, weights, options, shift, others = inputs
    given = [value for value in weights if value is not None], [value is not None for value in weights]
    return x, *given, *options, *([[], 0.0] if shift is None else [[shift.by], shift.factor]), others, backend


every_call = pytest.mark.parametrize(
    ("bias", "shift"), [(True, True), (False, True), (True, False)], ids=["all", "no bias", "no shift"]
)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.partition("(")[0])
def test_a_schema_that_others_rely_on(schema: str) -> None:
    found = str(getattr(torch.ops.msformer_fast, schema.partition("(")[0]).default._schema)
    assert re.sub(r" [a-z_]+(?=[,)])", "", found) == f"msformer_fast::{schema}"


def test_named_tuples_are_plain_arguments(toy: Callable[..., Any]) -> None:
    assert str(torch.ops.msformer_fast_tests.toy.default._schema) == (
        "msformer_fast_tests::toy(Tensor x, Tensor[] weights, bool[] weights_present, float scale, SymInt power, "
        "Tensor[] shift, float shift_factor, Tensor[] others, str backend) -> (Tensor, Tensor, Tensor)"
    )
    assert str(torch.ops.msformer_fast_tests.toy_backward.default._schema) == (
        "msformer_fast_tests::toy_backward(Tensor grad_y, Tensor? grad_total, Tensor x, Tensor[] weights, "
        "bool[] weights_present, float scale, SymInt power, Tensor[] shift, float shift_factor, Tensor[] others, "
        "Tensor[] kept, str backend) -> (Tensor, Tensor[], Tensor[])"
    )


@every_call
def test_values_and_gradients(toy: Callable[..., Any], bias: bool, shift: bool) -> None:
    inputs = draw(bias, shift)
    ours, wanted = toy(*inputs, "torch"), forward(*inputs, "torch")
    assert all(torch.equal(value, truth) for value, truth in zip(ours, wanted, strict=True))
    assert not ours[2].requires_grad  # no grad_scaled: a constant

    def call(*_: Tensor) -> tuple[Tensor, ...]:
        return toy(*inputs, "torch")[:2]

    assert torch.autograd.gradcheck(call, tensors(inputs))


@every_call
def test_opcheck(toy: Callable[..., Any], bias: bool, shift: bool) -> None:
    inputs = draw(bias, shift)
    torch.library.opcheck(torch.ops.msformer_fast_tests.toy.default, packed(inputs, "torch"))
    x, weights, present, scale, power, by, factor, others, backend = packed(inputs, "torch")
    y, total, scaled = (value.detach() for value in toy(*inputs, "torch"))
    given = x, weights, present, scale, power, by, factor, others, [scaled, total], backend
    plain = torch.utils._pytree.tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, (y, total, *given))
    torch.library.opcheck(torch.ops.msformer_fast_tests.toy_backward.default, plain)


@every_call
def test_gradients_differentiated_again(toy: Callable[..., Any], bias: bool, shift: bool) -> None:
    """By the expression; the kernels refuse, in one sentence, and only where that is asked for."""
    inputs = draw(bias, shift)

    def call(*_: Tensor) -> tuple[Tensor, ...]:
        return toy(*inputs, "torch")[:2]

    assert torch.autograd.gradgradcheck(call, tensors(inputs))
    y, _, _ = toy(*inputs, "triton")
    first = torch.autograd.grad(y.sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(BackendError, match=r'^toy: the gradient of backend="triton" cannot be differentiated again'):
        first.sum().backward()


class Noticing(TorchDispatchMode):
    """Counts calls of the toy and of its backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "msformer_fast_tests":
            self.calls.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


def gradients(toy: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Tensor]:
    y, total, scaled = toy(*inputs, "torch")
    return [y, total, scaled, *torch.autograd.grad(y.sum() + total, tensors(inputs))]


@every_call
def test_eager_calls_are_the_registered_op(toy: Callable[..., Any], bias: bool, shift: bool) -> None:
    """With the same bits; the op itself is called where a mode or a profiler looks."""
    inputs = draw(bias, shift)
    alone = gradients(toy, inputs)
    with Noticing() as mode:
        watched = gradients(toy, inputs)
    assert mode.calls == ["toy", "toy_backward"]
    assert all(torch.equal(value, truth) for value, truth in zip(alone, watched, strict=True))

    with torch.profiler.profile() as profile:
        gradients(toy, inputs)
    names = {event.key for event in profile.key_averages()}
    assert {"msformer_fast_tests::toy", "msformer_fast_tests::toy_backward"} <= names


def test_eager_calls_do_without_the_dispatcher(toy: Callable[..., Any]) -> None:
    """Also where nothing is differentiated; subclasses of tensors, and tensors without data, take the registered op."""
    inputs = draw()
    y = toy(*inputs, "torch")[0]
    assert type(y.grad_fn).__name__ == "msformer_fast_tests_toyBackward"
    with torch.no_grad():
        assert torch.equal(toy(*inputs, "torch")[0], y) and toy(*inputs, "torch")[0].grad_fn is None

    class Marked(Tensor):
        seen: ClassVar[list[Any]] = []

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    marked = inputs[0].detach().as_subclass(Marked)
    toy(marked, *inputs[1:], "torch")
    assert torch.ops.msformer_fast_tests.toy.default in Marked.seen

    without_data = torch.empty(3, 4, device="meta")
    found = toy(without_data, Weights(torch.empty(4, device="meta"), None), Options(1.0, 2), None, [], "torch")
    assert found[0].shape == (3, 4) and found[0].is_meta


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_that_did_not_arrive(toy: Callable[..., Any], backend: str) -> None:
    """Zeros, or None where the backward takes that; the backward does not run where none arrived."""
    inputs = draw()
    SEEN.clear()
    y, total, _ = toy(*inputs, backend)
    torch.autograd.grad(y.sum(), tensors(inputs), retain_graph=True)
    torch.autograd.grad(total, tensors(inputs))
    (_, no_total), (zeros, given) = SEEN
    assert no_total is None
    assert given is not None
    assert torch.equal(zeros, torch.zeros_like(y))

    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    Stop.apply(toy(*inputs, backend)[0]).sum().backward()
    assert len(SEEN) == 2
    assert all(value.grad is None for value in tensors(inputs))


def test_tensors_that_need_no_gradient(toy: Callable[..., Any]) -> None:
    inputs = draw()
    inputs[1].weight.requires_grad_(False)
    inputs[4][1].requires_grad_(False)
    toy(*inputs, "torch")[1].backward()
    assert inputs[1].weight.grad is None
    assert inputs[4][1].grad is None
    assert torch.equal(inputs[4][0].grad, torch.ones(2, dtype=torch.float64))


def copied(x: Tensor) -> Tensor:
    return x.clone()


def misnamed(grad_y: Tensor, z: Tensor) -> Tensor:
    return z


def test_a_backward_of_unknown_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msformer_fast.ops.registration.NAMESPACE", "msformer_fast_tests")
    with pytest.raises(ValueError, match=r"misnamed takes what no forward has: z$"):
        register(
            "misnamed",
            forward=copied,
            outputs=["y"],
            shapes=lambda x: contiguous_like(x),
            backward=misnamed,
            gradients=["x"],
        )
