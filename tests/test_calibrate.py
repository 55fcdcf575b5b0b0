"""The script that fits the confidence: what it reads, fits, counts and draws."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from msformer_fast import phantom
from msformer_fast.benchmarks import calibrate
from msformer_fast.foreground.calibration import Raw, calibrated, features
from msformer_fast.formats.plain import read_image
from msformer_fast.images import write_png


def folder(path: Path, agreements: list[float], dices: list[float], rule: str = "lungs-ct") -> Path:
    """What an evaluation leaves, as far as it is read."""
    path.mkdir()
    rows = []
    for number, (agreement, dice) in enumerate(zip(agreements, dices, strict=True)):
        chosen = {"agreement": agreement, "terms": {"edge": 5.0, "share": -1.0}, "candidates": 9}
        chosen |= {"confidence": 0.5, "doubtful": False, "reason": "Air. (doubtful: x)" if number == 3 else "Air."}
        (path / f"i{number}.json").write_text(json.dumps({"foreground": chosen}))
        rows.append({"image": f"i{number}.png", "rule": rule, "blind_dice": dice})
    with open(path / "evaluation.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_an_evaluation_is_read(tmp_path: Path) -> None:
    judged = calibrate.read_folder(folder(tmp_path / "a", [0.9, 0.8, 0.99, 0.97], [0.95, 0.7, 0.96, 0.5]))
    assert [each.odd for each in judged] == [True, False, True, False]
    assert judged[0].raw == Raw(0.9, 4.0) and judged[0].dice == 0.95
    assert [each.misfit for each in judged] == [False, False, False, True]
    assert judged[3].doubtful and judged[3].confidence <= 0.5


def test_prompts_are_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", [0.9, 0.8], [0.95, 0.7])
    with open(path / "evaluation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, box in zip(rows, (0.9, 0.0), strict=True):  # nothing filled the second box
        row |= {
            "point_rule": "lesion",
            "point_agreement": 0.8,
            "point_dice": 0.9,
            "box_agreement": box,
            "box_dice": 0.8,
        }
        row |= {"clicks_agreement": 0.7, "clicks_dice": 0.6}
    with open(path / "evaluation.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    judged = calibrate.read_folder(path)
    assert [each.rule for each in judged if each.odd] == [
        "lungs-ct",
        "prompt lesion",
        "box lungs-ct",
        "clicks lungs-ct",
    ]
    assert [each.rule for each in judged if not each.odd] == ["lungs-ct", "prompt lesion", "clicks lungs-ct"]
    assert judged[1].confidence == calibrated("prompt lesion", Raw(0.8, 0.0)) and judged[1].dice == 0.9
    assert judged[2].confidence == calibrated("box lungs-ct", Raw(0.9, 0.0)) and judged[2].dice == 0.8
    assert judged[3].confidence == calibrated("clicks lungs-ct", Raw(0.7, 0.0)) and judged[3].doubtful


def test_the_fit_finds_the_curve_that_made_the_dice() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([-1.0, 0.8, 0.5])
    judged = []
    for _ in range(600):
        raw = Raw(float(rng.uniform(0.3, 0.99)), float(rng.uniform(-10, 10)))
        dice = float(1 / (1 + np.exp(-features(raw) @ weights)))
        judged.append(calibrate.Judged("lungs-ct", raw, 0.5, False, dice, True, False))
    found = calibrate.fit(judged)
    expected = [1 / (1 + np.exp(-features(each.raw) @ found)) for each in judged]
    np.testing.assert_allclose(expected, [each.dice for each in judged], atol=0.01)


def test_figures() -> None:
    raw = Raw(0.9, 1.0)
    made = [(0.9, False, 0.95), (0.9, True, 0.95), (0.5, True, 0.4), (0.5, False, 0.7)]
    found = calibrate.figures([calibrate.Judged("lungs-ct", raw, *each, True, False) for each in made])
    assert (found["bad"], found["bad and marked"], found["good"], found["good and marked"]) == (2, 1, 2, 1)
    assert found["calibration error"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)


def test_degraded_images_keep_their_masks(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for seed in range(4):
        image, mask = phantom.make("ct", (65, 65), seed)
        write_png(tmp_path / "images" / f"{seed}.png", (image * 255).astype(np.uint8))
        write_png(tmp_path / "masks" / f"{seed}.png", mask)
    calibrate.main(["degrade", str(tmp_path / "images"), str(tmp_path / "masks"), "-o", str(tmp_path / "hard")])
    pairs = calibrate.find_pairs(tmp_path / "hard" / "images", tmp_path / "hard" / "masks")
    assert len(pairs) == 4
    for image, _ in pairs:
        assert not np.array_equal(calibrate.read_image(image), calibrate.read_image(tmp_path / "images" / image.name))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    made = folder(tmp_path / "a", [0.9, 0.8, 0.99, 0.97, 0.6, 0.95], [0.95, 0.7, 0.96, 0.5, 0.6, 0.97])
    calibrate.main(["fit", str(made), "--plot", str(tmp_path / "plot.png")])
    printed = capsys.readouterr().out
    assert '"lungs-ct": (' in printed and "doubtful under" in printed and "all, even:" in printed
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_clicks_have_curves_of_their_own(tmp_path: Path) -> None:
    made = folder(tmp_path / "a", [0.9, 0.8], [0.95, 0.7])
    with open(made / "evaluation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # One click was weighed with a rule, the other was not.
    for row, rule in zip(rows, ("lungs-ct", ""), strict=True):
        row |= {"point_rule": rule, "point_agreement": "0.97", "point_dice": "0.9"}
    with open(made / "evaluation.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    judged = [each for each in calibrate.read_folder(made) if each.rule == "prompt lungs-ct"]
    assert [(each.raw, each.dice, each.odd) for each in judged] == [(Raw(0.97, 0.0), 0.9, True)]
    assert judged[0].confidence == calibrated("prompt lungs-ct", judged[0].raw)


def test_a_turn_further_is_another_way_to_degrade(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    image, mask = (rng.random((70, 80, 3)) * 255).astype(np.uint8), np.zeros((70, 80), dtype=bool)
    mask[20:50, 20:60] = True
    write_png(tmp_path / "images" / "a.png", image)
    write_png(tmp_path / "masks" / "a.png", mask)
    for turn in (0, 1):
        words = ["degrade", str(tmp_path / "images"), str(tmp_path / "masks"), "-o", str(tmp_path / f"hard{turn}")]
        calibrate.main([*words, "--turn", str(turn)])
    noisy, blurred = (read_image(tmp_path / f"hard{turn}" / "images" / "a.png") for turn in (0, 1))
    assert blurred.std() < 0.5 * (image / 255).std() < noisy.std()
