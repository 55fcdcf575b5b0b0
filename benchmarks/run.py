"""A run of the suite: every case, its providers checked, then timed in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msformer_fast.benchmarks import check
from msformer_fast.benchmarks.case import Bench, Case, Subject
from msformer_fast.benchmarks.clock import Ceilings, Clock, Inside, in_turn, look_inside
from msformer_fast.benchmarks.records import Refused, Results, Row
from msformer_fast.errors import BackendError
from msformer_fast.profiling import nvtx_range

Say = Callable[[str], object]


#: A provider whose call takes so many times plain code's, half of the budget and a second is not timed further.
SLOW = 8.0


@dataclass
class Runner:
    """Runs cases and adds their rows to the results.

    Attributes:
        results: what is filled.
        clock, ceilings: of the device.
        seconds: for the rounds of one case and part, all providers together.
        only, parts: providers and parts that take part; ``None`` is all.
        least: rounds at least.
        say: is told of every case and row.
        dry: check everything and time nothing worth the name: one round, labelled.
    """

    results: Results
    clock: Clock
    ceilings: Ceilings | None
    seconds: float = 3.0
    only: Sequence[str] | None = None
    parts: Sequence[str] | None = None
    least: int = 5
    say: Say = print
    dry: bool = False

    def __post_init__(self) -> None:
        self._anchor = anchor(self.clock.device)
        self._peaks: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def run(self, bench: Bench, case: Case) -> list[Row]:
        """Rows of one case; those that are wrong, or cannot run, are recorded as refused."""
        started = time.perf_counter()
        ready: dict[str, tuple[Subject, float, float]] = {}
        plain_error: float | None = None
        able = []
        for provider in self._providers(bench):
            reason = bench.why_not(case, provider) or self._too_large(bench, case, provider)
            if reason is None:
                able.append(provider)
            else:
                self._refuse(case, provider, reason)
        truth = self._truth(bench, case, able)
        for provider in able:
            if truth is None:  # told of each already
                break
            try:
                subject = bench.prepare(case, provider)
                error, where = check.error_of(subject.results(), truth)
            except Exception as failure:
                self._refuse(case, provider, _one_line(failure))
                continue
            if provider == bench.plain:
                plain_error = error
            limit = check.allowed(case.dtype, plain_error, subject.lower)
            if error > limit:
                self._refuse(case, provider, f"wrong: {where} is off by {error:.1e}, more than {limit:.1e}")
            else:
                ready[provider] = subject, error, limit
        del truth
        rows = [row for part in self._parts(bench) for row in self._part(bench, case, part, ready)]
        for subject, _, _ in ready.values():
            subject.close()
        ready.clear()
        self._tidy()
        self.results.rows += rows
        self.say(f"{case}: {len(rows)} rows in {time.perf_counter() - started:.0f} s")
        return rows

    def _providers(self, bench: Bench) -> list[str]:
        names = bench.providers()
        if self.only is not None:
            names = [name for name in names if name in self.only]
        return sorted(names, key=lambda name: name != bench.plain)  # whose error the others are held to

    def _truth(self, bench: Bench, case: Case, providers: Sequence[str]) -> dict[str, Tensor] | None:
        """In float64 on the case's device, or on the CPU where that has too little memory; None if neither can."""
        failure: Exception | None = None
        for device in dict.fromkeys((case.device, "cpu")) if providers else ():
            try:
                return bench.truth(case.replace(device=device))
            except (RuntimeError, MemoryError) as error:
                failure = error
            self._tidy()
        for provider in providers:
            self._refuse(case, provider, f"not checked, so not timed: {_one_line(failure or MemoryError())}")
        return None

    def _parts(self, bench: Bench) -> list[str]:
        return [part for part in bench.parts if self.parts is None or part in self.parts]

    def _part(self, bench: Bench, case: Case, part: str, ready: dict[str, tuple[Subject, float, float]]) -> list[Row]:
        inside: dict[str, Inside] = {}
        took: dict[str, float] = {}
        able = {provider: found for provider, found in ready.items() if part in found[0].parts}
        for provider, (subject, _, _) in list(able.items()):
            try:
                subject.before[part]()
                started = time.perf_counter()
                subject.parts[part]()
                self.clock.wait()
                took[provider] = time.perf_counter() - started
                inside[provider] = look_inside(self.clock.device, subject.parts[part], subject.before[part])
                reason = self._too_slow(took[provider], took.get(bench.plain))
            except (RuntimeError, MemoryError) as failure:
                reason = _one_line(failure)
            if reason is not None:
                del ready[provider], able[provider]
                self._refuse(case, provider, reason)
        calls = [
            (_named(f"{case.bench}.{part}.{provider}", subject.parts[part]), subject.before[part])
            for provider, (subject, _, _) in able.items()
        ]
        if not calls:
            return []
        calls.append((self._anchor, _nothing))
        least, most = (1, 1) if self.dry else (self.least, 51)
        times = in_turn(self.clock.beside(bench.ahead), calls, budget=self.seconds, least=least, most=most)
        floor = bench.floor(case, part)
        rows = []
        for (provider, (_, error, limit)), seconds in zip(able.items(), times, strict=False):
            row = Row(case.bench, dict(case.sizes), case.dtype, case.device, provider, part)
            row.label = "dry run" if self.dry else "measured"
            row.host_counts = not bench.ahead
            row.seconds, row.anchor, row.error, row.allowed = seconds, times[-1], error, limit
            row.peak_bytes, row.launches, row.device_seconds = inside[provider]
            if floor is not None:
                row.floor_bytes, row.floor_flops = floor.bytes, floor.flops
                if self.ceilings is not None:
                    row.floor_seconds = self.ceilings.seconds(floor.bytes, floor.flops, case.dtype)
            rows.append(row)
            if row.peak_bytes:
                self._peaks.setdefault((bench.name, provider), []).append((_pixels(case), row.peak_bytes))
        return rows

    def _too_slow(self, seconds: float, plain: float | None) -> str | None:
        """A rival that takes seconds where plain code takes a fraction would take the time of all others."""
        if plain is None or seconds < max(1.0, self.seconds / 2, SLOW * plain):
            return None
        return f"too slow to be timed with the others: a call took {seconds:.1f} s, plain code {plain:.2g} s"

    def _refuse(self, case: Case, provider: str, reason: str) -> None:
        self.results.refused.append(Refused(case.bench, dict(case.sizes), case.dtype, provider, reason))

    def _too_large(self, bench: Bench, case: Case, provider: str) -> str | None:
        """Whether the memory is there, from what smaller cases of the provider took."""
        seen = self._peaks.get((bench.name, provider))
        if not seen:
            return None
        pixels, peak = max(seen)
        needed = 1.2 * peak * max(1.0, _pixels(case) / pixels)
        free = available_memory(case.device)
        if free is None or needed < free:
            return None
        return f"would need about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"

    def _tidy(self) -> None:
        gc.collect()
        if self.clock.device == "cuda":
            torch.cuda.empty_cache()


def anchor(device: str) -> Callable[[], Tensor]:
    """A fixed piece of PyTorch's own work, a copy and a product of some milliseconds: how fast the machine is now."""
    source = torch.ones(1 << 20, device=device)
    matrix = torch.full((384, 384), 1e-3, device=device)

    def call() -> Tensor:
        source.add(1)
        return matrix @ matrix @ matrix

    return call


def available_memory(device: str) -> int | None:
    """Bytes that a new tensor may take; None where unknown."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _named(name: str, call: Callable[[], object]) -> Callable[[], object]:
    """In an NVTX range of that name where NVTX is enabled."""

    def ranged() -> object:
        with nvtx_range(name):
            return call()

    return ranged


def _pixels(case: Case) -> int:
    return case["side"] ** 2 * case.get("channels", 1)


def _nothing() -> None:
    return None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    name = "" if isinstance(error, BackendError) else f"{type(error).__name__}: "
    return (name + text)[:300]
