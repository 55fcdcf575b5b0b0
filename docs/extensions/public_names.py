"""References by any public name of an object: ``msformer_fast.Clustering`` and ``msformer_fast.ops.Clustering`` are one.

Each object is documented once. A reference by another name leads there, if both names are the same object.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode

#: Of neural modules: how a drop-in is made by hand, and what a subclass of DropIn calls.
METHODS_OF_MODULES = ("of", "own_code")


def _object(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (AttributeError, ImportError, ValueError):
        return None


def _candidates(target: str, module: str | None) -> list[str]:
    names = [target]
    if module:
        names.append(f"{module}.{target}")
    return [name for name in names if name.startswith("msformer_fast.")]


def _resolve(app: Any, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    if node.get("refdomain") != "py":
        return None
    known = env.domaindata["py"]["objects"]
    for name in _candidates(node["reftarget"], node.get("py:module")):
        wanted = _object(name)
        if wanted is None:
            continue
        for place, entry in known.items():
            if place.rpartition(".")[2] == name.rpartition(".")[2] and _object(place) is wanted:
                return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, place)
    return None


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples stand in their class's docstring; of a module its class's docstring says all."""
    if type(obj).__name__ == "_tuplegetter":
        return True
    if what == "class" and getattr(obj, "__module__", "").startswith("msformer_fast.nn"):
        return name not in METHODS_OF_MODULES
    return None


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True}
