"""What a call on a card prints last: one screen."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from msformer_fast.benchmarks.options import OPS

if TYPE_CHECKING:
    from msformer_fast.benchmarks.on_gpu_plan import Plan
    from msformer_fast.benchmarks.on_gpu_record import Line, Record

#: Lines, and characters of a line.
HEIGHT, WIDTH = 40, 120

#: Lines for what failed, for the worst shares of the floor, for the largest gains of tuning.
FAILED, WORST, GAINS = 14, 10, 6


def summary(record: Record, names: Sequence[str], plan: Plan, seconds: float, processes: int) -> list[str]:
    """What failed, the worst shares of the floor, the step against its rivals, what tuning found."""
    units = record.units()
    done = [name for name in names if name in units]
    wrong = [line for name in done for line in failures(name, units[name])]
    wrong += [f"did not compile: {name}: {reason}" for name, reason in plan.broken.items()]
    lines = [f"{record.here.card or 'no card'}, code {record.here.code}, torch {record.here.torch}, "
             f"triton {record.here.triton}: {len(done)} of {len(names)} pieces in {seconds:.0f} s"]  # fmt: skip
    if plan.compiled:
        slowest = max(plan.compiled, key=lambda name: plan.compiled[name])
        lines.append(
            f"compiled {len(plan.compiled)} kernels in {plan.compile_seconds:.0f} s by {processes} processes, "
            f"{sum(plan.compiled.values()):.0f} s of theirs; slowest {plan.compiled[slowest]:.0f} s, {slowest}"
        )
    lines += [f"candidates that do not compile here: {len(plan.unfit)}"] * bool(plan.unfit)
    lines += [f"failed: {len(wrong)}"] + [f"  {line}" for line in wrong[:FAILED]]
    lines += [f"  and {len(wrong) - FAILED} more, in units.jsonl"] * (len(wrong) > FAILED)
    lines += _step(units) + _worst(units) + _gains(units)
    if len(done) < len(names):
        first = next(name for name in names if name not in units)
        lines.append(f"not done: {len(names) - len(done)}, from {first} on; the same command goes on with them")
    return [line[:WIDTH] for line in lines[:HEIGHT]]


def failures(name: str, unit: Line) -> Iterable[str]:
    """A line for each thing that is wrong in a piece."""
    if unit["ok"]:
        return
    checks = [each for each in unit.get("checks", ()) if not each["ok"]]
    for each in checks:
        if each.get("error") is None:
            yield f"{each['case']}: {each['where']}"
        elif each["error"] > each["allowed"]:
            yield f"{each['case']}: {each['where']} off by {each['error']:.1e}, allowed {each['allowed']:.1e}"
        else:
            yield f"{each['case']}: two runs differ in their bits"
    for each in unit.get("failed", ())[:3]:
        yield f"{name}: {each['name']} off by {each['error']:.1e}, allowed {each['bound']:.1e}"
    for each in unit.get("refused", ()):
        if each["reason"].startswith("wrong"):
            yield f"{name}: {each['provider']}: {each['reason']}"
    if checks or unit.get("failed") or unit.get("refused"):
        return
    text = unit.get("crashed") or unit.get("lost_context") or unit.get("error") or unit.get("output") or "not well"
    if "same" in unit:
        text = "not the same with graphs: " + ", ".join(what for what, same in unit["same"].items() if not same)
    told = [line for line in str(text).strip().splitlines() if line.strip()]
    yield f"{name}: {told[-1] if told else text}"


def _ms(row: Line) -> float:
    return 1e3 * statistics.median(row["seconds"])


def _step(units: dict[str, Line]) -> list[str]:
    """Step and image: everyone's median, and how many times faster than plain code."""
    found = []
    for name, unit in units.items():
        if not name.startswith(("rows/step", "rows/image")):
            continue
        sides = sorted({row["sizes"]["side"] for row in unit.get("rows", ())})
        for side in sides:
            rows = [r for r in unit["rows"] if r["sizes"]["side"] == side and r["part"] in ("step", "image")]
            plain = next((row for row in rows if row["provider"] == "reference" and row["seconds"]), None)
            if plain is not None:
                texts = [f"{row['provider']} {_ms(row):.3g} ({_ms(plain) / _ms(row):.2f} x)" for row in rows]
                kind = name.split("/")[2]
                found.append(f"{rows[0]['bench']} {side}, {kind}, ms: " + ", ".join(texts))
    return found


def _worst(units: dict[str, Line]) -> list[str]:
    """Kernels' rows that are furthest from the floor."""
    shares = []
    for name, unit in units.items():
        for row in unit.get("rows", ()):
            timed = row["provider"] == "triton" and row["floor_seconds"] and row["seconds"]
            if timed and row["bench"] in OPS and row["part"] != "both":
                shares.append((row["floor_seconds"] * 1e3 / _ms(row), _ms(row), row, name.split("/")[2]))
    shares.sort(key=lambda each: each[0])
    lines = [
        f"  {share:6.1%}  {row['bench']} {row['part']}, {row['sizes']['side']} pixels, {kind}: {ms:.3g} ms, device "
        f"{'-' if row['device_seconds'] is None else format(1e3 * row['device_seconds'], '.3g')}"
        for share, ms, row, kind in shares[:WORST]
    ]
    return ["worst shares of the floor:", *lines] if lines else []


def _gains(units: dict[str, Line]) -> list[str]:
    """Launch settings that are faster by more than the rounds spread."""
    best = []
    judged = 0
    for unit in units.values():
        found: dict[str, Any] = unit.get("found") or {}
        judged += bool(found)
        faster = [each for each in found.get("candidates", ()) if each.get("faster")]
        if faster:
            first = max(faster, key=lambda each: each["gain"])
            best.append((first["gain"], found, first["settings"]))
    best.sort(key=lambda each: -each[0])
    lines = [
        f"  {gain:.2f} x  {found['op']} {found['part']} {found['kind']}: {settings['row']} {settings['name']}, "
        f"now {found['before']}"
        for gain, found, settings in best[:GAINS]
    ]
    return [f"tuned: {judged} kernels, faster {len(best)}", *lines] if judged else []
