"""Special cases of efficient attention, and of its body in strips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from msformer_fast import ops


def weights(c: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Weight and bias of keys, queries, values and reprojection, weight and bias of the norm."""
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in [(c, c), (c,)] * 4 + [(c,), (c,)]]


def test_the_keys_bias_has_a_gradient_of_exactly_zero() -> None:
    """The softmax over positions ignores it: no rounding noise that an optimiser would collect."""
    given = weights(6)
    y, context = ops.efficient_attention(torch.randn(2, 4, 5, 6, dtype=torch.float64), *given, backend="torch")
    (y.square().sum() + context.square().sum()).backward()
    assert torch.equal(given[1].grad, torch.zeros(6, dtype=torch.float64))
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for i, w in enumerate(given) if i != 1)


@pytest.mark.parametrize("used", [0, 1], ids=["result", "context"])
def test_one_of_the_two_outputs_is_enough(used: int) -> None:
    x, given = torch.randn(1, 4, 5, 6, dtype=torch.float64, requires_grad=True), weights(6)
    gradients = []
    for backend in ("torch", "reference"):
        output = ops.efficient_attention(x, *given, backend=backend)[used]
        gradients.append(torch.autograd.grad(output.square().sum(), [x, given[0], given[4]]))
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_large_keys_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(1e4) does not exist; keys that grow from strip to strip scale what was summed before."""
    monkeypatch.setattr("msformer_fast.identities.strips.STRIP_BYTES", 1)
    given = weights(3)
    x = torch.linspace(0, 1, 30, dtype=torch.float64).view(1, 10, 1, 3) * 1e4
    for flipped in (x, x.flip(1)):
        results = [ops.efficient_attention(flipped, *given[:8], norm=False, backend=b) for b in ("torch", "reference")]
        for ours, wanted in zip(*results, strict=True):
            assert ours.isfinite().all()
            torch.testing.assert_close(ours, wanted)
