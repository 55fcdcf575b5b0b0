"""Figures of measured rows: roofline, time, ratios and memory, drawn with matplotlib, and as SVG for a page."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.records import Ratio, Results, Row, ratio
from msformer_fast.look import GREY, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Stands for the colour of the page's text, which only the page knows: it may be light or dark.
INK = "#0a0b0c"

#: Colour and marker of the package's own providers: one colour a backend, as colour-blind people tell them apart, one
#: marker a provider.
OWN = {
    "reference": (INK, "o"),
    "torch": (PALETTE["blue"], "s"),
    "torch-lean": (PALETTE["blue"], "D"),
    "native": (PALETTE["reddish purple"], ">"),
    "native-ieee": (PALETTE["reddish purple"], "h"),
    "native-high": (PALETTE["reddish purple"], "8"),
    "triton": (PALETTE["vermilion"], "^"),
    "triton-lean": (PALETTE["orange"], "v"),
    "triton-ieee": (PALETTE["yellow"], "H"),
    "triton-captured": (PALETTE["vermilion"], "P"),
    "triton-lean-captured": (PALETTE["orange"], "<"),
    "compiled": (PALETTE["bluish green"], "p"),
}

#: Those of all others, in turn; the two lengths share no divisor, so that pairs repeat late. Two of these markers are
#: also those of providers that only a step has, which has no others.
COLOURS = (PALETTE["sky blue"], GREY, PALETTE["bluish green"])
MARKERS = ("X", "*", "h", "d", "8")

#: Between names beside each other, as a share of the axes' width.
APART = 0.032

RC: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **{"font.size": 10, "axes.titlesize": 10, "grid.color": GREY, "grid.alpha": 0.35, "grid.linewidth": 0.6},
    **{"axes.grid": True, "axes.axisbelow": True, "lines.markersize": 6, "lines.linewidth": 1.4},
    **{"lines.markeredgecolor": INK, "lines.markeredgewidth": 0.5},  # seen on light and dark, whatever the colour
    **{"svg.hashsalt": "msformer_fast", "legend.frameon": False, "text.parse_math": False},
}

Styles = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Plot:
    """A figure, and what it is called; ``name`` is a word, for identifiers."""

    name: str
    title: str
    caption: str
    figure: Figure


def case_order(case: Case) -> tuple[Any, ...]:
    """Sorts float32 before the others, then the largest side first."""
    return (case.dtype != "float32", case.dtype, -case.get("side"), -case.get("channels"), case.sizes, case.device)


def by_bench(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """In the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.bench, []).append(row)
    return found


def whole(rows: Sequence[Row]) -> list[Row]:
    """Rows of one benchmark that are of its part "both", or of its last."""
    parts = [row.part for row in rows]
    part = "both" if "both" in parts else parts[-1]
    return [row for row in rows if row.part == part]


def largest(rows: Sequence[Row]) -> list[Row]:
    """Rows of one benchmark that are of its largest case, at float32 where it has that."""
    case = min((row.case for row in rows), key=case_order)
    return [row for row in rows if row.case == case]


def series(rows: Sequence[Row]) -> list[Row]:
    """Rows of one benchmark in which only the side varies: those with the most sides, at float32 where it has that."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.dtype != "float32"):
        fixed = tuple(item for item in sorted(row.sizes.items()) if item[0] != "side")
        found.setdefault((row.dtype != "float32", row.dtype, fixed), []).append(row)
    return max(found.items(), key=lambda item: (not item[0][0], len({row.sizes.get("side") for row in item[1]})))[1]


def styles_of(rows: Iterable[Row]) -> Styles:
    """Colour and marker of every provider, the package's own first."""
    present = dict.fromkeys(row.provider for row in rows)
    others = [name for name in present if name not in OWN]
    pairs = [(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(len(others))]
    return {name: OWN[name] for name in OWN if name in present} | dict(zip(others, pairs, strict=True))


def plots_of(results: Results) -> list[Plot]:
    """Every figure that the measured rows have data for.

    Raises:
        ImportError: there is no matplotlib.
    """
    import matplotlib

    rows = [row for row in results.rows if row.label == "measured"]
    styles = styles_of(rows)
    with matplotlib.rc_context(RC):
        made = [
            _roofline(rows, styles, results.environment.get("ceilings")),
            _against_side(rows, styles, _TIME, lambda row: 1e3 * row.median if row.seconds else None, floor=True),
            _ratios(rows, styles),
            _against_side(rows, styles, _MEMORY, lambda row: row.peak_bytes / 1e6 if row.peak_bytes else None),
        ]
    return [plot for plot in made if plot is not None]


def svg(plot: Plot) -> str:
    """The figure as an SVG element in the page's own text colour, without a reference to anything outside of it."""
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(RC):
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    # Identifiers are the page's, and the same in every figure.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{plot.name}-", text)
    name = escape(f"{plot.title}. {plot.caption}")
    return text.replace(INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


_TIME = ("time", "Time against side", "median time (ms)", "Dashed: the floor at this machine's measured ceilings.")
_MEMORY = ("memory", "Peak memory against side", "peak memory (MB)", "The most held above the start of the call.")


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, styles: Styles, present: set[str], lines: Sequence[tuple[str, Any]]) -> None:
    """Below the axes: providers that are present, then grey lines by name and dashes."""
    from matplotlib.lines import Line2D

    shown = [(name, *style) for name, style in styles.items() if name in present]
    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, colour, marker in shown]
    handles += [Line2D([], [], color=GREY, linestyle=dashes, label=name) for name, dashes in lines]
    columns = max(1, int(figure.get_figwidth() // 2.1))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)))


def _log_axis(axes: Axes, which: str, values: Sequence[float], ticks: Sequence[float] | None = None) -> None:
    """A log axis around the values, ticks in plain numbers: as given, or some of every decade, more on short ones."""
    middle = math.sqrt(min(values) * max(values))
    reach = 1.25 * max(math.sqrt(max(values) / min(values)), 2.0 if ticks is None else 1.1)
    low, high = middle / reach, middle * reach
    if ticks is None:
        steps = (1, 1.5, 2, 3, 5, 7) if high / low < 12 else (1, 2, 5) if high / low < 150 else (1,)
        decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    getattr(axes, f"set_{which}ticks")(ticks, labels=[f"{tick:.12g}" for tick in ticks])
    getattr(axes, f"set_{which}ticks")([], minor=True)


def _apart(values: Iterable[float], factor: float) -> list[float]:
    """Those that are at least so many times the one kept before."""
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value >= factor * kept[-1]:
            kept.append(value)
    return kept


def _against_side(
    rows: Sequence[Row],
    styles: Styles,
    names: tuple[str, str, str, str],
    value: Callable[[Row], float | None],
    floor: bool = False,
) -> Plot | None:
    """One small figure a benchmark, one line a provider; ``floor``: with the least time, dashed."""
    panels = {}
    for bench, found in by_bench(rows).items():
        found = [row for row in series(whole(found)) if row.sizes.get("side") and value(row)]
        if found:
            panels[bench] = sorted(found, key=lambda row: row.sizes["side"])
    if not panels:
        return None
    name, title, label, caption = names
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = _new_figure(max(5.5, 3.5 * columns), 3.1 * lines + 0.6)
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, (bench, found) in zip(grid, panels.items(), strict=False):
        drawn: list[float] = []
        for provider, (colour, marker) in styles.items():
            own = [row for row in found if row.provider == provider]
            values = [value(row) or math.nan for row in own]
            axes.plot([row.sizes["side"] for row in own], values, color=colour, marker=marker)
            drawn += values
        least = {row.sizes["side"]: 1e3 * row.floor_seconds for row in found if row.floor_seconds} if floor else {}
        axes.plot(list(least), list(least.values()), color=GREY, linestyle="--", marker="_")
        sides = [row.sizes["side"] for row in found]
        _log_axis(axes, "x", sides, _apart(sides, 1.3))
        _log_axis(axes, "y", drawn + list(least.values()))
        fixed = [f"{size} {number}" for size, number in found[0].sizes.items() if size != "side"]
        axes.set_title(f"{bench}, {found[0].part}\n{', '.join([*fixed, found[0].dtype])}")
        axes.set_xlabel("side (pixels)")
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.supylabel(label, fontsize=10)
    _legend(figure, styles, {row.provider for found in panels.values() for row in found}, [("floor", "--")] * floor)
    return Plot(name, title, caption, figure)


def _roofline(rows: Sequence[Row], styles: Styles, ceilings: dict[str, Any] | None) -> Plot | None:
    points = [
        (row, row.floor_flops / row.floor_bytes, row.floor_flops / row.median / 1e9)
        for found in by_bench(rows).values()
        for row in largest(whole(found))
        if row.part in ("both", "step") and row.seconds and row.floor_flops and row.floor_bytes
    ]
    if not points:
        return None
    figure = _new_figure(8.5, 6.5)
    axes = figure.subplots()
    across, up = [x for _, x, _ in points], [y for _, _, y in points]
    lines = []
    if ceilings is not None:
        bandwidth = ceilings["bandwidth"] / 1e9
        dtypes = dict.fromkeys(row.dtype for row, _, _ in points)
        peaks = {dtype: ceilings["operations"][dtype] / 1e9 for dtype in dtypes if dtype in ceilings["operations"]}
        ridges = [peak / bandwidth for peak in peaks.values()]
        across += [min(across + ridges) / 2, 2 * max(across + ridges)]
        up += peaks.values()
        ends = min(across), max(ridges, default=max(across))
        axes.plot(ends, [bandwidth * x for x in ends], color=GREY, linestyle="--")
        lines = [(f"memory, {bandwidth:.4g} GB/s", "--")]
        for (dtype, peak), dashes in zip(peaks.items(), ("-.", ":", "-"), strict=False):
            axes.plot([peak / bandwidth, max(across)], [peak, peak], color=GREY, linestyle=dashes)
            lines.append((f"{dtype} products, {peak:.4g} Gflop/s", dashes))
    for row, x, y in points:
        colour, marker = styles[row.provider]
        axes.plot([x], [y], color=colour, marker=marker, linestyle="", markersize=8)
    _log_axis(axes, "x", across)
    _log_axis(axes, "y", up)
    _name_columns(axes, {row.bench: x for row, x, _ in points})
    axes.set_xlabel("operations of the floor per byte of the floor (flop/byte)")
    axes.set_ylabel("achieved operations (Gflop/s)")
    _legend(figure, styles, {row.provider for row, _, _ in points}, lines)
    caption = "One column a benchmark, at its largest case: the floor's operations over the median time."
    return Plot("roofline", "Roofline", caption, figure)


def _name_columns(axes: Axes, places: dict[str, float]) -> None:
    """Names above the axes, moved apart where columns are close, each with a line to its column."""
    low, high = axes.get_xlim()
    names = sorted(places, key=lambda name: places[name])
    at = [math.log(places[name] / low) / math.log(high / low) for name in names]
    rightwards = itertools.accumulate(at, lambda before, x: max(x, before + APART))
    leftwards = list(itertools.accumulate(reversed(at), lambda before, x: min(x, before - APART)))
    line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0, "relpos": (0.5, 0)}
    how: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "axes fraction",
        "ha": "center",
        "va": "bottom",
        "rotation": 90,
    }
    for name, x, right, left in zip(names, at, rightwards, reversed(leftwards), strict=True):
        axes.axvline(places[name], color=GREY, linewidth=0.7, alpha=0.6, zorder=0.5)
        axes.annotate(name, (x, 1), ((left + right) / 2, 1.08), arrowprops=line, **how)


def _ratios(rows: Sequence[Row], styles: Styles) -> Plot | None:
    lines: list[tuple[str, Ratio | None]] = []  # a heading, or a provider
    for bench, found in by_bench(rows).items():
        named = {row.provider: row for row in largest(whole(found))}
        own = named.get("triton") or named.get("native") or named.get("torch")
        if own is None:
            continue
        against = [(name, ratio(named[name], own)) for name in styles if name in named and name != own.provider]
        known = [(name, spread) for name, spread in against if spread is not None]
        if known:
            lines += [(f"{own.provider} in {bench}, side {own.sizes.get('side', '?')}", None), *known]
    if not lines:
        return None
    figure = _new_figure(9.0, 0.27 * len(lines) + 1.2)
    axes = figure.subplots()
    reached = [1.0]
    for place, (name, spread) in enumerate(lines):
        if spread is not None:
            colour, marker = styles[name]
            axes.plot([spread.least, spread.most], [place, place], color=colour, linewidth=3, alpha=0.5)
            axes.plot([spread.median], [place], color=colour, marker=marker, markersize=8)
            reached += [spread.least, spread.most]
    axes.axvline(1, color=INK, linewidth=1)
    _log_axis(axes, "x", reached)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_yticks(range(len(lines)), labels=[name for name, _ in lines])
    axes.tick_params(axis="y", length=0)
    for label, (_, spread) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if spread is None else "normal")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("their time over its time (how many times faster)")
    caption = "Of the default provider, at each benchmark's largest case. Point: median; bar: least to most of a round."
    return Plot("ratios", "How many times faster", caption, figure)
