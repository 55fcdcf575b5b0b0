"""CONTRIBUTING.md's worked example, followed as written in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

pytest.importorskip("triton")
STEP = re.compile(r"\*\*\d\. [^`]*`([\w/]+\.py)`.*?```python\n(.*?)```", re.DOTALL)
ROW = re.compile(r"^\| `([\w/<>]+\.\w+)` \|", re.MULTILINE)


def run(folder: Path, *command: str, **variables: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder), **variables}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_new_op_by_the_book(tmp_path: Path) -> None:
    for name in ("msformer_fast", "benchmarks", "kernels", "tests", "pyproject.toml"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)  # msformer_fast/kernels is the copy's own
        else:
            shutil.copy(ROOT / name, tmp_path / name)

    book = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    book = book[book.index("## How to add an op") :]
    steps = STEP.findall(book)
    files = [name.replace("<op>", "token_energy") for name in ROW.findall(book[: book.index("**1. ")])]
    assert files == [*(name for name, _ in steps), "benchmarks/compiled/token_energy.csv"]
    assert len(files) <= 8
    for name, code in steps:
        path = tmp_path / name
        path.write_text((path.read_text() + "\n\n" if path.exists() else "") + code, encoding="utf-8")

    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "token_energy")
    run(tmp_path, *tests, "tests/ops/test_contract.py", "tests/ops/test_identities.py", "tests/test_transforms.py")
    gate = ("-m", "tests.harness.aot_table", "token_energy", "--small", "--targets", "sm_90")
    run(tmp_path, *gate, "--write", TRITON_INTERPRET="0")
    assert (tmp_path / "benchmarks/compiled/token_energy.csv").read_text().count("sm_90") == 4
    run(tmp_path, *gate, TRITON_INTERPRET="0")
    run(tmp_path, *tests[:-2], "tests/aot/test_gate.py", "-k", "every_kernel_module")
