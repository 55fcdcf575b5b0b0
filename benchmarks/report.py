"""A benchmark's results as one HTML page that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msformer_fast.benchmarks.options import NAMES
from msformer_fast.benchmarks.plots import by_bench, case_order, plots_of, svg
from msformer_fast.benchmarks.records import Results, Row, ratio
from msformer_fast.benchmarks.report_style import STYLE
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.files import write_text

if TYPE_CHECKING:
    from msformer_fast.benchmarks.compare import Change
    from msformer_fast.benchmarks.predict import Prediction

DASH = '<td class="n">-</td>'

#: Facts of the environment that come first; others follow.
FIRST = ("card", "processor", "msformer_fast", "commit", "time", "threads", "float32_matmul_precision", "clocks")

NO_MATPLOTLIB = "Plots need matplotlib, which is not installed: pip install 'msformer-fast[bench]'."


def write_report(
    results: Results,
    path: str | Path,
    *,
    changes: Sequence[Change] | None = None,
    predictions: Sequence[Prediction] = (),
) -> None:
    """Write the page: environment, changes, summary, plots, predictions, refused rows.

    Without matplotlib it has no plots, and says so.

    Args:
        changes: against an earlier run; ``None`` where there was none.
        predictions: of cards that nobody has measured.

    Raises:
        InputError: the file cannot be written.
    """
    facts = results.environment
    machine = facts.get("card") or facts.get("processor") or "an unknown machine"
    title = escape(f"Benchmark of msformer_fast {facts.get('msformer_fast', '')} on {machine}")
    parts = [("Environment", [_environment(facts)]), ("Options", [_pairs(results.options.items(), "Options")])]
    if changes is not None:
        parts.append(("Against the earlier run", _changes(changes)))
    parts += [("Summary", _summary(results.rows)), ("Plots", _figures(results))]
    if predictions:
        parts.append(("Predictions", _predictions(predictions)))
    if results.refused:
        parts.append(("Refused", _refused(results)))
    parts = [(name, content) for name, content in parts if content]
    body = [f"<main><h1>{title}</h1>", _contents([name for name, _ in parts])]
    for name, content in parts:
        body += [f'<h2 id="{_identifier(name)}">{escape(name)}</h2>', *content]
    body.append("</main>")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style>"
    )
    lines = ["<!DOCTYPE html>", f'<html lang="en"><head>{head}</head><body>', *body, "</body></html>"]
    write_text(path, "\n".join(lines) + "\n")


def figure_of(value: float) -> str:
    """Three significant digits, all digits before the point, without an exponent where it is not tiny."""
    if not math.isfinite(value) or (value and abs(value) < 1e-4):
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def _identifier(name: str) -> str:
    return "part-" + name.lower().replace(" ", "-")


def _contents(names: Iterable[str]) -> str:
    """Links to the parts of the page."""
    links = "".join(f'<li><a href="#{_identifier(name)}">{escape(name)}</a></li>' for name in names)
    return f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav>'


def _scrolled(content: str, name: str) -> str:
    """What may be wider than the screen: it scrolls by itself, by keys too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{content}</div>'


def _text(value: object, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f"<td{kind}>{escape(str(value))}</td>"


def _number(value: float | None, shown: str | None = None) -> str:
    """A dash where there is none."""
    return DASH if value is None or math.isnan(value) else _text(shown or figure_of(value), "n")


def _table(heads: Iterable[str], rows: Iterable[str], name: str, label: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(row if row.startswith("<tr") else f"<tr>{row}</tr>" for row in rows)
    table = f'<table class="{name}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'
    return _scrolled(table, label or name.capitalize())


def _pairs(pairs: Iterable[tuple[str, object]], name: str) -> str:
    rows = [f'<tr><th scope="row">{escape(str(name))}</th>{_text(_words(value))}</tr>' for name, value in pairs]
    return _scrolled(f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>', name)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    return "-" if value is None else str(value)


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def _environment(facts: dict[str, Any]) -> str:
    names = [name for name in FIRST if name in facts] + [name for name in facts if name not in (*FIRST, "ceilings")]
    pairs = [(name.replace("_", " "), facts[name]) for name in names]
    ceilings = facts.get("ceilings")
    if ceilings is not None:
        pairs.append(("measured memory bandwidth, GB/s", figure_of(ceilings["bandwidth"] / 1e9)))
        products = {dtype: figure_of(value / 1e9) for dtype, value in ceilings["operations"].items()}
        pairs.append(("measured products, Gflop/s", products))
    return _pairs(pairs, "Environment")


def _changes(changes: Sequence[Change]) -> list[str]:
    """Slower first, then faster, the largest change first; then how many stayed."""
    moved = [change for change in changes if change.verdict != "same"]
    moved.sort(key=lambda change: (change.verdict != "slower", -abs(change.ratio - 1)))
    rows = [
        _text(change.verdict)
        + _number(change.ratio)
        + _text(f"{figure_of(change.low)} to {figure_of(change.high)}", "n")
        + "".join(_text(value) for value in (row.bench, _sizes(row.sizes), row.dtype, row.part, row.provider))
        for change in moved
        for row in (change.now,)
    ]
    heads = ("verdict", "times the earlier time", "interval", "bench", "sizes", "dtype", "part", "provider")
    same = f"<p>{len(changes) - len(moved)} of {len(changes)} rows as before, within noise.</p>"
    return [_table(heads, rows, "changes"), same] if rows else [same]


def _summary(rows: Sequence[Row]) -> list[str]:
    """A table for each benchmark, the largest case at float32 first."""
    if not rows:
        return ["<p>No rows.</p>"]
    found = []
    for label in dict.fromkeys(row.label for row in rows if row.label != "measured"):
        count = sum(row.label == label for row in rows)
        found.append(f"<p>{_mark(label)} {count} of {len(rows)} rows, no figure of speed.</p>")
    for bench, own in by_bench(rows).items():
        plain, doc = "reference", ""
        if bench in NAMES:
            plain, doc = bench_of(bench).plain, bench_of(bench).doc
        beside = {(row.case, row.part): row for row in own if row.provider == plain}
        heads = ["case", "part", "provider", "median ms", f"times faster than {plain}", "least to most", "peak MB"]
        heads += ["GB/s of the floor", "of the ceiling", "launches", "error"]
        cells = [
            _summary_row(row, beside.get((row.case, row.part)))
            for row in sorted(own, key=lambda row: case_order(row.case))
        ]
        found += [f"<h3>{escape(bench)}</h3><p>{escape(doc)}</p>", _table(heads, cells, "summary", bench)]
    return found


def _mark(label: str) -> str:
    return f'<strong class="mark">{escape(label)}</strong>'


def _summary_row(row: Row, plain: Row | None) -> str:
    times = ratio(plain, row) if plain is not None else None
    kind, mark = ("", "") if row.label == "measured" else (' class="unmeasured"', f" {_mark(row.label)}")
    cells = [
        _text(f"{_sizes(row.sizes)}, {row.dtype}", "case"),
        _text(row.part),
        f"<td>{escape(row.provider)}{mark}</td>",
        _number(1e3 * row.median),
        _number(None if times is None else times.median),
        DASH if times is None else _number(times.most, f"{figure_of(times.least)} to {figure_of(times.most)}"),
        _number(row.peak_bytes and row.peak_bytes / 1e6),
        _number(row.gigabytes_a_second),
        _number(row.share, None if row.share is None else f"{100 * row.share:.0f} %"),
        _number(row.launches, str(row.launches)),
        _number(row.error, None if row.error is None else f"{row.error:.1e}"),
    ]
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _figures(results: Results) -> list[str]:
    try:
        plots = plots_of(results)
    except ImportError:
        return [f"<p>{NO_MATPLOTLIB}</p>"]
    found = ["<p>Measured rows only.</p>"] if plots else []
    for plot in plots:
        drawn = _scrolled(svg(plot), plot.title)
        found.append(
            f"<figure><h3>{escape(plot.title)}</h3>{drawn}<figcaption>{escape(plot.caption)}</figcaption></figure>"
        )
    return found


def _predictions(predictions: Sequence[Prediction]) -> list[str]:
    """A row for each op, part and sizes; a column for each card."""
    cards = list(dict.fromkeys(prediction.card for prediction in predictions))
    found: dict[tuple[Any, ...], list[Prediction]] = {}
    for prediction in predictions:
        key = prediction.bench, prediction.part, tuple(prediction.sizes.items()), prediction.dtype
        found.setdefault(key, []).append(prediction)
    rows = []
    for (bench, part, sizes, dtype), group in found.items():
        cells = [_text(bench), _text(part), _text(f"{_sizes(dict(sizes))}, {dtype}", "case")]
        cells.append(_fact({p.card: figure_of(p.moved_bytes / 1e6) for p in group}))
        cells.append(_fact({p.card: figure_of(p.floor_bytes / 1e6) for p in group}))
        cells.append(_fact({p.card: p.launches or None for p in group}))
        cells += [_fact({p.card: getattr(p, name) for p in group}) for name in ("registers", "occupancy")]
        named = {prediction.card: prediction for prediction in group}
        cells += [_predicted(named.get(card)) for card in cards]
        rows.append("".join(cells))
    heads = ["op", "part", "sizes", "MB moved", "MB floor", "launches", "registers", "occupancy"]
    heads += [f"{card}, ms" for card in cards]
    warning = (
        "<p><strong>No GPU measured these times.</strong> They follow from the bytes and operations of the kernels"
        " and the data sheets of the cards; a real run takes at least as long.</p>"
    )
    return [warning, _table(heads, rows, "predictions")]


def _fact(by_card: dict[str, object]) -> str:
    """One value where the cards agree, else each card's."""
    if len(set(by_card.values())) == 1:
        return _text(_words(next(iter(by_card.values()))), "n")
    return _text("; ".join(f"{card}: {_words(value)}" for card, value in by_card.items()))


def _predicted(prediction: Prediction | None) -> str:
    if prediction is None:
        return DASH
    ms, bound = figure_of(1e3 * prediction.seconds), escape(prediction.bound)
    return f'<td class="n"><small>predicted, at least</small> {ms} <small>{bound}</small></td>'


def _refused(results: Results) -> list[str]:
    rows = [
        "".join(_text(value) for value in (row.bench, _sizes(row.sizes), row.dtype, row.provider))
        + _text(row.reason, "reason")
        for row in results.refused
    ]
    table = _table(("bench", "sizes", "dtype", "provider", "reason"), rows, "refused")
    return [f"<details><summary>Rows that are not reported: {len(rows)}</summary>{table}</details>"]
