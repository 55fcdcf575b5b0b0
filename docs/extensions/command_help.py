"""``{command-help} segment``: what ``msformer-fast segment --help`` prints, as the parser has it now."""

from __future__ import annotations

import argparse
import os
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def help_of(command: str) -> str:
    """The help of one command, 88 columns wide."""
    from msformer_fast.cli import _parser

    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "90"
    try:
        actions = _parser()._actions
        (commands,) = (each.choices for each in actions if isinstance(each, argparse._SubParsersAction))
        return commands[command].format_help().rstrip()
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


class CommandHelp(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = help_of(self.arguments[0])
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
