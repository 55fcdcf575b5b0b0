"""The site: built without a warning, whole, and walked through in a browser as a stranger would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .browser import Tab
from .conftest import ROOT

sys.path.append(str(ROOT / "docs"))
from make_site import faults_of

TOOLS = ("sphinx", "furo", "myst_parser", "sphinx_copybutton")
PAGES = ("index", "quick-start", "how-to/image", "explanation/method", "reference/ops", "masks", "results/step")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in TOOLS:
        pytest.importorskip(tool, reason="needs the tools of the site: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "docs" / "make_site.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no fault" in done.stdout
    return folder


def test_it_is_built_without_a_warning_and_whole(site: Path) -> None:
    assert (site / "objects.inv").exists()
    text = (site / "explanation" / "method.html").read_text(encoding="utf-8")
    assert text.count("<math") > 30 and not re.search(r"<script[^>]*mathjax", text, re.IGNORECASE)
    lines = (site / "results" / "step.html").read_text(encoding="utf-8")
    assert re.search(r"commit <code[^>]*>.*?[0-9a-f]{7}", lines) and "msformer_fast.benchmarks.ledger" in lines
    help_text = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert help_text.count("usage: msformer-fast") == 6


@pytest.fixture
def walk(tab: Tab, site: Path) -> Any:
    tab.page.goto((site / "index.html").as_uri())
    return tab.page


def test_from_the_first_page_to_a_mask_a_swap_and_a_report(walk: Any) -> None:
    main = walk.locator("article")
    main.get_by_role("link", name="Quick start").click()
    assert "msformer-fast demo" in main.inner_text()
    main.get_by_role("link", name="what to do when the mask is wrong").click()
    assert walk.url.endswith("how-to/image.html#when-the-mask-is-wrong")
    assert "IMAGE_overlay.png" in main.inner_text()
    walk.go_back()
    main.get_by_role("link", name="Swap modules in a model").click()
    assert "mf.accelerate(model)" in main.inner_text() and "DiceLoss" in main.inner_text()
    walk.locator(".sidebar-tree").get_by_role("link", name="Report a problem").click()
    assert "msformer-fast doctor" in main.inner_text() and "Never attach images of patients" in main.inner_text()
    main.get_by_role("link", name="these questions").click()
    assert "A gradient is wrong on my card" in main.inner_text()


def test_a_name_is_found_by_searching(walk: Any) -> None:
    walk.get_by_role("textbox", name="Search").fill("stability_loss")
    walk.keyboard.press("Enter")
    walk.locator("#search-results a").first.wait_for()
    found = walk.locator("#search-results li a")
    assert any("ops.stability_loss" in text for text in found.all_text_contents())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_fit_a_phone_and_a_desktop(tab: Tab, site: Path, width: int, scheme: str) -> None:
    tab.page.set_viewport_size({"width": width, "height": 800})
    tab.page.emulate_media(color_scheme=scheme)
    for name in PAGES:
        tab.page.goto((site / f"{name}.html").as_uri())
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert tab.page.evaluate("[...document.images].every((each) => each.complete && each.naturalWidth > 0)"), name
        assert tab.page.locator("h1").count() == 1, name


def test_the_first_key_leads_past_the_navigation(walk: Any) -> None:
    walk.keyboard.press("Tab")
    assert walk.evaluate("document.activeElement.textContent").strip() == "Skip to content"


def test_without_javascript_the_pages_are_there(browser: Any, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "explanation" / "method.html").as_uri())
    text = page.locator("article").inner_text()
    context.close()
    assert "Efficient attention" in text and "softmax" in text


def made_up(folder: Path, body: str, head: str = "") -> list[str]:
    (folder / "a.html").write_text(f'<html lang="en"><head>{head}</head><body>{body}</body></html>', encoding="utf-8")
    return faults_of(folder)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b.html">x</a>', "link to nothing: b.html"),
        ('<a href="#nowhere">x</a>', "link to no such place: #nowhere"),
        ('<img src="data:," alt=" ">', "a picture without a text"),
        ('<img src="p.png" alt="x">', "loads what is not there: p.png"),
        ('<script src="https://cdn.example/x.js"></script>', "loads from elsewhere: https://cdn.example/x.js"),
        ('<img src="//cdn.example/x.png" alt="x">', "loads from elsewhere"),
    ],
)
def test_a_fault_of_a_page_is_found(tmp_path: Path, body: str, fault: str) -> None:
    (line,) = made_up(tmp_path, body)
    assert fault in line


def test_fonts_from_elsewhere_are_found(tmp_path: Path) -> None:
    link = '<link rel="stylesheet" href="https://fonts.example/css">'
    assert "loads from elsewhere" in made_up(tmp_path, "", link)[0]
    (tmp_path / "s.css").write_text("@font-face { src: url(https://fonts.example/x.woff2); }", encoding="utf-8")
    assert any("s.css" in line for line in made_up(tmp_path, ""))


def test_a_whole_page_has_no_fault(tmp_path: Path) -> None:
    assert made_up(tmp_path, '<h1 id="x">x</h1><a href="#x">x</a><a href="https://example.org">y</a>') == []


def test_every_page_is_in_the_navigation() -> None:
    """Or the page of the reference that leads to it."""
    trees = [ROOT / "docs" / "index.md", ROOT / "docs" / "reference" / "index.md"]
    named = set()
    for path in trees:
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            lines = [line for line in tree.splitlines() if line and not line.startswith(":")]
            named |= {(path.parent / f"{line}.md").resolve() for line in lines}
    pages = {*(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "index.md"}
    assert {path.resolve() for path in pages} == named
