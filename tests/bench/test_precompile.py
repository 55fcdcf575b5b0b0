"""Kernels are named without a launch, compiled by whoever is idle, and found in the cache by a launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton")

#: In a process of its own, as on a card: forward and backward of a small op.
WORK = """
import json, pathlib, sys
import torch
from triton.runtime.jit import JITFunction
from msformer_fast.benchmarks import precompile
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.suite import bench_of

case = Case.of("stability_loss", {"side": 9, "channels": 32, "patch": 2})
cache = pathlib.Path(sys.argv[1])

def run():
    bench_of("stability_loss").prepare(case, "triton").results()

def files():
    return sorted(path.name for path in cache.rglob("*.cubin"))

specs = {}
with precompile.as_on("sm_90"):
    with precompile.recording(specs):
        run()
    before = files()
    specs = json.loads(json.dumps(list(specs.values())))
    seconds = [precompile.compile_spec(spec) for spec in specs[1:]]
    compiled = files()
    for module in (m for m in list(sys.modules.values()) if m.__name__.startswith("msformer_fast.kernels.")):
        for kernel in (v for v in vars(module).values() if isinstance(v, JITFunction)):
            kernel.device_caches.clear()  # what this process knows: only the disk is left
    launch = JITFunction.run
    JITFunction.run = lambda self, *a, grid, warmup, **k: launch(self, *a, grid=grid, warmup=True, **k)
    run()
print(json.dumps({"texts": [s["text"] for s in specs], "before": before, "compiled": compiled, "after": files(),
                  "seconds": seconds}))
"""


def test_a_launch_finds_what_was_compiled_before_it(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", WORK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    names = [text.split()[0] for text in found["texts"]]
    assert set(names) == {"stability_kernel", "mean_loss_kernel", "gradient_kernel"}
    assert len(names) == len(set(found["texts"])) == 4, "each of queries and keys"
    assert found["before"] == [] and len(found["compiled"]) == 3 and all(s > 0 for s in found["seconds"])
    assert len(found["after"]) == 4, "the one that was left out, and no other"
    assert set(found["compiled"]) <= set(found["after"])
