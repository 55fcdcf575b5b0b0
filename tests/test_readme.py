"""The README's Python runs as it stands there, and the commands it names exist."""

from __future__ import annotations

import re
from typing import Any

import pytest

from msformer_fast import unregister_swap
from msformer_fast.cli import _parser

from .conftest import ROOT
from .swin_blocks import timm_swin

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORT = re.findall(r"```py\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_python_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = PYTHON
    exec(compile(code, "README.md", "exec"), {})
    assert "(129, 129)" in capsys.readouterr().out


def test_python_on_a_small_network(capsys: pytest.CaptureFixture[str]) -> None:
    """The same lines at a size that takes seconds."""
    (code,) = PYTHON
    small = code.replace("129", "49").replace("seed=0, callback", "channels=8, clusters=8, max_iterations=2, callback")
    small = small.replace("in_channels=3", "in_channels=3, channels=8, clusters=8")
    assert small.count("channels=8") == 2
    exec(compile(small, "README.md", "exec"), {})
    assert "(49, 49)" in capsys.readouterr().out


@pytest.mark.parametrize("number", range(3))
def test_short_examples_as_written(number: int) -> None:
    assert len(SHORT) == 3
    code = SHORT[number]
    if "import timm" in code:
        timm_swin()
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)
    if number == 0:
        assert found["fine"].shape == (1, 257, 257, 64) and found["coarse"].shape == (1, 129, 129, 96)
    elif number == 1:
        assert len(found["swaps"]) == 12 and found["logits"].shape == (1, 1000)
    else:
        unregister_swap("Gate")
        assert type(found["model"][0]) is found["FastGate"]


def test_every_command_named_exists() -> None:
    commands = set(re.findall(r"`msformer-fast (\w+)", README))
    assert commands == {"segment", "evaluate", "demo", "bench", "doctor", "parity"}
    for command in commands - {"doctor", "demo", "bench"}:
        with pytest.raises(SystemExit) as caught:
            _parser().parse_args([command])
        assert caught.value.code == 2
    for name in re.findall(r"`mf\.ops\.(\w+)`", README):
        import msformer_fast

        assert hasattr(msformer_fast.ops, name)


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
