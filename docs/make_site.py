"""Build the site into ``docs/build`` and check it: ``python docs/make_site.py`` (needs ``pip install -e '.[docs]'``).

Every warning is an error. Then, of what was built: each link leads to a page and a place that are there, nothing is
loaded from elsewhere, every picture has a text in its place, and every public name is in the reference. Needs no
network.
"""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).resolve().parent

#: Attributes by which a page loads something, or leads somewhere.
LOADS = {"src", "srcset", "poster", "data"}


class Page(HTMLParser):
    """Links, places and pictures of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.wrong: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon"):
            self.loaded.append(values.get("href", ""))
        self.loaded += [value for name, value in values.items() if name in LOADS]
        if tag == "img" and not values.get("alt", "").strip():
            self.wrong.append(f"a picture without a text in its place: {values.get('src')}")
        if tag == "html" and not values.get("lang"):
            self.wrong.append("no language")


def faults_of(site: Path) -> list[str]:
    """What is wrong with a site that was built, a line each."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    faults = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        faults += [f"{name}: {text}" for text in page.wrong]
        for address in page.loaded:
            parts = urlsplit(address)
            if parts.scheme not in ("", "data") or parts.netloc:
                faults.append(f"{name}: loads from elsewhere: {address}")
            elif not parts.scheme and parts.path and not (path.parent / unquote(parts.path)).exists():
                faults.append(f"{name}: loads what is not there: {address}")
        faults += [f"{name}: {text}" for text in map(lambda each: _lost(each, path, pages), page.links) if text]
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        faults += [f"{style.name}: loads from elsewhere" for mark in ("url(http", "url(//", "@import") if mark in text]
    return faults


def _lost(address: str, page: Path, pages: dict[Path, Page]) -> str:
    """Why a link leads nowhere, or nothing; links to other sites are not followed."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return ""
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return f"link to nothing: {address}"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
        return f"link to no such place: {address}"
    return ""


def missing_names(site: Path) -> list[str]:
    """Public names that the site's index of names does not have."""
    from sphinx.util.inventory import InventoryFile

    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from public import public_names, same_object

    with (site / "objects.inv").open("rb") as file:
        inventory: Any = InventoryFile.load(file, "", lambda base, path: path)  # a dictionary, whatever the version
    known = [name for kind, names in dict(inventory).items() if kind.startswith("py:") for name in names]
    missing = [name for name in public_names() if not any(same_object(name, each) for each in known)]
    return [f"{name}: not in the reference" for name in missing]


def main(arguments: list[str]) -> int:
    site = Path(arguments[0]) if arguments else HERE / "build"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-E",
        "-n",
        "-W",
        "--keep-going",
        "-q",
        str(HERE),
        str(site),
    ]
    if subprocess.run(command).returncode:
        return 1
    faults = faults_of(site) + missing_names(site)
    print("\n".join(faults) or f"{len(list(site.rglob('*.html')))} pages, no fault: {site / 'index.html'}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
