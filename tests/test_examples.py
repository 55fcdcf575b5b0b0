"""The examples run, do what they say, and draw what the pages show."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from .conftest import ROOT
from .swin_blocks import monai_swin, timm_swin

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLES)])


def test_segment_and_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("segment_and_look").main(str(tmp_path))
    scores = dict(re.findall(r"(lesion|chest): Dice ([\d.]+)", capsys.readouterr().out))
    assert float(scores["lesion"]) > 0.9 and float(scores["chest"]) > 0.9
    for kind in scores:
        assert Image.open(tmp_path / f"{kind}.png").size == (391, 129)
    pytest.importorskip("matplotlib")
    drawn = (tmp_path / "history.svg").read_text(encoding="utf-8")
    assert "Clusters that are left" in drawn and "Total loss" in drawn


def test_the_losses_in_a_network_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = importlib.import_module("losses_in_your_model").main(str(tmp_path))
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]
    assert float(re.findall(r"Dice ([\d.]+)", capsys.readouterr().out)[0]) > 0.9
    assert (tmp_path / "own_network.png").exists()


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    assert importlib.import_module("write_a_rule").main(str(tmp_path)) > 0.75
    assert (tmp_path / "rule.png").exists()


def test_three_steps_with_timm(capsys: pytest.CaptureFixture[str]) -> None:
    timm_swin()
    losses = importlib.import_module("swap_timm").main()
    assert len(losses) == 3 and losses[2] < losses[0]
    assert "swapped 4" in capsys.readouterr().out


def test_three_steps_with_monai(capsys: pytest.CaptureFixture[str]) -> None:
    monai_swin()
    losses = importlib.import_module("swap_monai").main()
    assert len(losses) == 3 and losses[2] < losses[0]
    assert "swapped 8" in capsys.readouterr().out


def test_every_example_is_tested_and_shown() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    for path in EXAMPLES.glob("*.py"):
        assert f'import_module("{path.stem}")' in here and f"examples/{path.name}" in pages, path
        assert len(re.findall(r"^def main\(", path.read_text(encoding="utf-8"), re.MULTILINE)) == 1
