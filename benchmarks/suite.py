"""Every benchmark, by name: one file each."""

from __future__ import annotations

import importlib

from msformer_fast.benchmarks.case import Bench, check_names
from msformer_fast.benchmarks.options import NAMES


def bench_of(name: str) -> Bench:
    """The benchmark of that name.

    Raises:
        InputError: there is none.
    """
    check_names("benchmark", [name], NAMES)
    return importlib.import_module(f"msformer_fast.benchmarks.{name}").BENCH
