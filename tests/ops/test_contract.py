"""The contract of an op, for every row of the table: values, gradients, compilation, memory, repeatability.

It holds for every backend beside the reference. Without a GPU the kernels run in Triton's interpreter on CPU tensors,
mended and bounded (``tests/harness``); every access outside a tensor fails, and fresh memory and masked-off lanes hold
NaN. The ``"torch"`` backend works in strips of very few rows here. ``"native"`` takes float32 alone, and no autocast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_map

from tests.harness.error_rule import LUCK, Error, Errors, assert_no_worse, errors_of
from tests.harness.tf32 import epsilon, products_as_on_a_card
from tests.ops.cases import OPS
from tests.ops.draws import Inputs, Sizes
from tests.ops.op import Op

pytestmark = pytest.mark.usefixtures("strict_kernels", "small_strips")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = [(op, backend) for op in OPS.values() for backend in op.backends]
VARIANTS = [(op, backend, name) for op, backend in PAIRS for name in op.sizes]
OTHER_DTYPES = [pair for pair in PAIRS if pair[1] != "native"]
INTERPRETED = DEVICE == "cpu"
LONG = ("efficient_attention", "guided_score_map", "mix_ffn")
KERNELS = [op for op in OPS.values() if "triton" in op.backends]


def _name(value: Op | str) -> str:
    return value if isinstance(value, str) else value.row


every_op = pytest.mark.parametrize(("op", "backend"), PAIRS, ids=_name)
# In the interpreter these take half a minute; their kernels are held to the reference in float64 in any case.
every_op_in_seconds = pytest.mark.parametrize(
    ("op", "backend"),
    [
        pytest.param(op, backend, marks=[pytest.mark.slow] * (INTERPRETED and backend == "triton" and op.name in LONG))
        for op, backend in PAIRS
    ],
    ids=_name,
)
every_op_in_other_dtypes = pytest.mark.parametrize(("op", "backend"), OTHER_DTYPES, ids=_name)
every_kernel = pytest.mark.parametrize("op", KERNELS, ids=_name)
on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="float64 runs on kernels in the interpreter alone")


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows a strip at the sizes drawn here, and one at the widest."""
    monkeypatch.setattr("msformer_fast.identities.strips.STRIP_BYTES", 3000)


def leaves(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: value.to(DEVICE, dtype).requires_grad_() for name, value in inputs.items()}


def gradient_weights(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Fixed random gradients for the outputs, the same for every backend."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]


def run(op: Op, inputs: Inputs, sizes: Sizes, backend: str) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outputs, and the gradient of every input."""
    with products_as_on_a_card(DEVICE):
        outputs = op.run(inputs, sizes, backend)
        wanted = outputs[: op.differentiable]
        gradients = torch.autograd.grad(wanted, list(inputs.values()), gradient_weights(wanted))
    return outputs, dict(zip(inputs, gradients, strict=True))


def whole_errors(op: Op, sizes: Sizes, backend: str) -> dict[str, float]:
    """Relative errors in float32, of output 0 and of every gradient, against the reference in float64."""
    drawn = {name: value.float() for name, value in op.draw(sizes).items()}
    found, gradients = run(op, leaves(drawn, torch.float32), sizes, backend)
    truth, true_gradients = run(op, leaves(drawn, torch.float64), sizes, "reference")
    pairs = {"output 0": (found[0], truth[0])}
    pairs |= {name: (gradients[name], true_gradients[name]) for name in gradients}
    return {name: Error.of(value, true).whole for name, (value, true) in pairs.items()}


def _assert_close(value: Tensor, truth: Tensor, name: str | None = None) -> None:
    """With PyTorch's own tolerances, taken of the largest value: terms cancel."""
    size = truth.detach().abs().max().clamp(min=1.0) if truth.numel() else 1.0
    torch.testing.assert_close(value / size, truth / size, msg=name)


def rounded_eps(truth: tuple[Tensor, ...], index: int, dtype: torch.dtype) -> float:
    """Epsilon of an output that is a small difference within output 0, which was rounded at its own size."""
    size = float(truth[0].detach().abs().max() / truth[index].detach().abs().max())
    return max(size, 1.0) * epsilon(dtype)


def _takes_long(op: Op, backend: str, variant: str, dtype: torch.dtype) -> bool:
    """In the interpreter: several draws of wide variants; 16 bits and the largest kernels, whose errors are those of
    PTX, executed for every op."""
    executed = dtype.itemsize == 2 or op.name in LONG
    return INTERPRETED and backend == "triton" and (executed or variant in op.slow)


every_error = pytest.mark.parametrize(
    ("dtype", "op", "backend", "variant"),
    [
        pytest.param(dtype, *row, marks=[pytest.mark.slow] * _takes_long(*row, dtype))
        for row in VARIANTS
        for dtype in (DTYPES if row[:2] in OTHER_DTYPES else DTYPES[:1])
    ],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else _name(value),
)


@every_error
def test_error_is_no_larger_than_pytorchs(op: Op, backend: str, variant: str, dtype: torch.dtype) -> None:
    sizes = op.sizes[variant]

    def draw() -> dict[str, Errors]:
        inputs = {name: value.to(dtype) for name, value in op.draw(sizes).items()}
        ours, our_gradients = run(op, leaves(inputs, dtype), sizes, backend)
        theirs, their_gradients = run(op, leaves(inputs, dtype), sizes, "reference")
        truth, true_gradients = run(op, leaves(inputs, torch.float64), sizes, "reference")
        for value, wanted in zip(ours, theirs, strict=True):
            assert value.dtype == wanted.dtype
        three = {
            f"output {i}": (value, theirs[i], truth[i]) for i, value in enumerate(ours) if value.is_floating_point()
        }
        for name in inputs:
            three[f"gradient of {name}"] = our_gradients[name], their_gradients[name], true_gradients[name]
        errors = {name: errors_of(name, *values) for name, values in three.items()}
        for index in op.of_rounded:
            mine, yours = errors[f"output {index}"]
            errors[f"output {index}"] = replace(mine, eps=rounded_eps(truth, index, dtype)), yours
        return errors

    assert_no_worse(draw, op.luck.get(variant, LUCK))


@on_cpu
@pytest.mark.parametrize(
    ("op", "backend", "variant"),
    [
        pytest.param(*row, marks=[pytest.mark.slow] * (row[1] == "triton" and row[2] in row[0].slow))
        for row in VARIANTS
        if row[:2] in OTHER_DTYPES
    ],
    ids=_name,
)
def test_float64_equals_the_reference(op: Op, backend: str, variant: str) -> None:
    sizes = op.sizes[variant]
    inputs = op.draw(sizes)
    ours, our_gradients = run(op, leaves(inputs, torch.float64), sizes, backend)
    truth, true_gradients = run(op, leaves(inputs, torch.float64), sizes, "reference")
    for index, (value, wanted) in enumerate(zip(ours, truth, strict=True)):
        if value.is_floating_point():
            rounding = rounded_eps(truth, index, torch.float64) if index in op.of_rounded else 0.0
            assert Error.of(value, wanted).whole < max(1e-11, 4 * rounding), f"output {index}"
        else:
            assert torch.equal(value, wanted), f"output {index}"
    for name, gradient in our_gradients.items():
        assert Error.of(gradient, true_gradients[name]).whole < 1e-11, name
        assert Error.of(gradient, true_gradients[name]).row < 1e-10, name


@on_cpu
@pytest.mark.parametrize("op", [op for op in KERNELS if "eps" in op.options], ids=_name)
def test_layer_norm_without_eps(op: Op) -> None:
    """Lanes of a tile that lie outside the map have no variance: with nothing added to it, no gradient sees them."""
    sizes = op.tiny | {"eps": 0.0}
    inputs = op.draw(sizes)
    ours, our_gradients = run(op, leaves(inputs, torch.float32), sizes, "triton")
    truth, true_gradients = run(op, leaves(inputs, torch.float64), sizes, "reference")
    for index in range(op.differentiable):
        assert Error.of(ours[index].double(), truth[index]).whole < 1e-5, f"output {index}"
    for name, gradient in our_gradients.items():
        assert Error.of(gradient.double(), true_gradients[name]).whole < 1e-4, name


@on_cpu
@every_op_in_seconds
def test_gradcheck(op: Op, backend: str) -> None:
    if (op, backend) not in OTHER_DTYPES:
        pytest.skip("float32 alone")
    inputs = leaves(op.draw(op.tiny), torch.float64)

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        return op.run(dict(zip(inputs, values, strict=True)), op.tiny, backend)[: op.differentiable]

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)


@every_op
def test_registration(op: Op, backend: str) -> None:
    """``opcheck`` of every registered op that the call and its backward make, on the arguments they make it with."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "msformer_fast":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    inputs = leaves(op.draw(op.tiny), torch.float32)
    with Recorder():
        run(op, inputs, op.tiny, backend)
    names = {func.name() for func, _ in calls}
    assert any(name.endswith("_backward") for name in names) != (backend in op.plain), names
    for func, args in calls:
        # Backwards and statistics have no derivative of their own.
        leaf = not func.name().endswith(("_backward", "_statistics"))

        def fresh(value: Any, leaf: bool = leaf) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.detach().clone().requires_grad_(leaf and value.is_floating_point())

        torch.library.opcheck(func, tree_map(fresh, args))


@every_op_in_seconds
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_equals_eager(op: Op, backend: str, compiler: str) -> None:
    """With ``fullgraph=True``; a second and third size compile at most once more, for the dynamic shapes."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)

    def call(inputs: Inputs) -> tuple[Tensor, ...]:
        return op.run(inputs, op.tiny, backend)

    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for sizes in (op.tiny, *op.other):
        inputs = leaves(op.draw(sizes), torch.float32)
        eager, compiled_out = call(inputs), compiled(inputs)
        for value, wanted in zip(compiled_out, eager, strict=True):
            torch.testing.assert_close(value, wanted)
        weights = gradient_weights(eager[: op.differentiable])
        wanted = torch.autograd.grad(eager[: op.differentiable], list(inputs.values()), weights)
        got = torch.autograd.grad(compiled_out[: op.differentiable], list(inputs.values()), weights)
        for value, truth in zip(got, wanted, strict=True):
            _assert_close(value, truth)
    assert counter.frame_count <= 2


@every_kernel
def test_a_new_size_compiles_no_kernel(op: Op) -> None:
    """Every launch of another size has the constexprs of the first: shapes and batch are never among them."""
    from tests.harness.launches import constexprs_of_launches

    with constexprs_of_launches() as first:
        run(op, leaves(op.draw(op.other[0]), torch.float32), op.other[0], "triton")
    with constexprs_of_launches() as second:
        run(op, leaves(op.draw(op.other[1]), torch.float32), op.other[1], "triton")
    assert first
    assert second <= first


@every_op
def test_backward_twice_and_inputs_untouched(op: Op, backend: str) -> None:
    inputs = leaves(op.draw(op.tiny), torch.float32)
    before = {name: value.detach().clone() for name, value in inputs.items()}
    outputs = op.run(inputs, op.tiny, backend)[: op.differentiable]
    weights = gradient_weights(outputs)
    first = torch.autograd.grad(outputs, list(inputs.values()), weights, retain_graph=True)
    second = torch.autograd.grad(outputs, list(inputs.values()), weights)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(inputs[name].detach(), value) for name, value in before.items())


def some_sizes(op: Op, backend: str) -> Sizes:
    """The first variant's; for kernels in the interpreter small ones, of several programs still."""
    return op.other[0] if INTERPRETED and backend == "triton" else next(iter(op.sizes.values()))


@every_op
def test_two_runs_are_bitwise_equal(op: Op, backend: str) -> None:
    sizes = some_sizes(op, backend)
    inputs = leaves(op.draw(sizes), torch.float32)
    outputs, gradients = run(op, inputs, sizes, backend)
    again, again_gradients = run(op, inputs, sizes, backend)
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))
    assert all(torch.equal(gradients[name], again_gradients[name]) for name in gradients)


@every_op
@pytest.mark.parametrize("layout", ["every second", "reversed axes", "offset"])
@pytest.mark.parametrize(
    "dtype", [DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])], ids=str
)
def test_strides_as_they_come(op: Op, backend: str, layout: str, dtype: torch.dtype) -> None:
    if dtype != torch.float32 and (op, backend) not in OTHER_DTYPES:
        pytest.skip("float32 alone")

    def strided(value: Tensor) -> Tensor:
        if layout == "every second":
            wide = torch.full([2 * size for size in value.shape], float("nan"), dtype=value.dtype, device=value.device)
            view = wide[tuple(slice(None, None, 2) for _ in value.shape)]
        elif layout == "reversed axes":
            view = torch.empty(value.shape[::-1], dtype=value.dtype, device=value.device).permute(
                list(range(value.ndim))[::-1]
            )
        else:
            view = torch.empty(value.numel() + 3, dtype=value.dtype, device=value.device)[3:].view(value.shape)
        return view.copy_(value)

    sizes = op.other[0]
    plain = leaves(op.draw(sizes), dtype)
    wanted, wanted_gradients = run(op, plain, sizes, backend)
    odd = {name: strided(value.detach()).requires_grad_() for name, value in plain.items()}
    outputs, gradients = run(op, odd, sizes, backend)
    for value, truth in zip(outputs[: op.differentiable], wanted, strict=False):
        _assert_close(value, truth)
    for name in gradients:
        _assert_close(gradients[name], wanted_gradients[name], name)


@every_op
@pytest.mark.parametrize("kind", ["expanded", "permuted"])
def test_gradients_that_arrive_expanded_or_permuted(op: Op, backend: str, kind: str) -> None:
    sizes = next((s for s in op.sizes.values() if s.get("reduction") == "none"), some_sizes(op, backend))
    inputs = leaves(op.draw(sizes), torch.float32)
    outputs = op.run(inputs, sizes, backend)[: op.differentiable]

    def odd(output: Tensor) -> Tensor:
        if kind == "expanded":
            return torch.full((), 0.7, dtype=output.dtype, device=output.device).expand(output.shape)
        return torch.randn(output.shape[::-1]).to(output).permute(list(range(output.ndim))[::-1])

    given = [odd(output) for output in outputs]
    got = torch.autograd.grad(outputs, list(inputs.values()), given, retain_graph=True)
    wanted = torch.autograd.grad(outputs, list(inputs.values()), [g.contiguous() for g in given])
    for value, truth in zip(got, wanted, strict=True):
        _assert_close(value, truth)


@every_op_in_other_dtypes
def test_autocast_casts_as_the_reference_does(op: Op, backend: str) -> None:
    """Dtypes always; the gradients' errors in most of nine draws, where bfloat16 leaves one draw to luck."""

    def worse() -> set[str]:
        inputs = leaves(op.draw(op.tiny), torch.float32)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            ours, our_gradients = run(op, inputs, op.tiny, backend)
            theirs, their_gradients = run(op, inputs, op.tiny, "reference")
        _, true_gradients = run(op, {name: v.double() for name, v in inputs.items()}, op.tiny, "reference")
        for value, wanted in zip(ours, theirs, strict=True):
            assert value.dtype == wanted.dtype
        found = set()
        for name, gradient in our_gradients.items():
            assert gradient.dtype == their_gradients[name].dtype == torch.float32
            mine, yours = errors_of(name, gradient, their_gradients[name], true_gradients[name])
            if not mine.whole <= 3 * yours.whole + 4 * torch.finfo(torch.bfloat16).eps:
                found.add(name)
        return found

    suspects = worse()
    if suspects:
        draws = [suspects, *(worse() for _ in range(8))]
        for name in suspects:
            assert sum(name in draw for draw in draws) <= 4, name


@every_kernel
def test_what_the_kernels_refuse(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    from msformer_fast import BackendError

    inputs = op.draw(op.tiny)
    integers = {name: value.to(torch.float8_e4m3fn) for name, value in inputs.items()}
    with pytest.raises(BackendError, match=rf"{op.name}: .*takes float32, bfloat16 and float16"):
        op.run(integers, op.tiny, "triton")
    if len(inputs) > 1:
        mixed = dict(inputs)
        mixed[next(iter(mixed))] = next(iter(mixed.values())).float()
        with pytest.raises(BackendError, match=rf"{op.name}: .*one dtype"):
            op.run(mixed, op.tiny, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match=rf"{op.name}: .*needs a CUDA or HIP device"):
        op.run({name: value.cpu() for name, value in inputs.items()}, op.tiny, "triton")
