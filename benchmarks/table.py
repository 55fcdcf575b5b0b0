"""Results as lines for a terminal."""

from __future__ import annotations

from msformer_fast.benchmarks.records import Results, Row, ratio
from msformer_fast.benchmarks.suite import bench_of

HEADING = "  {:<9}{:<24}{:>10} {:>22} {:>9} {:>7} {:>6} {:>8}  error".format(
    "part", "provider", "ms", "times faster", "peak MB", "GB/s", "share", "launches"
)


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
    times = None if plain is None or plain is row else ratio(plain, row)
    faster = "" if times is None else f"{times.median:.2f} ({times.least:.2f} to {times.most:.2f})"
    peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"
    speed = "-" if row.gigabytes_a_second is None else f"{row.gigabytes_a_second:.1f}"
    share = "-" if row.share is None else f"{row.share:.0%}"
    launches = "-" if row.launches is None else str(row.launches)
    mark = "" if row.label == "measured" else f"  [{row.label}]"
    return (
        f"  {row.part:<9}{row.provider:<24}{1e3 * row.median:>10.3f} {faster:>22} {peak:>9} {speed:>7} {share:>6} "
        f"{launches:>8}  {row.error or 0:.0e}{mark}"
    )
