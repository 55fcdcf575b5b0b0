"""Every launch asks the compiler for what the launch tables were made with."""

from __future__ import annotations

import pytest
import torch

from msformer_fast.kernels.launch import compile_options
from tests.harness.launches import constexprs_of_launches
from tests.ops.op import Op
from tests.ops.test_contract import DEVICE, KERNELS, leaves, run

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="looks into the interpreter")


@pytest.mark.parametrize("op", KERNELS, ids=lambda op: op.row)
def test_every_launch_names_its_compile_options(op: Op) -> None:
    with constexprs_of_launches() as seen:
        run(op, leaves(op.draw(op.tiny), torch.float32), op.tiny, "triton")
    assert seen
    for kernel, *given in seen:
        options = dict(given)
        assert set(compile_options(1)) <= set(options), kernel
        assert options["enable_fp_fusion"] == "True", kernel
