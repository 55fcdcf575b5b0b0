"""Every benchmark under pytest: one row for each case, provider and part, checked before it is timed."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from msformer_fast.benchmarks import check
from msformer_fast.benchmarks.case import Bench, Case, Wanted
from msformer_fast.benchmarks.clock import Clock, look_inside
from msformer_fast.benchmarks.options import DTYPES

ROUNDS = 9


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("msformer_fast benchmarks")
    group.addoption("--bench-device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    group.addoption("--dtypes", default="float32", help=f"some of {', '.join(DTYPES)}, with commas")
    group.addoption("--sides", help="pixels, with commas (default: 65 to 257 on a CPU, to 1025 on a GPU)")
    group.addoption("--channels", help="with commas (default: the paper's, and others at one side)")
    group.addoption("--keep-freed-memory", action="store_true", help="with the allocator's setting of the command line")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--keep-freed-memory"):
        from msformer_fast.process import keep_freed_memory

        if not keep_freed_memory():
            raise pytest.UsageError("--keep-freed-memory: this platform's allocator cannot be told to")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    bench = getattr(metafunc.module, "BENCH", None)
    if bench is None or "row" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    wanted = Wanted(sides=_numbers(option("--sides")), channels=_numbers(option("--channels")))
    rows = [
        PytestRow(bench, case, provider, part)
        for case in bench.cases(option("--bench-device"), option("--dtypes").split(","), wanted)
        for part in bench.parts
        for provider in bench.providers()
    ]
    metafunc.parametrize("row", rows, ids=str)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    return tuple(int(part) for part in text.split(",")) if text else None


class PytestRow:
    """One row. The plain provider runs before every round, so that the extra information has the ratio to it, round by
    round (least, median, most), beside floor, share of the machine, peak memory, launches and error."""

    def __init__(self, bench: Bench, case: Case, provider: str, part: str) -> None:
        self.bench, self.case, self.provider, self.part = bench, case, provider, part

    def __str__(self) -> str:
        sizes = "-".join(f"{name}{value}" for name, value in self.case.sizes)
        return f"{sizes}-{self.case.dtype}-{self.provider}-{self.part}"

    def run(self, benchmark: Any) -> None:
        bench, case = self.bench, self.case
        reason = bench.why_not(case, self.provider)
        if reason is not None:
            pytest.skip(reason)
        if self.provider.endswith("captured") and self.part not in bench.parts[-1:]:
            pytest.skip("a replay has no parts")
        truth = bench.truth(case)
        plain, subject = bench.prepare(case, bench.plain), bench.prepare(case, self.provider)
        limit = check.allowed(case.dtype, check.error_of(plain.results(), truth)[0])
        error, where = check.error_of(subject.results(), truth)
        assert error <= limit, f"not timed, for it is wrong: {where} is off by {error:.1e}, more than {limit:.1e}"
        del truth
        self._time(benchmark, subject, plain, error)
        subject.close()
        plain.close()

    def _time(self, benchmark: Any, subject: Any, plain: Any, error: float) -> None:
        # The host's launches count: pytest-benchmark's own clock cannot be told otherwise.
        clock, part = Clock(self.case.device, ahead=False), self.part
        inside = look_inside(self.case.device, subject.parts[part], subject.before[part])
        ours: list[float] = []
        theirs: list[float] = []

        def setup() -> None:
            plain.before[part]()
            theirs.append(clock.seconds(plain.parts[part]))
            subject.before[part]()

        benchmark.group = f"{self.case}, {part}"
        benchmark.pedantic(
            lambda: ours.append(clock.seconds(subject.parts[part])), setup=setup, rounds=ROUNDS, warmup_rounds=2
        )
        ours, theirs = ours[-ROUNDS:], theirs[-ROUNDS:]  # with --benchmark-disable one round is all
        ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
        floor, median = self.bench.floor(self.case, part), statistics.median(ours)
        benchmark.extra_info |= {
            "seconds": median,  # on a GPU between CUDA events, the cache overwritten before
            "times_faster_than_plain": [round(f(ratios), 3) for f in (min, statistics.median, max)],
            "error": error,
            "peak_bytes": inside.peak_bytes,
            "launches": inside.launches,
            "floor_bytes": floor and floor.bytes,
            "gigabytes_a_second": floor and round(floor.bytes / median / 1e9, 2),
            "threads": torch.get_num_threads(),
        }
