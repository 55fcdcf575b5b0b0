"""How the cost grows: seconds and peak memory against pixels, channels, clusters, patches and windows.

    python -m msformer_fast.benchmarks.scaling [--axis pixels] [--seconds 60] [--smallest N] [-o FILE.json]

On a GPU where there is one, with the kernels, else on the CPU, with the strips. All sizes of an axis are timed in turn.
Between neighbours the local exponent ``d log t / d log n`` stands beside that of the work; where they differ by more
than :data:`TOLERANCE` the pair is named. Whether the results are right is the business of ``msformer-fast bench``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msformer_fast.benchmarks.case import Case, Subject
from msformer_fast.benchmarks.clock import Clock, in_turn, look_inside
from msformer_fast.benchmarks.records import Results, Row, environment
from msformer_fast.benchmarks.run import anchor
from msformer_fast.benchmarks.stability_loss import tokens
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.benchmarks.training_step import training_step
from msformer_fast.errors import InputError
from msformer_fast.files import write_json

#: Of an exponent, which noise and the caches move.
TOLERANCE = 0.25

#: Who is measured on which device.
PROVIDER = {"cpu": "torch", "cuda": "triton"}


@dataclass(frozen=True)
class Axis:
    """One size that is varied.

    Attributes:
        name: of the axis; several may share it.
        bench: ``"step"`` or an op, forward and backward.
        varied: name of the size; ``values``: what it takes, rising.
        fixed: the other sizes.
        unit: what the cost is counted by; ``units``: how many of them a case has.
        work: what the time should follow, a sum of ``coefficient * units**power``.
        why: the reason for that, a sentence.
    """

    name: str
    bench: str
    varied: str
    values: tuple[int, ...]
    fixed: Mapping[str, int]
    unit: str
    units: Callable[[Mapping[str, int]], int]
    work: tuple[tuple[float, int], ...]
    why: str

    def case(self, value: int, device: str) -> Case:
        return Case.of(self.bench, {**self.fixed, self.varied: value}, device=device)

    def expected(self, units: Sequence[float]) -> list[float]:
        """Exponents of the work between neighbours."""
        return exponents(units, [sum(c * n**power for c, power in self.work) for n in units])


STEP = {"channels": 100, "clusters": 100, "depth": 2, "patch": 32}

AXES = (
    Axis(
        name="pixels",
        bench="step",
        varied="side",
        values=(65, 97, 129, 193, 257, 385, 513),
        fixed=STEP,
        unit="pixel",
        units=lambda sizes: sizes["side"] ** 2,
        work=((1.0, 1),),
        why="All but the stability loss, which is small, does the same work at every pixel.",
    ),
    *(
        Axis(
            name="channels",
            bench=name,
            varied="channels",
            values=(32, 64, 96, 128, 160, 192, 224, 256),
            fixed={"side": 129},
            unit="channel",
            units=lambda sizes: sizes["channels"],
            work=((1.0, 2),),
            why="Products are channels times channels; what only reads and writes maps grows with the first power.",
        )
        for name in ("mix_ffn", "efficient_attention")
    ),
    Axis(
        name="clusters",
        bench="step",
        varied="clusters",
        values=(16, 32, 64, 100, 128, 256, 512),
        fixed={**STEP, "side": 129},
        unit="cluster",
        units=lambda sizes: sizes["clusters"],
        work=((831.0, 0), (1.0, 1)),
        why="The blocks see no cluster: their products are as many operations as those of the head for 831 clusters.",
    ),
    Axis(
        name="patches",
        bench="stability_loss",
        varied="side",
        values=(65, 97, 129, 193, 257),
        fixed={"channels": 100, "patch": 4},
        unit="patch",
        units=tokens,
        work=((1.0, 2),),
        why="Every patch is compared with every other.",
    ),
    Axis(
        name="windows",
        bench="cross_scale_attention",
        varied="window",
        values=(4, 8, 16, 32),
        fixed={"channels": 96, "side": 257},
        unit="pixel of a side",
        units=lambda sizes: sizes["window"],
        work=((1.0, 2),),
        why="Every token looks at the square of the window's side; in small windows copies weigh more than products.",
    ),
)
NAMES = tuple(dict.fromkeys(axis.name for axis in AXES))


def exponents(sizes: Sequence[float], values: Sequence[float]) -> list[float]:
    """``d log value / d log size`` between neighbours: p everywhere for ``values = c * sizes**p``.

    Raises:
        InputError: the two are not equally many, sizes do not rise, or something is not positive.
    """
    if len(sizes) != len(values):
        raise InputError(f"exponents: values must be as many as sizes; got {len(values)} and {len(sizes)}")
    if any(b <= a for a, b in itertools.pairwise(sizes)):
        raise InputError(f"exponents: sizes must rise; got {list(sizes)}")
    if min((*sizes, *values), default=1) <= 0:
        raise InputError("exponents: sizes and values must be positive")
    logs = [(math.log(size), math.log(value)) for size, value in zip(sizes, values, strict=True)]
    return [(v1 - v0) / (n1 - n0) for (n0, v0), (n1, v1) in itertools.pairwise(logs)]


def measure(axis: Axis, device: str, seconds: float) -> list[Row]:
    """A row for every value of the axis, in order.

    Args:
        seconds: for the rounds of all values together; there are at least three.
    """
    clock, provider = Clock(device, ahead=axis.bench != "step"), PROVIDER[device]
    part = "step" if axis.bench == "step" else "both"
    cases = [axis.case(value, device) for value in axis.values]
    subjects = [_subject(case, provider) for case in cases]
    calls = [(subject.parts[part], subject.before[part]) for subject in subjects]
    for call, before in calls:  # an optimiser's buffers are no part of a step's peak
        before()
        call()
    peaks = [look_inside(device, *pair).peak_bytes for pair in calls]
    times = in_turn(clock, [*calls, (anchor(device), lambda: None)], budget=seconds, least=3)
    for subject in subjects:
        subject.close()
    rows = []
    for case, peak, found in zip(cases, peaks, times, strict=False):
        row = Row(case.bench, dict(case.sizes), case.dtype, device, provider, part)
        row.seconds, row.anchor, row.peak_bytes = found, times[-1], peak
        rows.append(row)
    return rows


def _subject(case: Case, provider: str) -> Subject:
    if case.bench != "step":
        return bench_of(case.bench).prepare(case, provider)
    sizes: dict[str, Any] = {name: case[name] for name in ("side", "channels", "clusters", "depth", "patch")}
    step = training_step(provider, **sizes, device=case.device)
    return Subject({"step": step}, {"step": lambda: None}, results=dict)


def surprises(axis: Axis, rows: Sequence[Row]) -> list[str]:
    """Neighbours whose exponent is not that of the work, a line each."""
    units = [axis.units(row.sizes) for row in rows]
    found = exponents(units, [row.median for row in rows])
    pairs = zip(itertools.pairwise(rows), found, axis.expected(units), strict=True)
    return [
        f"{axis.varied} {a.sizes[axis.varied]} to {b.sizes[axis.varied]}: exponent {seen:.2f}, expected {due:.2f}"
        for (a, b), seen, due in pairs
        if abs(seen - due) > TOLERANCE
    ]


def lines(axis: Axis, rows: Sequence[Row]) -> list[str]:
    """The table of an axis, and what is not as expected under it."""
    units = [axis.units(row.sizes) for row in rows]
    found = ["-", *(f"{value:.2f}" for value in exponents(units, [row.median for row in rows]))]
    due = ["-", *(f"{value:.2f}" for value in axis.expected(units))]
    sizes = ", ".join(f"{name} {size}" for name, size in axis.fixed.items() if name != axis.varied)
    head = f"{axis.bench} by {axis.varied} ({sizes}), "
    table = [head + f"{rows[0].provider} on {rows[0].device}. {axis.why}", ""]
    table.append(f"| {axis.varied} | units | median ms | peak MB | us per {axis.unit} | exponent | expected |")
    table.append("| --- " * 7 + "|")
    for row, count, exponent, expected in zip(rows, units, found, due, strict=True):
        peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"
        table.append(
            f"| {row.sizes[axis.varied]} | {count} | {1e3 * row.median:.3f} | {peak} | {1e6 * row.median / count:.4g} "
            f"| {exponent} | {expected} |"
        )
    return [*table, "", *(surprises(axis, rows) or ["all exponents as expected"]), ""]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=NAMES, help="(default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the rounds of an axis (%(default)s)")
    parser.add_argument("--smallest", type=int, metavar="N", help="only so many sizes of an axis, at least 2")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="also write the rows")
    options = parser.parse_args(arguments)
    if options.smallest is not None and options.smallest < 2:
        parser.error("--smallest must be at least 2: an exponent is between two sizes")
    if options.output is not None and options.output.exists():
        parser.error(f"{options.output} exists already; name another file")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = {"axis": options.axis, "seconds": options.seconds, "smallest": options.smallest}
    results = Results(environment(device), asked)
    for axis in AXES:
        if options.axis in (None, axis.name):
            chosen = dataclasses.replace(axis, values=axis.values[: options.smallest])
            rows = measure(chosen, device, options.seconds)
            print("\n".join(lines(chosen, rows)), flush=True)
            results.rows += rows
    if options.output is not None:
        write_json(options.output, results.to_json())


if __name__ == "__main__":
    main()
