"""Docstrings as this package writes them, for Sphinx.

Each object is documented once: a reference by another of its public names (``mf.Clustering``, ``mf.ops.Clustering``)
leads there. A reference to what is not public is shown without a link; one to what does not exist is an error. Names
of arguments that share a text may go over several lines.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode

from public import resolve, same_object

#: Indented names with commas, the last of them too.
NAMES = re.compile(r" +(\w+, )*\w+,$")
#: Of neural modules: how a drop-in is made by hand, and what a subclass of DropIn calls.
METHODS_OF_MODULES = ("of", "own_code")


def _resolve(app: Any, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    names = [name for name in (target, f"{node.get('py:module')}.{target}") if name.startswith("msformer_fast.")]
    for name in names:
        for place, entry in env.domaindata["py"]["objects"].items():
            if same_object(name, place):
                return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, place)
    return content if any(map(_exists, names)) else None


def _exists(name: str) -> bool:
    try:
        resolve(name)
    except (AttributeError, ImportError):
        return False
    return True


def _join_names(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """``a, b,`` and ``c: text`` in the next line, as one line."""
    joined: list[str] = []
    for line in lines:
        if joined and NAMES.match(joined[-1]) and line[:1] == " ":
            joined[-1] = f"{joined[-1]} {line.strip()}"
        else:
            joined.append(line)
    lines[:] = joined


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples stand in their class's docstring; of a module its class's docstring says all."""
    if type(obj).__name__ == "_tuplegetter":
        return True
    if what == "class" and getattr(obj, "__module__", "").startswith("msformer_fast.nn"):
        return name not in METHODS_OF_MODULES
    return None


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _join_names, priority=400)  # before napoleon
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True}
