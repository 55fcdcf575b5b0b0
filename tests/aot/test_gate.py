"""Every kernel compiles for every supported card without a spill, and as the committed tables say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.conftest import ROOT
from tests.harness.aot import OPS, TARGETS
from tests.harness.aot_table import read_table


def gate(*arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.harness.aot_table", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=3600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize("op", OPS)
def test_the_papers_widths_on_both_makes(op: str) -> None:
    """On one card of NVIDIA, another for each op, and every third op on gfx942."""
    index, cards = OPS.index(op), [target for target in TARGETS if target.startswith("sm_")]
    gate(op, "--small", "--targets", cards[index % len(cards)] + ",gfx942" * (index % 3 == 0))


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_everything_on_every_card(op: str) -> None:
    gate(op)


def test_every_kernel_module_has_its_cases() -> None:
    """What is named ``<op>_<subject>`` has kernels of that op, helpers of theirs, or its launch table."""
    helpers = {"__init__", "blocks", "launch", "pixel_rows"}
    modules = {path.stem for path in Path(ROOT / "kernels").glob("*.py")} - helpers
    assert set(OPS) == {module for module in modules if not module.startswith(tuple(f"{op}_" for op in OPS))}


@pytest.mark.parametrize("op", OPS)
def test_the_table_names_every_card(op: str) -> None:
    _, table = read_table(op)
    assert {target for _, target in table} == set(TARGETS)
