"""The report of a benchmark: its figures are those of the rows, its text is escaped, nothing comes from elsewhere."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from msformer_fast import InputError
from msformer_fast.benchmarks.compare import Change
from msformer_fast.benchmarks.plots import OWN, plots_of
from msformer_fast.benchmarks.predict import Prediction
from msformer_fast.benchmarks.records import Refused, Results, Row
from msformer_fast.benchmarks.report import NO_MATPLOTLIB, write_report

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")

CEILINGS = {"bandwidth": 2e10, "operations": {"float32": 1e12}}
ENVIRONMENT = {"msformer_fast": "1.2.3", "processor": "a <fast> one", "threads": 4, "versions": {"torch": "2.9"}}


class Page(HTMLParser):
    """Tables by class, each a list of rows of texts; elements, and all text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append((dict(attrs)["class"] or "", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.tables[-1][1][-1][-1] += data

    def rows(self, name: str) -> list[list[str]]:
        """Of all tables of that class, without headings."""
        return [row for table, rows in self.tables if table == name for row in rows[1:]]


def page_of(folder: Path, results: Results, **more: object) -> Page:
    write_report(results, folder / "report.html", **more)  # type: ignore[arg-type]
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def row_of(provider: str, seconds: list[float], bench: str = "mix_ffn", part: str = "both", **more: object) -> Row:
    sizes = {"side": more.pop("side", 65), "channels": 100}
    dtype = str(more.pop("dtype", "float32"))
    return Row(bench, sizes, dtype, "cpu", provider, part, seconds=seconds, **more)  # type: ignore[arg-type]


def drawn(draw: random.Random, bench: str, providers: tuple[str, ...], part: str = "both") -> list[Row]:
    """Rows at three sides, the smallest first, with a floor."""
    return [
        row_of(
            provider,
            [draw.uniform(1e-3, 9e-3) * side for _ in range(5)],
            bench,
            part,
            side=side,
            peak_bytes=draw.randrange(10**6, 10**8),
            floor_bytes=4000 * side**2,
            floor_flops=80_000 * side**2,
            floor_seconds=1e-6 * side,
        )
        for side in (65, 129, 257)
        for provider in providers
    ]


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def results() -> Results:
    draw = random.Random(3)
    rows = drawn(draw, "mix_ffn", ("reference", "torch", "triton")) + drawn(
        draw, "step", ("torch", "reference"), "step"
    )
    rows += drawn(draw, "cross_scale_attention", ("torch", "sdpa"))
    return Results({**ENVIRONMENT, "ceilings": CEILINGS}, {"quick": True}, rows)


@pytest.mark.usefixtures("no_matplotlib")
def test_a_row_computed_by_hand(tmp_path: Path) -> None:
    counted = {
        "peak_bytes": 5_000_000,
        "floor_bytes": 4_000_000,
        "floor_seconds": 5e-4,
        "launches": 7,
        "error": 1.23e-6,
    }
    rows = [row_of("reference", [4e-3, 4e-3, 3e-3]), row_of("torch", [1e-3, 2e-3, 3e-3], **counted)]
    page = page_of(tmp_path, Results(ENVIRONMENT, {}, rows))
    case = "side 65, channels 100, float32"
    assert page.rows("summary") == [
        [case, "both", "reference", "4.00", "1.00", "1.00 to 1.00", "-", "-", "-", "-", "-"],
        [case, "both", "torch", "2.00", "2.00", "1.00 to 4.00", "5.00", "2.00", "25 %", "7", "1.2e-06"],
    ]


@pytest.mark.usefixtures("no_matplotlib")
def test_every_row_is_there_with_its_own_figures(tmp_path: Path, results: Results) -> None:
    """Ratios are against the benchmark's plain provider, round by round; the largest side stands first."""
    found = page_of(tmp_path, results).rows("summary")
    assert len(found) == len(results.rows)
    sides = [int(re.findall(r"side (\d+)", cells[0])[0]) for cells in found]
    assert sides == [257] * 3 + [129] * 3 + [65] * 3 + 2 * ([257] * 2 + [129] * 2 + [65] * 2)
    benches = ["mix_ffn"] * 9 + ["step"] * 6 + ["cross_scale_attention"] * 6
    for bench, side, cells in zip(benches, sides, found, strict=True):
        beside = {row.provider: row for row in results.rows if row.bench == bench and row.sizes["side"] == side}
        row, plain = beside[cells[2]], beside["sdpa" if bench == "cross_scale_attention" else "reference"]
        ratios = np.array(plain.seconds) / np.array(row.seconds)
        middle = np.median(row.seconds)
        least, most = cells[5].split(" to ")
        shown = [cells[3], cells[4], least, most, cells[6], cells[7]]
        true = [1e3 * middle, np.median(ratios), ratios.min(), ratios.max(), row.peak_bytes / 1e6]
        true.append(4000 * side**2 / middle / 1e9)
        np.testing.assert_allclose(np.array(shown, float), true, rtol=5.1e-3)
        assert cells[8] == f"{1e-6 * side / middle:.0%}".replace("%", " %")


@pytest.mark.usefixtures("no_matplotlib")
def test_other_rounds_and_other_dtypes_are_not_compared(tmp_path: Path) -> None:
    rows = [row_of("torch", [1.0, 1.0], dtype="bfloat16", side=513), row_of("reference", [1.0, 1.0])]
    rows += [row_of("torch", [1.0, 1.0, 1.0]), row_of("triton", [])]
    found = page_of(tmp_path, Results(ENVIRONMENT, {}, rows)).rows("summary")
    assert [(cells[2], cells[3], cells[4]) for cells in found] == [
        ("reference", "1000", "1.00"),
        ("torch", "1000", "-"),
        ("triton", "-", "-"),
        ("torch", "1000", "-"),  # bfloat16 stands last
    ]


@pytest.mark.usefixtures("no_matplotlib")
@pytest.mark.parametrize("label", ["dry run", "predicted"])
def test_a_row_that_is_not_measured_is_marked(tmp_path: Path, label: str) -> None:
    rows = [row_of("reference", [1.0]), row_of("torch", [1.0], label=label)]
    page = page_of(tmp_path, Results(ENVIRONMENT, {}, rows))
    assert [cells[2] for cells in page.rows("summary")] == ["reference", f"torch {label}"]
    assert page.rows("summary")[1][4] == "-"
    assert ("class", "mark") in page.attributes and f"{label} 1 of 2 rows, no figure of speed" in page.text


@pytest.mark.usefixtures("no_matplotlib")
def test_an_empty_run_without_matplotlib(tmp_path: Path) -> None:
    page = page_of(tmp_path, Results({}, {}))
    assert "No rows." in page.text and NO_MATPLOTLIB in page.text
    assert "svg" not in page.tags and page.rows("summary") == []
    assert "earlier run" not in page.text and "Predictions" not in page.text


def test_environment_and_options(tmp_path: Path) -> None:
    page = page_of(tmp_path, Results({**ENVIRONMENT, "ceilings": CEILINGS}, {"seconds": 3.0, "ops": ["a", "b"]}))
    facts = dict(row for name, rows in page.tables if name == "facts" for row in rows)
    assert facts == {
        "processor": "a <fast> one",
        "msformer fast": "1.2.3",
        "threads": "4",
        "versions": "torch 2.9",
        "measured memory bandwidth, GB/s": "20.0",
        "measured products, Gflop/s": "float32 1000",
        "seconds": "3.0",
        "ops": "a, b",
    }


@pytest.mark.usefixtures("no_matplotlib")
def test_changes(tmp_path: Path) -> None:
    rows = [row_of(name, [1.0]) for name in ("reference", "torch", "triton", "compiled")]
    ratios = ((0.5, "faster"), (1.02, "same"), (1.3, "slower"), (1.6, "slower"))
    changes = [Change(row, r, r - 0.1, r + 0.1, verdict) for row, (r, verdict) in zip(rows, ratios, strict=True)]
    page = page_of(tmp_path, Results(ENVIRONMENT, {}, rows), changes=changes)
    case = ["mix_ffn", "side 65, channels 100", "float32", "both"]
    assert page.rows("changes") == [
        ["slower", "1.60", "1.50 to 1.70", *case, "compiled"],
        ["slower", "1.30", "1.20 to 1.40", *case, "triton"],
        ["faster", "0.500", "0.400 to 0.600", *case, "reference"],
    ]
    assert "1 of 4 rows as before" in page.text
    assert "0 of 0 rows as before" in page_of(tmp_path, Results(ENVIRONMENT, {}), changes=[]).text


@pytest.mark.usefixtures("no_matplotlib")
def test_predictions(tmp_path: Path) -> None:
    of = ("step", {"side": 257}, "float32", "step")
    predictions = [
        Prediction("A", *of, 2e-3, 8_000_000, 4_000_000, 10, 12, 64, "16/64", "memory"),
        Prediction("B", *of, 1.5e-4, 8_000_000, 4_000_000, 10, 12, 128, "16/64", "products"),
        Prediction("A", "image", {"side": 65}, "float32", "image", 1.0, 10**6, 10**6, 10, 0, None, None, "memory"),
    ]
    page = page_of(tmp_path, Results(ENVIRONMENT, {}), predictions=predictions)
    assert [rows[0][-2:] for name, rows in page.tables if name == "predictions"] == [["A, ms", "B, ms"]]
    first = ["step", "step", "side 257, float32", "8.00", "4.00", "12", "A: 64; B: 128", "16/64"]
    last = ["image", "image", "side 65, float32", "1.00", "1.00", "-", "-", "-"]
    assert page.rows("predictions") == [
        [*first, "predicted, at least 2.00 memory", "predicted, at least 0.150 products"],
        [*last, "predicted, at least 1000 memory", "-"],
    ]
    assert "No GPU measured these times." in page.text


@needs_matplotlib
def test_text_is_escaped_and_nothing_comes_from_elsewhere(tmp_path: Path, results: Results) -> None:
    bad = r'<script>alert("$\no$")</script>'
    results.rows += [row_of(bad, [1.0] * 5), row_of("torch", [2.0] * 5, bench=bad)]
    results.refused.append(Refused("mix_ffn", {"side": 65}, "float32", bad, f"wrong: {bad}"))
    results.options[bad] = bad
    page = page_of(tmp_path, results)
    assert page.rows("refused") == [["mix_ffn", "side 65", "float32", bad, f"wrong: {bad}"]]
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w+\.|@import|\bsrc=", source)
    assert page.tags.count("svg") == 4 and "details" in page.tags
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    references = {value.removeprefix("#") for name, value in page.attributes if name == "xlink:href"}
    references |= set(re.findall(r"url\(#([^)]*)\)", source))
    assert references and references <= set(identifiers)


@needs_matplotlib
def test_plots_show_the_rows(results: Results) -> None:
    results.rows[0].label = "dry run"  # reference, mix_ffn, side 65
    plots = {plot.name: plot.figure for plot in plots_of(results)}
    assert list(plots) == ["roofline", "time", "ratios", "memory"]
    ffn = [row for row in results.rows if row.bench == "mix_ffn"]
    for name, scaled in (("time", lambda row: 1e3 * np.median(row.seconds)), ("memory", lambda r: r.peak_bytes / 1e6)):
        lines = {line.get_color(): line.get_xydata() for line in plots[name].axes[0].lines}
        for provider in ("reference", "torch", "triton"):
            points = [(r.sizes["side"], scaled(r)) for r in ffn if r.provider == provider and r.label == "measured"]
            np.testing.assert_allclose(lines[OWN[provider][0]], points)
    floor = plots["time"].axes[0].lines[-1]
    np.testing.assert_allclose(floor.get_xydata(), [(side, 1e-3 * side) for side in (65, 129, 257)])

    points = [line.get_xydata()[0] for line in plots["roofline"].axes[0].lines if line.get_linestyle() == "None"]
    largest = [row for row in results.rows if row.sizes["side"] == 257]
    true = [(20, 80_000 * 257**2 / np.median(row.seconds) / 1e9) for row in largest]
    np.testing.assert_allclose(points, true)
    memory, products = plots["roofline"].axes[0].lines[:2]
    np.testing.assert_allclose(memory.get_ydata(), 20 * memory.get_xdata())  # GB/s
    np.testing.assert_allclose(products.get_ydata(), 1000)
    np.testing.assert_allclose([memory.get_xdata()[-1], products.get_xdata()[0]], 50)  # where the ceilings meet

    spreads = [line.get_xdata() for line in plots["ratios"].axes[0].lines]
    named = {(row.bench, row.provider): np.array(row.seconds) for row in largest}
    pairs = [("mix_ffn", "reference", "triton"), ("mix_ffn", "torch", "triton"), ("step", "reference", "torch")]
    pairs.append(("cross_scale_attention", "sdpa", "torch"))
    for index, (bench, other, own) in enumerate(pairs):
        ratios = named[bench, other] / named[bench, own]
        np.testing.assert_allclose(spreads[2 * index], [ratios.min(), ratios.max()])
        np.testing.assert_allclose(spreads[2 * index + 1], [np.median(ratios)])


@needs_matplotlib
def test_a_plot_without_data_is_left_out(tmp_path: Path) -> None:
    rows = [row_of("reference", [1.0, 2.0])]
    assert [plot.name for plot in plots_of(Results({}, {}, rows))] == ["time"]
    rows[0].label = "dry run"
    page = page_of(tmp_path, Results({}, {}, rows))
    assert "svg" not in page.tags and "Plots" not in page.text


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.report\.html: cannot be written"):
        write_report(Results({}, {}), tmp_path / "none" / "report.html")
