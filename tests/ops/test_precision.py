"""How float32 products are computed: what the user asked for, what the card is good at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

import msformer_fast as mf
from msformer_fast import ops
from msformer_fast.benchmarks.case import Case, Subject
from msformer_fast.benchmarks.step import PRODUCTS, StepBench, _within
from msformer_fast.benchmarks.traffic.recorded import recorded_launches
from msformer_fast.benchmarks.training_step import training_step
from msformer_fast.errors import InputError
from msformer_fast.float32_products import asked_for, lower_allowed, parts_of_16_bits
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


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this PyTorch has one way to tell it")
def test_either_way_to_tell_pytorch_the_precision() -> None:
    """``fp32_precision`` of one backend alone, after which the older function has no answer."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    assert input_precision(torch.float32, "sm_90") == "tf32"
    assert not lower_allowed("cpu") and parts_of_16_bits() == 3

    x, weights = torch.rand(1, 5, 4, 8), [torch.rand(8, 8), None] * 4
    torch.testing.assert_close(
        ops.efficient_attention(x, *weights).y, ops.efficient_attention(x, *weights, backend="reference").y
    )

    with asked_for("high"):
        assert torch.get_float32_matmul_precision() == "high" and parts_of_16_bits() == 2
    assert torch.backends.cuda.matmul.fp32_precision == "tf32" and not lower_allowed("cpu")

    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert lower_allowed("cpu")


def test_asked_for_within_a_block_alone() -> None:
    with asked_for(None):
        assert not lower_allowed("cuda")
    torch.set_float32_matmul_precision("medium")
    with contextlib.suppress(ZeroDivisionError), asked_for("highest"):
        assert parts_of_16_bits() == 3
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "medium"


def test_segment_asks_for_a_precision() -> None:
    """While the loop runs; the record names it."""
    seen: list[str] = []
    image = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).numpy()
    small = {"size": None, "channels": 4, "clusters": 5, "depth": 1, "max_iterations": 2, "min_labels": 1}

    def note(_: mf.Iteration) -> None:
        seen.append(torch.get_float32_matmul_precision())

    made = mf.segment(image, **small, callback=note)
    assert seen == ["high", "high"] and made.settings["precision"] == "high"
    mf.segment(image, **small, precision="highest", callback=note)
    assert seen[2:] == ["highest", "highest"]
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(InputError, match="precision: got 'tf32'; accepted is one of None, 'highest', 'high'"):
        mf.segment(image, **small, precision="tf32")


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
