"""References by any public name of an object: ``mf.Clustering`` and ``mf.ops.Clustering`` are one.

Each object is documented once. A reference by another name leads there, if both names are the same object.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode

from public import same_object

#: Of neural modules: how a drop-in is made by hand, and what a subclass of DropIn calls.
METHODS_OF_MODULES = ("of", "own_code")


def _resolve(app: Any, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    for name in (target, f"{node.get('py:module')}.{target}"):
        for place, entry in env.domaindata["py"]["objects"].items():
            if name.startswith("msformer_fast.") and same_object(name, place):
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
