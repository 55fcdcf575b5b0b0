"""The site: Sphinx with the furo theme, autodoc for the reference, MyST for pages in Markdown. See CONTRIBUTING.md."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "extensions")]

from msformer_fast.look import TOKENS  # noqa: E402
from msformer_fast.version import __version__  # noqa: E402

project = "msformer_fast"
author = "the authors of msformer_fast"
project_copyright = "the authors of msformer_fast, MIT licence"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "command_help",
    "figure_lines",
    "mathml",
    "other_names",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build", "extensions", "look"]

# References that lead nowhere are errors; those of other packages are not looked up, since a build needs no network.
nitpicky = True
# Types in signatures go by short names, so that of classes only whole names are held to it.
nitpick_ignore_regex = [
    (r"py:class", r"(?!msformer_fast\b).*"),
    (r"py:.*", r"(torch|numpy|collections|typing|pathlib|os|fractions|fnmatch)\b.*"),
]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath", "attrs_inline", "attrs_block", "colon_fence"]

default_role = "literal"  # some docstrings quote with one backtick
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # one line may name several
smartquotes_action = "D"  # dashes alone: quotes are quoted as they are typed
highlight_language = "text"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"msformer_fast {__version__}"
html_static_path = ["look"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # would be fetched, which a browser refuses to a page that is read as a file
html_math_renderer = "mathml"
html_theme_options = {
    # The colours of a run's index page and of a benchmark's report.
    "light_css_variables": {
        "color-brand-primary": TOKENS["light"]["accent"],
        "color-brand-content": TOKENS["light"]["accent"],
        "color-brand-visited": TOKENS["light"]["accent"],
        "font-stack": "system-ui, sans-serif",
    },
    "dark_css_variables": {
        "color-brand-primary": TOKENS["dark"]["accent"],
        "color-brand-content": TOKENS["dark"]["accent"],
        "color-brand-visited": TOKENS["dark"]["accent"],
    },
}
copybutton_exclude = ".linenos, .gp, .go"
