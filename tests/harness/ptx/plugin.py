"""A pytest plugin: kernels run as they are compiled for a card, on CPU tensors, every access to memory watched.

``python -m pytest -p tests.harness.ptx.plugin --ptx-op mix_ffn tests/ops/test_contract.py -k error``, say.
What looks into the interpreter, or at float64, cannot pass here; ``tests/executed`` knows what can.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "0"  # before the tests' conftest, which would set it

from tests.harness.ptx import driver


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernels as PTX")
    group.addoption("--ptx-arch", type=int, default=90, choices=sorted(driver.CARDS), help="compute capability")
    group.addoption("--ptx-seed", type=int, default=0, help="of the order of blocks and warps")
    group.addoption("--ptx-repeats", type=int, default=2, help="orders that each launch runs in, with equal results")
    group.addoption("--ptx-tolerate", action="append", default=[], help="a kind of finding that does not fail")
    group.addoption("--ptx-precision", default="highest", choices=("highest", "high"), help="of float32 products")
    group.addoption("--ptx-op", help="of tests with a backend, only this op's on its kernels")


def pytest_configure(config: pytest.Config) -> None:
    driver.install(
        arch=config.getoption("--ptx-arch"),
        seed=config.getoption("--ptx-seed"),
        repeats=config.getoption("--ptx-repeats"),
        tolerate=driver.options.tolerate | set(config.getoption("--ptx-tolerate")),
    )
    torch.set_float32_matmul_precision(config.getoption("--ptx-precision"))
    take_kernels_on_the_cpu()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    name = config.getoption("--ptx-op")
    if name is None:
        return
    kept, left = [], []
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        fits = "op" in given and given["op"].row == name and given.get("backend", "triton") == "triton"
        (kept if fits else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def take_kernels_on_the_cpu() -> None:
    """Let the ops run their kernels on CPU tensors, with the launch tables' rows for the card."""
    from msformer_fast import kernels
    from msformer_fast.kernels import launch
    from msformer_fast.ops import backend

    backend.interpreting = lambda: True  # what the ops ask before they refuse CPU tensors
    original = launch.target_of

    def target_of(device: torch.device) -> str | None:
        return f"sm_{driver.options.arch}" if device.type == "cpu" else original(device)

    for found in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"{kernels.__name__}.{found.name}")
    for name, module in list(sys.modules.items()):
        if name.startswith("msformer_fast") and getattr(module, "target_of", None) is original:
            module.target_of = target_of


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("kernels that ran as PTX")
    for (kernel, arch), account in sorted(driver.ledger.items()):
        terminalreporter.line(f"{kernel} sm_{arch}: {account}")
    terminalreporter.line(f"all: {sum(driver.ledger.values(), driver.Account())}")
    for note, count in sorted(driver.notes.items()):
        terminalreporter.line(f"{note}: in {count} launches")
