"""The contract of the ops, by kernels as they are compiled: values, strides, odd gradients, repeatability, races.

Every launch runs in two orders of warps and blocks, whose results must be the same bits, and no access may be out of
place (see :mod:`tests.harness.ptx`). Each op has a process of its own. With every change: each op once, forward and
backward, for one card. All variants, layouts, dtypes and cards: ``python -m pytest tests/executed --run-slow``.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from tests.executed.child import needs_compiler, run_as_ptx
from tests.ops.cases import OPS

pytestmark = [pytest.mark.ptx, needs_compiler]

CARDS = ("80", "86", "89", "90")
CONTRACT = "tests/ops/test_contract.py"
ERRORS = f"{CONTRACT}::test_error_is_no_larger_than_pytorchs"
#: The rest of what is executed; other tests look into the interpreter, or are about float64 and torch.compile.
OTHERS = tuple(
    f"{CONTRACT}::test_{name}"
    for name in (
        "strides_as_they_come",
        "gradients_that_arrive_expanded_or_permuted",
        "backward_twice_and_inputs_untouched",
        "two_runs_are_bitwise_equal",
        "registration",
    )
)

KERNELS = [name for name, op in OPS.items() if "triton" in op.backends]

#: Variants whose kernels compile in seconds; of other ops the first of the table is run with every change.
QUICK = {
    "clustering_loss": "sum",
    "linear_clustering_loss": "no bias",
    "stability_loss": "odd",
    "patch_embedding": "patch 4",
    "efficient_attention": "heads",
    "cross_scale_attention": "half",
    "mix_ffn": "inner tiles",
    "score_map": "even",
}


#: Kernels that ``guided_score_map`` launches too.
IN_ANOTHER = ("patch_embedding", "score_map")


@pytest.mark.parametrize("op", [pytest.param(op, marks=[pytest.mark.slow] * (op in IN_ANOTHER)) for op in KERNELS])
def test_each_op_once(op: str) -> None:
    variant = QUICK.get(op, next(iter(OPS[op].sizes)))
    run_as_ptx(*(f"{ERRORS}[torch.{dtype}-{op}-triton-{variant}]" for dtype in ("float32", "bfloat16")), "--run-slow")


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("op", KERNELS)
def test_everything(op: str, card: str) -> None:
    run_as_ptx(ERRORS, *OTHERS, "--ptx-op", op, "--ptx-arch", card, "--run-slow")


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("op", KERNELS)
def test_in_tf32(op: str, card: str) -> None:
    """Errors against those of PyTorch in tf32."""
    run_as_ptx(ERRORS, "-k", "float32", "--ptx-op", op, "--ptx-arch", card, "--ptx-precision", "high", "--run-slow")
