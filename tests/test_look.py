"""What the package draws is readable: contrast, colours that colour-blind people tell apart, keys, phones."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast.benchmarks.plots import INK, OWN
from msformer_fast.benchmarks.records import Results
from msformer_fast.benchmarks.report import write_report
from msformer_fast.cohort.index import index_page
from msformer_fast.contact_sheet import MASK_COLOUR, TRUTH_COLOUR
from msformer_fast.look import PALETTE, TOKENS, style

from .bench.test_report import CEILINGS, ENVIRONMENT, drawn
from .browser import Tab
from .test_cohort_index import ENTRIES, JPEG

#: Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009): what people see of linear RGB who lack one kind of cone.
LACKING = {
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
#: Colours nearer than this in CIE Lab are one to a reader of a small mark.
APART = 15.0
PHONE, DESKTOP = (360, 740), (1280, 800)


def linear(colour: str) -> np.ndarray:
    parts = np.array(list(bytes.fromhex(colour[1:]))) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    light = sorted(linear(each) @ [0.2126, 0.7152, 0.0722] + 0.05 for each in (one, other))
    return float(light[1] / light[0])


def lab(values: np.ndarray) -> np.ndarray:
    """CIE Lab of linear sRGB, by its white of D65."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    scaled = np.array(matrix) @ np.clip(values, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: str, other: str, lacking: str | None) -> float:
    sight = np.array(LACKING[lacking]) if lacking else np.eye(3)
    return float(np.linalg.norm(lab(sight @ linear(one)) - lab(sight @ linear(other))))


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


@pytest.mark.parametrize("lacking", [None, *LACKING])
def test_colours_are_told_apart(lacking: str | None) -> None:
    """Of the backends in plots, and of truth and mask on a contact sheet."""
    lines = {colour.replace(INK, TOKENS["light"]["text"]) for colour, _ in OWN.values()}
    assert lines - {TOKENS["light"]["text"]} <= set(PALETTE.values())
    for one, other in itertools.combinations(sorted(lines), 2):
        assert distance(one, other, lacking) > APART, (one, other)
    sheet = ["#" + bytes(colour).hex() for colour in (TRUTH_COLOUR, MASK_COLOUR)]
    assert set(sheet) <= set(PALETTE.values()) and distance(*sheet, lacking) > APART


def test_the_measure_tells_what_is_not_apart() -> None:
    """Red and green of one lightness, to who lacks the green cones."""
    assert distance("#b05050", "#708040", None) > 2 * APART > distance("#b05050", "#708040", "green")
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
