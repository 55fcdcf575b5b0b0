"""One look for all that the package draws for people: a run's page, a benchmark's report, plots, and the site.

Colours of lines and marks are those that colour-blind people tell apart (Okabe and Ito, "Color Universal Design",
2008); each series has a marker of its own besides. Pairs of text and ground have a contrast of at least 4.5 (WCAG 2.2,
AA).
"""

from __future__ import annotations

#: Colours for light and for dark pages: grounds, lines, text, marks.
TOKENS = {
    "light": {
        "page": "#f3f4f6",
        "card": "#ffffff",
        "well": "#202428",
        "on-well": "#b4bcc4",
        "line": "#d3d8dd",
        "edge": "#7d868f",
        "text": "#1b2025",
        "quiet": "#535c65",
        "accent": "#0a5a9c",
        "on-accent": "#ffffff",
        "doubt": "#744600",
        "doubt-back": "#fcebc8",
        "bad": "#98191c",
        "bad-back": "#fbe9e8",
    },
    "dark": {
        "page": "#14171a",
        "card": "#1d2125",
        "well": "#0d0f11",
        "on-well": "#a4adb6",
        "line": "#32383e",
        "edge": "#78828b",
        "text": "#e5e8eb",
        "quiet": "#a4adb6",
        "accent": "#82bdf2",
        "on-accent": "#10161c",
        "doubt": "#f2c46f",
        "doubt-back": "#3a2e14",
        "bad": "#f4a8a2",
        "bad-back": "#371f1e",
    },
}

#: Okabe and Ito's colours, by their names; black is left to the page's own text.
PALETTE = {
    "orange": "#e69f00",
    "sky blue": "#56b4e9",
    "bluish green": "#009e73",
    "yellow": "#f0e442",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "reddish purple": "#cc79a7",
}

#: Grey that is seen on white and on black.
GREY = "#8a8a8a"

FONT = "0.9375rem/1.45 system-ui, sans-serif"


def style(*, dark_on_screens_only: bool = False) -> str:
    """What every page begins with, as CSS: the colours as variables, the font, the ring around what has the focus.

    Args:
        dark_on_screens_only: paper is light, whatever the screen is.
    """
    medium = "screen and " if dark_on_screens_only else ""
    return f"""\
:root {{
  color-scheme: light dark;
{_variables("light")}
}}
@media {medium}(prefers-color-scheme: dark) {{
  :root {{
{_variables("dark")}
  }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--text); font: {FONT}; }}
a {{ color: var(--accent); text-underline-offset: 0.15em; overflow-wrap: anywhere; }}
a:focus-visible, button:focus-visible, summary:focus-visible, [tabindex]:focus-visible {{
  outline: 2px solid var(--accent); outline-offset: 2px; }}
"""


def plain_plot() -> dict[str, object]:
    """Settings of matplotlib for a plot that stands on a white card, whatever the page is; text as paths."""
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(names, TOKENS["light"]["text"]),
        **{"svg.hashsalt": "msformer_fast", "legend.frameon": False, "font.size": 10, "axes.titlesize": 10},
        **{"axes.grid": True, "axes.axisbelow": True, "grid.color": GREY, "grid.alpha": 0.35, "grid.linewidth": 0.6},
        **{"lines.markersize": 4, "lines.linewidth": 1.4},
    }


def _variables(ground: str) -> str:
    return "\n".join(f"  --{name}: {colour};" for name, colour in TOKENS[ground].items())
