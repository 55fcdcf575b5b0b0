"""Options of the benchmarks."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--keep-freed-memory",
        action="store_true",
        help="with the allocator's setting of the command line (msformer_fast.process.keep_freed_memory)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--keep-freed-memory"):
        from msformer_fast.process import keep_freed_memory

        if not keep_freed_memory():
            raise pytest.UsageError("--keep-freed-memory: this platform's allocator has no such setting")
