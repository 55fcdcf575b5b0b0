"""Two runs side by side: what became slower or faster beyond noise."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from msformer_fast.benchmarks.options import THRESHOLD
from msformer_fast.benchmarks.records import Row

#: Resamples of the bootstrap, and the share that its interval holds.
RESAMPLES, INTERVAL = 1000, 0.99


@dataclass(frozen=True)
class Change:
    """One row in both runs.

    Attributes:
        now: the row of this run.
        ratio: time now over time then, the machine's own change taken out; ``low``, ``high``: its interval.
        verdict: ``"slower"``, ``"faster"`` or ``"same"``.
    """

    now: Row
    ratio: float
    low: float
    high: float
    verdict: str


def compare(now: Sequence[Row], then: Sequence[Row], threshold: float = THRESHOLD) -> list[Change]:
    """Rows that both runs have measured, in this run's order.

    A machine drifts: times of both runs are divided by those of a fixed piece of work timed in the same rounds. A row
    is slower where the whole bootstrap interval of the ratio of the two medians lies above ``1 + threshold``.
    """
    earlier = {row.key: row for row in then if row.label == "measured" and row.seconds}
    pairs = [(row, earlier[row.key]) for row in now if row.label == "measured" and row.seconds and row.key in earlier]
    return [_change(row, before, threshold) for row, before in pairs]


def _change(now: Row, then: Row, threshold: float) -> Change:
    a, b = anchored(now), anchored(then)
    ratio = statistics.median(a) / statistics.median(b)
    low, high = interval(a, b)
    verdict = "slower" if low > 1 + threshold else "faster" if high < 1 / (1 + threshold) else "same"
    return Change(now, ratio, low, high, verdict)


def anchored(row: Row) -> list[float]:
    """Seconds over the run's median anchor beside them; the seconds themselves where there is no anchor."""
    if not row.anchor:
        return row.seconds
    unit = statistics.median(row.anchor)
    return [value / unit for value in row.seconds]


def interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Of the ratio of the medians of two samples, by the percentile bootstrap; the same at every call."""
    draw = random.Random(0)
    ratios = sorted(
        statistics.median(draw.choices(a, k=len(a))) / statistics.median(draw.choices(b, k=len(b)))
        for _ in range(RESAMPLES)
    )
    cut = int(RESAMPLES * (1 - INTERVAL) / 2)
    return ratios[cut], ratios[-1 - cut]


def confirmed(first: Sequence[Change], second: Sequence[Change]) -> list[Change]:
    """The changes of ``first``, those called slower or faster only where a second measurement says so too."""
    again = {change.now.key: change.verdict for change in second}
    return [
        change if again.get(change.now.key, change.verdict) == change.verdict else _doubted(change) for change in first
    ]


def _doubted(change: Change) -> Change:
    return Change(change.now, change.ratio, change.low, change.high, "same")


def table(changes: Sequence[Change]) -> list[str]:
    """Lines for a terminal: what changed, then how many did not."""
    lines = []
    for change in sorted(changes, key=lambda c: -abs(c.ratio - 1)):
        if change.verdict == "same":
            continue
        row = change.now
        lines.append(
            f"{change.verdict:<7}{change.ratio:6.2f} times the earlier time ({change.low:.2f} to {change.high:.2f})  "
            f"{row.case}, {row.part}, {row.provider}"
        )
    same = sum(change.verdict == "same" for change in changes)
    return [*lines, f"{same} of {len(changes)} rows as before, within noise"]
