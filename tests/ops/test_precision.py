"""How float32 products are computed: what the user asked for, what the card is good at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

from msformer_fast import ops
from msformer_fast.benchmarks.case import Case, Subject
from msformer_fast.benchmarks.step import PRODUCTS, StepBench, _within
from msformer_fast.benchmarks.traffic.recorded import recorded_launches
from msformer_fast.benchmarks.training_step import training_step
from msformer_fast.errors import InputError
from msformer_fast.ops.precision import input_precision


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    ops.use_ieee_products(False)


@pytest.mark.parametrize(
    ("dtype", "said", "target", "precision"),
    [
        (torch.float32, "highest", "sm_80", "tf32x3"),
        (torch.float32, "highest", "sm_90", "tf32x3"),
        (torch.float32, "highest", "sm_100", "tf32x3"),
        # Their tensor cores multiply tf32 no faster than other units multiply float32.
        (torch.float32, "highest", "sm_89", "ieee"),
        (torch.float32, "highest", "gfx942", "ieee"),
        (torch.float32, "highest", None, "ieee"),
        (torch.float32, "high", "sm_90", "tf32"),
        (torch.float32, "medium", None, "tf32"),
        (torch.bfloat16, "highest", "sm_90", "ieee"),
        (torch.float64, "high", None, "ieee"),
    ],
)
def test_what_is_asked_of_triton(dtype: torch.dtype, said: str, target: str | None, precision: str) -> None:
    torch.set_float32_matmul_precision(said)
    assert input_precision(dtype, target) == precision
    ops.use_ieee_products()
    assert input_precision(dtype, target) == precision.replace("tf32x3", "ieee")


def test_neither_yes_nor_no() -> None:
    with pytest.raises(InputError, match="use_ieee_products: enabled must be True or False; got 'tf32'"):
        ops.use_ieee_products("tf32")  # type: ignore[arg-type]


def _of_a_step(target: str) -> dict[str, set[str]]:
    """Precisions that the kernels of a step are launched with."""
    with recorded_launches(132, target) as launches:
        training_step("triton", 65, 20, 12, depth=1, patch=16)()
    found: dict[str, set[str]] = {}
    for launch in launches:
        if "PREC" in launch.arguments:
            found.setdefault(launch.function.fn.__name__, set()).add(launch.arguments["PREC"])
    return found


def test_kernels_of_a_step() -> None:
    """On tensor cores all that gain by it; everywhere else, or if so asked, none."""
    fused = {"token_gradients_kernel", "stability_kernel", "gradient_kernel"}
    found = _of_a_step("sm_90")
    assert {name for name, given in found.items() if given == {"ieee"}} == fused
    assert all(given == {"tf32x3"} for name, given in found.items() if name not in fused)
    assert len(found) > 10

    assert set.union(*_of_a_step("sm_89").values()) == {"ieee"}
    ops.use_ieee_products()
    assert set.union(*_of_a_step("sm_90").values()) == {"ieee"}


def test_a_benchmark_of_both() -> None:
    """The provider "triton-ieee" asks for fused multiply-adds while it runs, and only then."""
    seen = []

    def look() -> dict[str, torch.Tensor]:
        seen.append(input_precision(torch.float32, "sm_90"))
        return {}

    subject = _within(PRODUCTS["triton-ieee"], Subject({"step": look}, {"step": look}, look))
    for call in (subject.parts["step"], subject.before["step"], subject.results):
        call()
    assert seen == ["ieee"] * 3
    assert input_precision(torch.float32, "sm_90") == "tf32x3"


@pytest.mark.parametrize(("target", "refused"), [("sm_90", False), ("sm_89", True), ("gfx942", True)])
def test_it_is_timed_where_it_makes_a_difference(target: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msformer_fast.kernels.launch.target_of", lambda device: target)
    monkeypatch.setattr("msformer_fast.benchmarks.step.refuse_device", lambda case, provider: None)
    case = Case.of("step", {"side": 65, "channels": 20, "depth": 1, "patch": 16}, "float32", "cuda")
    assert StepBench().why_not(case, "triton") is None
    said = StepBench().why_not(case, "triton-ieee")
    assert ("fused multiply-adds here in any case" in said) if refused and said else said is None and not refused
