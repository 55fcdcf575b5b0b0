"""What every test shares: the optional data, a fresh seed a run, and the marks for slow and GPU tests."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.browser import browser, tab  # noqa: F401  # fixtures
from tests.harness.fresh_memory import poisoned

# Before anything imports triton: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"

#: Recorded runs and research images that the project may not carry; tests that need them skip without them.
DATA = Path(os.environ.get("MSFORMER_FAST_DATA", ROOT.parent / "shared"))

# Workers of a parallel run share the cores; threads that wait for a core cost many times what they save.
torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

# In the environment, so that every process of a parallel run draws from the seed that its header shows.
SEED = int(os.environ.setdefault("MSFORMER_FAST_TEST_SEED", str(secrets.randbelow(2**31))))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take minutes")


def pytest_report_header() -> str:
    return f"random inputs drawn from MSFORMER_FAST_TEST_SEED={SEED}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # Marks, not keywords: those hold the names of folders too.
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: pass --run-slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _fresh_seed() -> None:
    torch.manual_seed(SEED)


@pytest.fixture
def threads() -> Iterator[None]:
    """A test may set PyTorch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: None) -> None:
    """For tensors so tiny that a second thread only costs."""
    torch.set_num_threads(1)


@pytest.fixture
def drop_ins_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU too, where on small maps they would run the module's own code."""
    monkeypatch.setattr("msformer_fast.nn.DropIn.may_gain", lambda self, x: True)


@pytest.fixture
def strict_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels that cannot hide a mistake: fresh memory is NaN, and in the interpreter bounds are checked, bf16 and tf32
    are as on a card and a masked-off lane reads NaN."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(poisoned())
        if os.environ.get("TRITON_INTERPRET") == "1":
            from tests.harness.interpreter import fixed

            stack.enter_context(fixed(tf32=True, poison=True))
        yield
