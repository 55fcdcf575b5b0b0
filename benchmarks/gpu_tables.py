"""Tables of what cards have measured, as Markdown, from the lines that ``on_gpu.py`` has written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from msformer_fast.benchmarks.on_gpu_record import Line
from msformer_fast.benchmarks.options import OPS

Units = dict[str, Line]

NOT_MEASURED = "Not measured."

#: Pixels of the tables.
SIDE = 257

KINDS = ("float32", "tf32", "bfloat16", "float16")


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, or nothing where it has no rows."""
    heads, rows = list(heads), [list(row) for row in rows]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) if rows else ""


def figure(value: float) -> str:
    """Three digits that count, without an exponent."""
    from msformer_fast.benchmarks.report import figure_of

    return figure_of(value)


def ms(row: Line) -> float:
    return 1e3 * statistics.median(row["seconds"])


def times(plain: Line | None, row: Line) -> str:
    """How many times faster than the plain row, round by round: median (least to most)."""
    if plain is None or plain is row or len(plain["seconds"]) != len(row["seconds"]):
        return ""
    ratios = [a / b for a, b in zip(plain["seconds"], row["seconds"], strict=True)]
    return f" ({statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f})"


def rows_of(units: Units, bench: str, kind: str, part: str, side: int = SIDE, compiled: bool = False) -> list[Line]:
    """Timed rows of one case and part, of the same rounds."""
    for name, unit in units.items():
        words = name.split("/")
        if words[:3] == ["rows", bench, kind] and ("compiled" in words) == compiled:
            found = [r for r in unit.get("rows", ()) if r["part"] == part and r["sizes"]["side"] == side]
            if found := [row for row in found if row["seconds"] and row["label"] == "measured"]:
                return found
    return []


def checks(units: Units) -> str:
    """Each op's largest error against float64 in each kind of products, beside what is allowed."""
    lines = []
    for op in OPS:
        cells = []
        for kind in KINDS:
            found = [c for n, u in units.items() if n.startswith(f"correct/{op}/{kind}") for c in u.get("checks", ())]
            cells.append(_errors(found))
        if any(cell != "-" for cell in cells):
            lines.append([f"`{op}`", *cells])
    return table(("largest error, of what is allowed", *KINDS), lines)


def _errors(found: list[Line]) -> str:
    if not found:
        return "-"
    failed = [each for each in found if each["error"] is None]
    if failed:
        return "does not run"
    worst = max(found, key=lambda each: each["error"] / each["allowed"])
    bits = "" if all(each["same_bits_twice"] for each in found) else ", two runs differ"
    wrong = "" if all(each["ok"] for each in found) else ", **wrong**"
    return f"{worst['error']:.1e} of {worst['allowed']:.1e}{bits}{wrong}"


def whole(units: Units) -> str:
    """Step and image: a line for each, a column for each provider."""
    lines, names = [], ("triton", "triton-ieee", "triton-lean", "triton-captured", "triton-lean-captured")
    for bench, part in (("step", "step"), ("image", "image")):
        for kind in KINDS:
            for side in (SIDE, 513):
                by = {row["provider"]: row for row in rows_of(units, bench, kind, part, side)}
                if not by:
                    continue
                plain = by.get("reference")
                cells = [f"{figure(ms(by[n]))}{times(plain, by[n])}" if n in by else "-" for n in ("reference", *names)]
                late = {row["provider"]: row for row in rows_of(units, bench, kind, part, side, compiled=True)}
                inductor = late.get("compiled")
                cells.append(f"{figure(ms(inductor))}{times(late.get('reference'), inductor)}" if inductor else "-")
                lines.append([f"{bench} {side}, {kind}", *cells])
    heads = (
        "ms",
        "plain PyTorch",
        "kernels",
        "IEEE products",
        "lean",
        "CUDA graphs",
        "lean, CUDA graphs",
        "`torch.compile`",
    )
    return table(heads, lines)


def ops(units: Units) -> str:
    """Each op, forward and backward, beside plain code and its rivals, with its share of the floor."""
    lines = []
    for op in OPS:
        for kind in KINDS:
            by = {row["provider"]: row for row in rows_of(units, op, kind, "both")}
            if "triton" not in by:
                continue
            own = by["triton"]
            plain = by.get("reference") or by.get("sdpa")
            share = f"{own['floor_seconds'] * 1e5 / ms(own):.0f} %" if own["floor_seconds"] else "-"
            known = ("reference", "torch", "torch-lean", "triton", "triton-lean")
            rivals = [f"{name} {figure(ms(row))}" for name, row in by.items() if name not in known and row is not plain]
            cells = [figure(ms(plain)) if plain else "-", f"{figure(ms(own))}{times(plain, own)}", share]
            lines.append([f"`{op}`, {kind}", *cells, "; ".join(rivals) or "-", str(own["launches"] or "-")])
    return table(("forward and backward, ms", "plain", "kernels", "of the floor", "rivals", "launches"), lines)


def tuning(units: Units) -> str:
    """The best candidate of every kernel that was judged."""
    lines = []
    for unit in units.values():
        found: dict[str, Any] = unit.get("found") or {}
        timed = [each for each in found.get("candidates", ()) if "gain" in each]
        if not timed:
            continue
        best = max(timed, key=lambda each: each["gain"])
        gain = f"{best['gain']:.2f} ({best['low']:.2f} to {best['high']:.2f})"
        verdict = "faster" if best["faster"] else "within noise" if best["gain"] > 1 else "slower"
        name = f"`{found['op']}` {found['part']}, {found['kind']}"
        lines.append([name, str(tuple(found["before"])), _words(best["settings"]), gain, verdict])
    return table(("kernel", "now", "best candidate", "times faster", ""), lines)


def _words(settings: Line) -> str:
    grid = f", grid x {settings['grid']:g}" if settings["grid"] != 1 else ""
    stages = f", {settings['stages']} stages" if settings["stages"] else ""
    return f"{tuple(settings['row'])}{stages}{grid}"


#: Name of a marked part of a page: what stands there for one card.
PARTS: dict[str, Callable[[Units], str]] = {"checks": checks, "whole": whole, "ops": ops, "tuning": tuning}


def text_of(part: str, cards: dict[str, Units]) -> str:
    """What stands between the marks of a part: a heading and a table for each card that has rows there."""
    found = []
    for units in cards.values():
        if drawn := PARTS[part](units):
            line = next(iter(units.values()))
            found.append(f"{line['card']}, torch {line['torch']}, triton {line['triton']}:\n\n{drawn}")
    return "\n\n".join(found) or NOT_MEASURED
