"""What is particular to the weighted losses: the numbers for the host, gradients that do not arrive, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from msformer_fast import InputError, consistency_loss, ops
from msformer_fast.ops.weighted_losses import WeightedLosses
from tests.ops.cases import OPS

BACKENDS = ("triton", "native", "torch", "reference")


def inputs_of(batch: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    drawn = OPS["weighted_losses"].draw({"B": batch, "Ck": 5, "Cv": 7})
    given: dict[str, Any] = {name: value.to(dtype).requires_grad_() for name, value in drawn.items()}
    return given | {"label_count": torch.arange(batch, dtype=torch.int32) + 3}


def run(given: dict[str, Any], backend: str, **options: Any) -> WeightedLosses:
    if backend == "triton":
        pytest.importorskip("triton")
    return ops.weighted_losses(**given, backend=backend, **options)


@pytest.mark.usefixtures("strict_kernels")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_losses_and_the_numbers_for_the_host(backend: str) -> None:
    given = inputs_of(batch=3)
    made = run(given, backend, weights=(2.0, 3.0, 5.0))
    consistency = consistency_loss(given["context_a"], given["context_b"])
    torch.testing.assert_close(made.clustering, 2 * given["clustering_loss"])
    torch.testing.assert_close(made.consistency, 3 * consistency)
    torch.testing.assert_close(made.stability, 5 * given["stability_loss"])
    assert made.numbers.dtype == torch.float64 and not made.numbers.requires_grad
    assert made.numbers.tolist() == [*(loss.item() for loss in made[:4]), 5.0]


@pytest.mark.usefixtures("strict_kernels")
@pytest.mark.parametrize("field", WeightedLosses._fields[:4])
def test_the_gradient_of_one_of_them_alone(field: str) -> None:
    """The others' did not arrive: nothing is added for them."""
    found = []
    for backend in ("triton", "reference"):
        torch.manual_seed(1)
        given = inputs_of(dtype=torch.float64)
        getattr(run(given, backend), field).backward()
        zero = torch.zeros(())
        leaves = [value for name, value in given.items() if name != "label_count"]
        found.append([zero.expand_as(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, check_dtype=False)


@pytest.mark.usefixtures("strict_kernels")
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_no_image(backend: str) -> None:
    """As the mean over nothing: NaN, and no label."""
    made = run(inputs_of(batch=0), backend)
    assert made.consistency.isnan() and made.total.isnan() and made.numbers[4] == 0


@pytest.mark.usefixtures("strict_kernels")
@pytest.mark.parametrize("backend", BACKENDS)
def test_contexts_of_16_bits_beside_losses_of_32(backend: str) -> None:
    """As a network in half precision makes them: each gradient in the dtype of its own tensor."""
    given = inputs_of(dtype=torch.bfloat16)
    for name in ("clustering_loss", "stability_loss"):
        given[name] = given[name].detach().float().requires_grad_()
    made = run(given, backend)
    assert {loss.dtype for loss in made[:4]} == {torch.float32}
    made.total.backward()
    for name, value in given.items():
        assert name == "label_count" or value.grad.dtype == value.dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_b": torch.zeros(2, 5, 6)}, r"context_b must have shape \(B, Ck, Cv\) with Cv = 7"),
        ({"clustering_loss": torch.zeros(2)}, "clustering_loss must have shape"),
        ({"label_count": torch.ones(3, dtype=torch.int32)}, r"label_count must have shape \(B\) with B = 2"),
        ({"label_count": torch.ones(2)}, "be int32, got .* of torch.float32"),
        ({"weights": (1.0, -1.0, 1.0)}, "consistency must be a finite number"),
        ({"eps": -1.0}, "eps must be 0 or more"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.weighted_losses(**inputs_of() | change)
