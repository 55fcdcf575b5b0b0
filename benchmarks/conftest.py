"""Options of the benchmarks."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--keep-freed-memory",
        action="store_true",
        help="with the allocator's setting of the command line (msformer_fast.process.keep_freed_memory)",
    )
