"""The prompted protocol: what is taken from the truth, and the simple methods that get the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from msformer_fast import InputError
from msformer_fast.cli import main
from msformer_fast.evaluate_prompts import prompt_names, truth_prompt
from msformer_fast.metrics import dice
from msformer_fast.simple_prompted import simple_box, simple_point
from tests.image_samples import lesion_pairs


def square() -> tuple[np.ndarray, np.ndarray]:
    """A dark square on light noise, and its mask."""
    mask = np.zeros((80, 100), dtype=bool)
    mask[20:60, 30:70] = True
    image = np.where(mask, 0.3, 0.7)[..., None] + np.random.default_rng(0).normal(0, 0.01, (80, 100, 3))
    return np.clip(image, 0, 1).astype(np.float32), mask


def test_what_is_taken_from_the_truth() -> None:
    _, mask = square()
    ((x, y),) = truth_prompt(mask, "point", "a").points
    assert 45 <= x <= 55 and 35 <= y <= 45
    boxes = [truth_prompt(mask, "box", name).boxes[0] for name in ("a", "a", "b")]
    assert boxes[0] == boxes[1] != boxes[2]
    assert np.abs(np.array(boxes[0]) - (30, 20, 70, 60)).max() <= 2
    (left, right) = truth_prompt(mask, "clicks", "a").points
    assert left[0] < 50 <= right[0] and all(mask[int(y), int(x)] for x, y in (left, right))
    two = mask.copy()
    two[5:15, 80:95] = two[70:72, 2:4] = True
    points = truth_prompt(two, "clicks", "a").points  # the speck is none of them
    assert len(points) == 2 and 30 <= points[0][0] < 70 and 80 <= points[1][0] < 95
    with pytest.raises(InputError, match="prompts: got 'line'"):
        prompt_names(["line"])


def test_simple_methods() -> None:
    image, mask = square()
    assert dice(simple_point(image, (50, 40), "flood fill"), mask) > 0.93
    pytest.importorskip("sklearn")
    assert dice(simple_point(image, (50, 40), "gaussian mixture"), mask) > 0.93
    assert dice(simple_box(image, (24, 14, 76, 66), "gaussian mixture"), mask) > 0.93
    with pytest.raises(InputError, match="method: got 'x'"):
        simple_box(image, (0, 0, 9, 9), "x")


def test_grabcut() -> None:
    pytest.importorskip("cv2")
    image, mask = square()
    found = simple_box(image, (24, 14, 76, 66), "grabcut")
    assert dice(found, mask) > 0.93 and not found[:, 76:].any()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lesion_pairs(tmp_path, ["0", "1"])
    words = "--size 65 --channels 6 --clusters 8 --depth 1 --max-iterations 2 --quiet --methods --prompts point box"
    command = ["evaluate", str(tmp_path / "images"), str(tmp_path / "masks"), "-o", str(tmp_path / "out")]
    assert main([*command, *words.split()]) == 0
    text = capsys.readouterr().out
    assert "MS-Former, one point" in text and "box without clusters" in text and "point minus this" in text
    assert "preset: " in text
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["summary"]["point"]["dice"] > 0.8 and record["summary"]["box"]["dice"] > 0.8
    assert record["summary"]["point flood fill"]["point_minus_this"]["interval"]
