"""The comparison of methods over a folder: halves, scores, table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast import InputError, segment
from msformer_fast.cli import main
from msformer_fast.evaluate import (
    METHODS,
    METRICS,
    PROTOCOLS,
    RULE_ALONE,
    column,
    score_pair,
    split_pairs,
    summarise,
    summary_table,
    worst_first,
)
from msformer_fast.formats.plain import read_image, read_mask
from msformer_fast.metrics import dice
from msformer_fast.simple_methods import simple_mask
from tests.image_samples import lesion_pairs

FAST = ["--size", "65", "--channels", "6", "--clusters", "8", "--depth", "1", "--max-iterations", "2", "--quiet"]


def pairs_of(count: int) -> list[tuple[Path, Path]]:
    return [(Path(f"{index}.png"), Path(f"m{index}.png")) for index in range(count)]


def row(blind: float, other: float, name: str = "a") -> dict[str, Any]:
    values = {"image": name}
    for who, base in (("blind", blind), ("oracle", 0.9), ("otsu", other)):
        values |= {column(who, metric): base for metric in METRICS}
    return values


def test_halves_are_disjoint_and_complete() -> None:
    pairs = pairs_of(7)
    odd, even = split_pairs(pairs, "odd"), split_pairs(pairs, "even")
    assert odd[0] == pairs[0] and even[0] == pairs[1] and len(odd) == 4
    assert sorted(odd + even) == pairs == split_pairs(pairs, "all")
    with pytest.raises(InputError, match="^split: .*all, odd, even"):
        split_pairs(pairs, "third")
    with pytest.raises(InputError, match="leaves none"):
        split_pairs(pairs_of(1), "even")


def test_summary_of_known_rows() -> None:
    blind = np.random.default_rng(2).uniform(0.7, 0.9, 30)
    rows = [row(value, value - 0.4) for value in blind]
    summary = summarise(rows, ["otsu"])
    assert set(summary) == {*PROTOCOLS, "otsu"}
    assert summary["blind"]["dice"] == pytest.approx(blind.mean())
    low, high = summary["blind"]["intervals"]["dice"]
    assert low < blind.mean() < high < low + 0.1
    against = summary["otsu"]["blind_minus_this"]
    assert against["dice"] == pytest.approx(0.4) and against["interval"] == pytest.approx([0.4, 0.4])
    assert against["p_value"] < 1e-5
    assert summary["otsu"]["share_under_half"] == pytest.approx((blind - 0.4 < 0.5).mean())
    assert "blind_minus_this" not in summary["blind"]
    json.dumps(summary)
    text = summary_table(summary, len(rows))
    assert text.index("blind (no truth)") < text.index("otsu") < text.index("oracle (sees the truth)")
    assert f"{blind.mean():.3f} [{low:.3f} {high:.3f}]" in text and "+0.400 [+0.400 +0.400] p=" in text


def test_one_image_has_no_test() -> None:
    summary = summarise([row(0.8, 0.6)], ["otsu"])
    assert summary["otsu"]["blind_minus_this"] is None
    assert "p=" not in summary_table(summary, 1)


def test_worst_first() -> None:
    rows = [row(0.5, 0, "b"), row(0.2, 0, "c"), row(0.9, 0, "a")]
    assert [each["image"] for each in worst_first(rows)] == ["c", "b", "a"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lesion_pairs(tmp_path, ["0", "1", "2"])


def test_every_method_is_scored_on_the_same_image(folder: Path) -> None:
    pytest.importorskip("sklearn")
    image, mask = folder / "images" / "0.png", folder / "masks" / "0.png"
    result = segment(image, size=65, channels=6, clusters=8, depth=1, max_iterations=2)
    scores = score_pair(result, image, mask, METHODS)
    pixels, truth = read_image(image), read_mask(mask)
    for name in METHODS:
        if name != RULE_ALONE:
            assert scores[column(name, "dice")] == pytest.approx(dice(simple_mask(pixels, name, "lesion"), truth))
    assert scores["rule_alone_dice"] > 0.9 and scores["gaussian_mixture_hd95"] >= 0
    assert scores["blind_dice"] == pytest.approx(dice(result.mask, truth))
    assert 0 <= scores["confidence"] <= 1


def test_command(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["evaluate", str(folder / "images"), str(folder / "masks"), "-o", str(folder / "out"), *FAST]
    assert main([*command, "--split", "odd", "--methods", "otsu", "rule alone"]) == 0
    text = capsys.readouterr().out
    assert "2 image(s)" in text and "rule alone, no network" in text and "2-means" not in text
    sheet = read_image(folder / "out" / "contact_sheet.png")
    assert sheet.shape[0] > 256 and sheet.shape[1] > 2 * 256
    record = json.loads((folder / "out" / "evaluation.json").read_text())
    assert record["images"] == 2 and record["settings"]["split"] == "odd"
    assert record["summary"]["otsu"]["blind_minus_this"]["interval"]
    assert len(list((folder / "out" / "runs").glob("*.npz"))) == 2
    # Other methods and another rule, without the network.
    monkeypatch.setattr("msformer_fast.segmentation.guide_image", lambda *_, **__: pytest.fail("runs are kept"))
    again = [*command, "--split", "odd", "--overwrite", "--rule", "lungs", "--methods"]
    assert main([*again, "slic"]) == 0 and main(again) == 0
    assert "otsu" not in capsys.readouterr().out.split("left out")[0].split("blind minus")[-1]


def test_a_method_that_cannot_run_is_left_out_or_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    command = ["evaluate", str(folder / "images"), str(folder / "masks"), "-o", str(folder / "out"), *FAST]
    assert main([*command, "--split", "even"]) == 0
    text = capsys.readouterr().out
    assert "left out: " in text and "msformer-fast[evaluate]" in text
    assert main([*command, "--overwrite", "--methods", "gaussian mixture"]) == 2
    assert "scikit-learn" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--methods", "magic"]) == 2
    assert "methods: got 'magic'" in capsys.readouterr().err
