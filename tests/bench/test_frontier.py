"""The frontier's prefixes are the runs themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msformer_fast import segment
from msformer_fast.benchmarks import frontier
from tests.image_samples import lesion_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lesion_pairs(tmp_path, ["a"])


def test_a_prefix_is_what_the_shorter_run_leaves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folder / "images"), str(folder / "masks"), "--rule", "lesion", "--sizes", "49", "--patience", "1", "3"]
    words += ["--runs", str(folder / "runs"), "-o", str(folder / "out")]
    assert frontier.main(words) == 0
    printed = capsys.readouterr().out
    assert "| size | patience |" in printed and printed.count("| 49 |") == 2
    image = folder / "images" / "a.png"
    for patience in (1, 3):
        there = segment(image, size=49, patience=patience, rule="lesion", runs=folder / "runs")
        anew = segment(image, size=49, patience=patience, rule="lesion")
        assert len(there.history) == len(anew.history) and there.stopped == anew.stopped
        assert there.history[-1].seconds != anew.history[-1].seconds  # it was kept, not run
        np.testing.assert_array_equal(there.runs[0].labels, anew.runs[0].labels)
        np.testing.assert_array_equal(there.runs[0].scores, anew.runs[0].scores)
    rows = (folder / "out" / "frontier.csv").read_text().splitlines()
    assert rows[0].startswith("image,size,patience,iterations,oracle,blind") and len(rows) == 3
    assert frontier.main([*words, "--prompts", "line"]) == 2
