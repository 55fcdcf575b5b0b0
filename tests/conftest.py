"""What every test shares: the optional data, a fresh seed a run, and the marks for slow and GPU tests."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"

#: Recorded runs and research images that the project may not carry; tests that need them skip without them.
DATA = Path(os.environ.get("MSFORMER_FAST_DATA", ROOT.parent / "shared"))

SEED = int(os.environ.get("MSFORMER_FAST_TEST_SEED", secrets.randbelow(2**31)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take minutes")


def pytest_report_header() -> str:
    return f"random inputs drawn from MSFORMER_FAST_TEST_SEED={SEED}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: pass --run-slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _fresh_seed() -> None:
    torch.manual_seed(SEED)
