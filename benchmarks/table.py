"""Results as lines for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from msformer_fast.benchmarks.records import Results, Row
from msformer_fast.benchmarks.suite import bench_of

HEADING = "  {:<9}{:<24}{:>10} {:>22} {:>9} {:>7} {:>6} {:>8}  error".format(
    "part", "provider", "ms", "times faster", "peak MB", "GB/s", "share", "launches"
)


def ratios(row: Row, plain: Row) -> list[float]:
    """How many times faster a row is than the plain one, round by round: both were taken in turn."""
    return [theirs / ours for ours, theirs in zip(row.seconds, plain.seconds, strict=True)]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Least, median, most."""
    return min(values), statistics.median(values), max(values)


def lines(results: Results) -> list[str]:
    """A block for each case: a line for each part and provider, the plain one first."""
    found: list[str] = []
    cases = list(dict.fromkeys(row.case for row in results.rows))
    for case in cases:
        bench = bench_of(case.bench)
        found += ["", f"{case} ({bench.doc})"]
        found.append(HEADING)
        for part in bench.parts:
            rows = results.find(case, part)
            found += [_line(row, rows.get(bench.plain)) for row in rows.values()]
    wrong = [row for row in results.refused if row.reason.startswith("wrong")]
    other = {(row.provider, row.reason) for row in results.refused if not row.reason.startswith("wrong")}
    if wrong or other:
        found += ["", "not reported:"]
        found += [f"  {row.bench}, {row.sizes}, {row.dtype}, {row.provider}: {row.reason}" for row in wrong]
        found += [f"  {provider}: {reason}" for provider, reason in sorted(other)]
    return found[1:]


def _line(row: Row, plain: Row | None) -> str:
    ratio = "" if plain is None or plain is row else "{1:.2f} ({0:.2f} to {2:.2f})".format(*spread(ratios(row, plain)))
    peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"
    speed = "-" if row.gigabytes_a_second is None else f"{row.gigabytes_a_second:.1f}"
    share = "-" if row.share is None else f"{row.share:.0%}"
    launches = "-" if row.launches is None else str(row.launches)
    mark = "" if row.label == "measured" else f"  [{row.label}]"
    return (
        f"  {row.part:<9}{row.provider:<24}{1e3 * row.median:>10.3f} {ratio:>22} {peak:>9} {speed:>7} {share:>6} "
        f"{launches:>8}  {row.error or 0:.0e}{mark}"
    )
