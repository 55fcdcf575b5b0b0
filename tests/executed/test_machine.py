"""The machine that runs PTX: against numpy and PyTorch, and on the faults that it must catch."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from tests.executed.child import needs_compiler, run_as_ptx

pytestmark = [pytest.mark.ptx, needs_compiler]


@pytest.mark.parametrize("subject", ["instructions", "kernels", "faults"])
def test_the_machine(subject: str) -> None:
    run_as_ptx(f"tests/executed/{subject}.py", "--ptx-repeats", "1")
