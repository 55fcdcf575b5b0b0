"""README and pages: their Python runs as it stands, commands and files that they name exist; the README is short."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import msformer_fast as mf
from msformer_fast import unregister_swap
from msformer_fast.cli import _parser

from .conftest import ROOT
from .swin_blocks import timm_swin

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README} | {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))
}
#: Python of the pages: ``python`` at a size that takes minutes, or as it is; ``py`` as it is.
BLOCKS = [
    pytest.param(name, code, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, code in enumerate(re.findall(r"```(?:python|py)\n(.*?)```", text, re.DOTALL))
]
LONG = [each for each in BLOCKS if "mf.segment(" in each.values[1]]


def small(code: str) -> str:
    """The same lines at a size that takes seconds."""
    code = code.replace("129", "49").replace("seed=0)\nprint(result", "seed=0, SMALL)\nprint(result")
    code = code.replace("seed=0, callback", "seed=0, SMALL, callback")
    code = code.replace("SMALL", "channels=8, clusters=8, max_iterations=2")
    return code.replace("in_channels=3", "in_channels=3, channels=8, clusters=8")


def swaps_of_timm(found: dict[str, Any]) -> None:
    assert len(found["swaps"]) == 12 and found["logits"].shape == (1, 1000)


def two_scales(found: dict[str, Any]) -> None:
    assert found["fine"].shape == (1, 257, 257, 64) and found["coarse"].shape == (1, 129, 129, 96)


def a_kind_of_ones_own(found: dict[str, Any]) -> None:
    unregister_swap("Gate")
    assert type(found["model"][0]) is found["FastGate"]


#: What must come of a block, by a word in it.
OUTCOMES: dict[str, Callable[[dict[str, Any]], None]] = {
    "import timm": swaps_of_timm,
    "TwoWayCrossScaleAttention": two_scales,
    "register_swap": a_kind_of_ones_own,
}


def run(name: str, code: str) -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, name, "exec"), found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), LONG)
def test_python_as_written(name: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(name, code)
    assert "(129, 129)" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "code"), BLOCKS)
def test_python_on_small_sizes(name: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "import timm" in code:
        timm_swin()
    if "enable_nvtx" in code:
        pytest.importorskip("nvtx")
    shorter = small(code) if "mf.segment(" in code else code
    assert shorter.count("channels=8") == len(re.findall(r"mf\.segment\(|MSFormer\(in_channels", code))
    try:
        found = run(name, shorter)
    finally:
        mf.profiling.enable_nvtx(False)
    for word, outcome in OUTCOMES.items():
        if word in code:
            outcome(found)
    if "mf.segment(" in code:
        assert "(49, 49)" in capsys.readouterr().out


def test_the_python_of_the_pages_is_found() -> None:
    assert len(LONG) == 2 and len(BLOCKS) >= 8
    assert all(any(word in each.values[1] for each in BLOCKS) for word in OUTCOMES)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_command_named_exists() -> None:
    commands = set(re.findall(r"`msformer-fast (\w+)", README))
    assert commands == {"segment", "evaluate", "demo", "bench", "doctor", "parity"}
    for command in commands - {"doctor", "demo", "bench"}:
        with pytest.raises(SystemExit) as caught:
            _parser().parse_args([command])
        assert caught.value.code == 2
    for name in re.findall(r"`mf\.ops\.(\w+)`", "".join(PAGES.values())):
        assert hasattr(mf.ops, name), name


@pytest.mark.parametrize("name", PAGES)
def test_options_named_exist(name: str) -> None:
    """Of each line that begins with ``msformer-fast segment``, ``evaluate`` or ``demo``, in a block or a sentence."""
    parser = _parser()
    for line in re.findall(r"(?:^|`)msformer-fast ((?:segment|evaluate|demo)\b[^`\n]*)", PAGES[name], re.MULTILINE):
        words = [word for word in line.replace("...", "").split() if word != "\\"]
        known = subparser_options(parser, words[0])
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


def subparser_options(parser: Any, command: str) -> set[str]:
    (commands,) = (each.choices for each in parser._actions if each.choices and command in each.choices)
    return {name for action in commands[command]._actions for name in action.option_strings}


@pytest.mark.parametrize("name", PAGES)
def test_pictures_and_links_exist(name: str) -> None:
    """In the files, as they are read without the site; places on a page are checked when the site is built."""
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#]+)", PAGES[name]):
        assert target.startswith("http") or (folder / target).exists(), target
    for target in re.findall(r"```\{(?:figure|literalinclude|include)\} (\S+)", PAGES[name]):
        assert (folder / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_pictures_have_a_text_in_their_place(name: str) -> None:
    assert "![](" not in PAGES[name]
    figures = re.findall(r"```\{figure\}.*?```", PAGES[name], re.DOTALL)
    assert all(re.search(r"^:alt: \S.{20}", figure, re.MULTILINE) for figure in figures)


def test_examples_named_exist() -> None:
    for name in re.findall(r"examples/(\w+\.py)", "".join(PAGES.values())):
        assert (Path(ROOT) / "examples" / name).exists(), name
