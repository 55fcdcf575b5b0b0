"""What the package draws is readable: contrast, colours that colour-blind people tell apart, keys, phones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast.benchmarks.plots import INK, OWN
from msformer_fast.benchmarks.records import Results
from msformer_fast.benchmarks.report import write_report
from msformer_fast.cohort.index import index_page
from msformer_fast.colour_vision import LACKING, distances, distinct_colours, linear, seen
from msformer_fast.contact_sheet import MASK_COLOUR, TRUTH_COLOUR
from msformer_fast.look import PALETTE, TOKENS, style

from .bench.test_report import CEILINGS, ENVIRONMENT, drawn
from .browser import Tab
from .test_cohort_index import ENTRIES, JPEG

#: Colours nearer than this in CIE Lab are one to a reader of a small mark.
APART = 15.0
PHONE, DESKTOP = (360, 740), (1280, 800)


def rgb(*colours: str) -> np.ndarray:
    return np.array([list(bytes.fromhex(colour[1:])) for colour in colours], float)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    light = sorted(linear(rgb(one, other)) @ [0.2126, 0.7152, 0.0722] + 0.05)
    return float(light[1] / light[0])


def nearest(*colours: str) -> float:
    """The least distance of any two, to any kind of sight."""
    apart = distances(rgb(*colours))
    return float(apart[np.triu_indices(len(colours), 1)].min())


def results() -> Results:
    draw = random.Random(0)
    rows = drawn(draw, "mix_ffn", ("reference", "torch", "native", "compiled"))
    rows += drawn(draw, "step", ("reference", "torch", "native"), "step")
    return Results({**ENVIRONMENT, "ceilings": CEILINGS}, {"seconds": 1.0}, rows)


@pytest.fixture
def report(tmp_path: Path) -> str:
    write_report(results(), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("ground", TOKENS)
def test_readable_contrast(ground: str) -> None:
    colours = TOKENS[ground]
    pairs = [(front, back) for front in ("text", "quiet", "accent") for back in ("page", "card")]
    pairs += [("on-accent", "accent"), ("doubt", "doubt-back"), ("bad", "bad-back"), ("on-well", "well")]
    for front, back in pairs:
        assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    assert contrast(colours["edge"], colours["card"]) >= 3  # borders of controls


def test_both_grounds_have_all_colours_and_both_pages_have_them(report: str) -> None:
    assert TOKENS["light"].keys() == TOKENS["dark"].keys()
    assert style() in index_page([], title="run", settings={})
    assert style(dark_on_screens_only=True) in report


def test_colours_are_told_apart() -> None:
    """Of the backends in plots, and of truth and mask on a contact sheet, by every kind of sight."""
    lines = {colour.replace(INK, TOKENS["light"]["text"]) for colour, _ in OWN.values()}
    assert lines - {TOKENS["light"]["text"]} <= set(PALETTE.values())
    assert nearest(*lines) > APART
    sheet = ["#" + bytes(colour).hex() for colour in (TRUTH_COLOUR, MASK_COLOUR)]
    assert set(sheet) <= set(PALETTE.values()) and nearest(*sheet) > APART


def test_clusters_are_told_apart() -> None:
    """The few that are left at the end of a run, whichever they are: any two by every kind of sight."""
    palette = distinct_colours()
    apart = distances(palette.astype(float))[:100, :100]
    assert apart[np.triu_indices(100, 1)].min() > 4
    assert apart[:12, :12][np.triu_indices(12, 1)].min() > APART


def test_the_measure_tells_what_is_not_apart() -> None:
    """Red and green of one lightness, to who lacks the green cones."""
    seen_by = np.linalg.norm(np.diff(seen(rgb("#b05050", "#708040")), axis=1)[:, 0], axis=-1)
    of = dict(zip(LACKING, seen_by, strict=True))
    assert of["none"] > 2 * APART > of["green"] and nearest("#b05050", "#708040") == min(seen_by)
    assert contrast("#ffffff", "#000000") == pytest.approx(21)


def test_every_provider_has_a_marker_of_its_own() -> None:
    assert len({marker for _, marker in OWN.values()}) == len(OWN)


def focus(page: Any) -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")


def ring(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.activeElement).outlineStyle")


def test_a_report_by_keyboard_on_phone_and_desktop(tab: Tab, report: str, tmp_path: Path) -> None:
    page = tab.open(tmp_path / "r.html", report)
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(focus(page))
        assert ring(page) == "solid"
    assert reached[:3] == ["Environment", "Options", "Summary"]
    page.get_by_role("link", name="Summary").press("Enter")
    assert page.url.endswith("#part-summary")
    for width, height in (PHONE, DESKTOP):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    wide = page.get_by_role("region", name="mix_ffn")
    wide.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")


def test_plots_have_a_text_in_their_place(tab: Tab, report: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tab.open(tmp_path / "r.html", report)
    assert page.get_by_role("img").count() == 4
    assert page.get_by_role("img", name="Time against side.").count() == 1


def test_pictures_of_a_run_have_a_text_in_their_place(tab: Tab, tmp_path: Path) -> None:
    page = tab.open(tmp_path / "index.html", index_page(ENTRIES, title="run", settings={}))
    page.wait_for_function("document.images.length > 0")
    assert JPEG and page.get_by_role("img", name="scan2 with the outline of its mask, doubtful").count() == 1
    assert page.evaluate("[...document.images].every((each) => each.alt)")
    for width, height in (PHONE, DESKTOP):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for _ in range(4):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('a, button, summary, [type=search]')"):
                assert ring(page) == "solid"
