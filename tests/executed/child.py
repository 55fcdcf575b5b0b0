"""A pytest whose kernels run as PTX, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.harness.ptx import compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs g++, which builds the machine that runs PTX")


def run_as_ptx(*arguments: str, timeout: float = 3600) -> None:
    """Run pytest with these arguments on kernels that are compiled, not interpreted; fail as it does.

    It prints what ran and how long; ``-rP`` shows that of tests that pass.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "TRITON_INTERPRET": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "HIP_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    options = ("-p", "tests.harness.ptx.plugin", "-p", "no:cacheprovider", "-q", "--tb=short")
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout)
    print(done.stdout[-20000:], done.stderr[-4000:])
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
