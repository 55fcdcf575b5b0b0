"""Launch settings against the clock: those of now, and the candidates that were prepared, round by round in turn."""

from __future__ import annotations

import contextlib
import importlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton

from msformer_fast.benchmarks import check
from msformer_fast.benchmarks.candidate_rows import (
    Candidate,
    candidates_of,
    kernel_of,
    replaced,
    scaled_grids,
    staged,
)
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.clock import Clock, in_turn
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.benchmarks.tune_tables import Table, padded_width, present
from msformer_fast.ops.precision import input_precision

#: Architecture that candidates were prepared for.
PREPARED = "sm_90"

#: Candidates of a kernel that are measured, beside grids; rounds of each, seconds for all of them.
MOST, ROUNDS, BUDGET = 8, 21, 1.5

#: A row must be this much faster to take the place of another.
GAIN = 0.03


class Subject:
    """One kernel's part of an op on a case's device, ready to be run with other launch settings.

    Attributes:
        kind: of products; keys: of the launch table; base: the row that the card has now, None where it has none.
    """

    def __init__(self, table: Table, part: str, case: Case) -> None:
        from msformer_fast.kernels.launch import product_kind, served_kind, target_of

        self.table, self.part, self.case = table, part, case
        self.module = importlib.import_module(f"msformer_fast.kernels.{table.module}")
        self.target = target_of(torch.device(case.device))
        kind = product_kind(case.torch_dtype, input_precision(case.torch_dtype, self.target))
        self.kind = served_kind(self.module.TABLE, part, kind)
        self.keys, self.base = present(table, part, self.kind, self.target, case["channels"])

    def candidates(self, most: int = MOST) -> list[Candidate]:
        """What was prepared for this kernel: so many of other code, best first, and all grids, which compile nothing.

        Nothing on another architecture than it was prepared for.
        """
        if self.target != PREPARED or self.base is None:
            return []
        found = candidates_of(self.table.op)
        known = {version for each in found for version in each.versions}
        if triton.__version__ in known:  # another version may spill where this one does not, or the other way round
            found = tuple(each for each in found if triton.__version__ in each.versions)
        own = [each for each in found if (each.part, each.kind) == (self.part, self.kind)]
        return [each for each in own if each.grid == 1][:most] + [each for each in own if each.grid != 1 and most]

    @contextlib.contextmanager
    def with_(self, candidate: Candidate | None) -> Iterator[None]:
        """Inside, the kernel is launched as a candidate says."""
        with contextlib.ExitStack() as stack:
            if candidate is not None:
                stack.enter_context(replaced(self.module.TABLE, self.keys, candidate.row))
                if candidate.stages:
                    stack.enter_context(staged(kernel_of(self.table.kernels[self.part]), candidate.stages))
                if candidate.grid != 1:
                    for name in self.table.grids:
                        module = importlib.import_module(f"msformer_fast.kernels.{name}")
                        stack.enter_context(scaled_grids(module, candidate.grid))
            yield


def launch_all(table: Table, part: str, case: Case, most: int = MOST) -> None:
    """Launch a kernel as each candidate says, so that all are compiled."""
    subject = Subject(table, part, case)
    chosen = subject.candidates(most)
    if subject.base is None:
        return
    ready = bench_of(table.op).prepare(case, "triton")
    for candidate in (None, *chosen):
        with subject.with_(candidate):
            ready.results()
    ready.close()


def judge(table: Table, part: str, case: Case, *, rounds: int = ROUNDS, most: int = MOST) -> dict[str, Any] | None:
    """Time the present settings of one kernel and the most promising candidates in turn; ``None`` without a row.

    What is timed is the half of the op that launches the kernel. A candidate that is wrong or does not run has no time,
    and says why.

    Returns:
        the case, the present row and its seconds round by round, and for each candidate, best first, its settings, its
        seconds, its gain (the present time over its own, median over the rounds) and whether that is more than noise.
    """
    subject = Subject(table, part, case)
    if subject.base is None:
        return None
    ready = bench_of(table.op).prepare(case, "triton")
    truth, half = ready.results(), table.parts[part]
    tried: list[tuple[Candidate, str]] = []
    for candidate in subject.candidates(most):
        with subject.with_(candidate):
            tried.append((candidate, why_not(ready, truth, case)))
    able = [candidate for candidate, reason in tried if not reason]

    def call_of(candidate: Candidate | None) -> Callable[[], object]:
        def call() -> object:
            with subject.with_(candidate):
                return ready.parts[half]()

        return call

    calls = [(call_of(candidate), ready.before[half]) for candidate in (None, *able)]
    base, *others = in_turn(Clock(case.device), calls, budget=BUDGET, least=min(rounds, 5), most=rounds)
    ready.close()
    found = [_verdict(candidate, base, seconds) for candidate, seconds in zip(able, others, strict=True)]
    found += [{"settings": _settings(candidate), "why_not": reason} for candidate, reason in tried if reason]
    return {
        "op": table.op,
        "part": part,
        "half": half,
        "kind": subject.kind,
        "target": subject.target,
        "case": str(case),
        "module": table.module,
        "key": subject.keys[0],
        "width": padded_width(table, case),
        "before": subject.base,
        "before_seconds": base,
        "candidates": sorted(found, key=lambda each: -each.get("gain", 0.0)),
    }


def _settings(candidate: Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "row": candidate.row,
        "stages": candidate.stages,
        "grid": candidate.grid,
        "predicted_gain": candidate.gain,
    }


def why_not(ready: Any, truth: dict[str, Any], case: Case) -> str:
    """Why a row is not timed; empty where it is right.

    Raises:
        RuntimeError: the context is lost: whoever started this goes on in another process.
    """
    try:
        error, where = check.error_of(ready.results(), truth)
    except Exception as failure:
        if any(word in str(failure) for word in ("illegal", "device-side", "CUDA error")):
            raise
        return " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
    limit = check.allowed(case.dtype, None)
    return "" if error <= limit else f"wrong: {where} is off by {error:.1e}"


def _verdict(candidate: Candidate, base: list[float], seconds: list[float]) -> dict[str, Any]:
    """Whether a candidate is faster by more than :data:`GAIN`, and by more than the rounds spread."""
    ratios = sorted(before / after for before, after in zip(base, seconds, strict=True))
    gain, low = statistics.median(ratios), ratios[len(ratios) // 10]
    return {
        "settings": _settings(candidate),
        "seconds": seconds,
        "gain": gain,
        "low": low,
        "high": ratios[-1 - len(ratios) // 10],
        "faster": gain > 1 + GAIN and low > 1.0,
    }
