"""What the contract asks of the ``"torch"`` backend alone: second derivatives, strips of any size, other devices."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from msformer_fast import BackendError
from tests.harness.error_rule import Error
from tests.ops.cases import OPS
from tests.ops.draws import Inputs
from tests.ops.op import Op
from tests.ops.test_contract import leaves, on_cpu, run, small_strips  # noqa: F401, the last is a fixture

pytestmark = pytest.mark.usefixtures("strict_kernels", "small_strips")

IDENTITIES = [op for op in OPS.values() if "torch" in op.backends]
IN_STRIPS = [op for op in IDENTITIES if "torch" not in op.plain]
every_body_in_strips = pytest.mark.parametrize("op", IN_STRIPS, ids=lambda op: op.row)
every_identity = pytest.mark.parametrize("op", IDENTITIES, ids=lambda op: op.row)


@on_cpu
@every_identity
def test_the_identities_gradients_can_be_differentiated_again(op: Op) -> None:
    inputs = leaves(op.draw(op.tiny), torch.float64)

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        return op.run(dict(zip(inputs, values, strict=True)), op.tiny, "torch")[: op.differentiable]

    assert torch.autograd.gradgradcheck(call, tuple(inputs.values()), fast_mode=True, atol=1e-4)


@on_cpu
@every_identity
def test_functional_gradients(op: Op) -> None:
    """``torch.func``: gradients, and directional derivatives forwards."""
    inputs = {name: value.detach() for name, value in leaves(op.draw(op.tiny), torch.float64).items()}

    def total(given: Inputs, backend: str) -> Tensor:
        return sum(output.square().sum() for output in op.run(given, op.tiny, backend)[: op.differentiable])

    ours, wanted = (torch.func.grad(total)(inputs, backend) for backend in ("torch", "reference"))
    slopes = {name: torch.randn_like(value) for name, value in inputs.items()}
    _, slope = torch.func.jvp(lambda given: total(given, "torch"), (inputs,), (slopes,))
    for name in inputs:
        torch.testing.assert_close(ours[name], wanted[name])
    torch.testing.assert_close(slope, sum((wanted[name] * slopes[name]).sum() for name in inputs))


@on_cpu
@every_body_in_strips
@pytest.mark.parametrize("size", [1, 10**9])
def test_any_strip(op: Op, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a strip, and the whole map in one."""
    monkeypatch.setattr("msformer_fast.identities.strips.STRIP_BYTES", size)
    for sizes in op.sizes.values():
        inputs = leaves(op.draw(sizes), torch.float64)
        (ours, our_gradients), (truth, true_gradients) = (run(op, inputs, sizes, b) for b in ("torch", "reference"))
        for value, wanted in zip(ours[: op.differentiable], truth, strict=False):
            assert Error.of(value, wanted).whole < 1e-11
        for name, gradient in our_gradients.items():
            assert Error.of(gradient, true_gradients[name]).whole < 1e-11, name


@every_identity
def test_what_the_identities_refuse(op: Op) -> None:
    inputs = op.draw(op.tiny)
    with pytest.raises(BackendError, match=rf'{op.name}: .*"torch" takes float64, float32, bfloat16 and float16'):
        op.run({name: value.to(torch.float8_e4m3fn) for name, value in inputs.items()}, op.tiny, "torch")
    if len(inputs) > 1:
        first = next(iter(inputs))
        with pytest.raises(BackendError, match=rf"{op.name}: .*one dtype"):
            op.run(inputs | {first: inputs[first].float()}, op.tiny, "torch")


@every_body_in_strips
def test_away_from_the_cpu_it_is_an_expression(op: Op) -> None:
    """What runs on other devices: the same values, by PyTorch's own autograd, and nothing kept where lean."""
    variants = [op.tiny] + ([op.tiny | {"memory": "lean"}] if "memory" in op.options else [])
    for sizes in variants:
        inputs = leaves(op.draw(sizes), torch.float64)
        with mock.patch(f"msformer_fast.ops.{op.name}.runs_in_strips", return_value=False):
            ours, our_gradients = run(op, inputs, sizes, "torch")
        truth, true_gradients = run(op, inputs, sizes, "reference")
        for value, wanted in zip(ours[: op.differentiable], truth, strict=False):
            torch.testing.assert_close(value, wanted)
        for name, gradient in our_gradients.items():
            torch.testing.assert_close(gradient, true_gradients[name], msg=name)
