"""Runs kept on disk, several seeds, and stopping by patience."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msformer_fast import DivergenceError, InputError, phantom, segment
from msformer_fast.float32_products import asked_for
from msformer_fast.runs import KEPT_SCORES, load_run
from msformer_fast.self_guiding import _largest

SMALL: dict[str, Any] = {
    **{"size": None, "channels": 6, "clusters": 14, "depth": 1},
    **{"max_iterations": 4, "min_labels": 1, "patience": None},
}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return phantom.lesion((41, 47), seed=3)[0]


def no_network(*_: object, **__: object) -> None:
    raise AssertionError("the loop must not run again")


def test_another_rule_needs_no_network(image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = segment(image, runs=tmp_path / "new" / "runs", seeds=2, rule="lesion", **SMALL)
    kept = sorted((tmp_path / "new" / "runs").iterdir())
    assert len(kept) == 2 and all(path.suffix == ".npz" for path in kept)
    monkeypatch.setattr("msformer_fast.segmentation.guide_image", no_network)
    again = segment(image, runs=tmp_path / "new" / "runs", seeds=2, rule="lesion", **SMALL)
    assert np.array_equal(first.mask, again.mask) and np.array_equal(first.labels, again.labels)
    assert first.history == again.history and first.stopped == again.stopped
    assert first.foreground.confidence == again.foreground.confidence
    # The rule, the number of seeds and what only costs memory are no part of a run.
    other = segment(image, runs=tmp_path / "new" / "runs", rule="lungs", seed=1, memory="lean", **SMALL)
    assert other.foreground.rule == "lungs-xray"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"learning_rate": 0.05},
        {"max_iterations": 3},
        {"weights": (1, 2, 1.2)},
        {"patience": 3},
        {"precision": "highest"},
    ],
)
def test_other_settings_are_another_run(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    segment(image, runs=tmp_path, **SMALL)
    monkeypatch.setattr("msformer_fast.segmentation.guide_image", no_network)
    with pytest.raises(AssertionError, match="again"):
        segment(image, runs=tmp_path, **{**SMALL, **change})
    with pytest.raises(AssertionError, match="again"):
        segment(1 - image, runs=tmp_path, **SMALL)


def test_precision_counts_by_what_it_comes_to(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``None`` is what PyTorch was told: a run of either precision is found by both ways to ask for it."""
    for name in ("highest", "high"):
        segment(image, runs=tmp_path, precision=name, **SMALL)
    assert len(list(tmp_path.iterdir())) == 2

    monkeypatch.setattr("msformer_fast.segmentation.guide_image", no_network)
    for name in ("highest", "high"):
        with asked_for(name):
            segment(image, runs=tmp_path, precision=None, **SMALL)


def test_what_is_kept(image: np.ndarray, tmp_path: Path) -> None:
    result = segment(image, runs=tmp_path, **SMALL)
    (path,) = tmp_path.iterdir()
    run = load_run(path)
    assert np.array_equal(run.labels, result.labels) and run.labels.dtype == np.uint8
    assert run.scores.shape == (KEPT_SCORES, 41, 47) and run.scores.dtype == np.float16
    sizes = np.bincount(run.labels.ravel(), minlength=14)
    assert sizes[run.kept].tolist() == sorted(sizes, reverse=True)[:KEPT_SCORES]
    winners = run.kept[run.scores.argmax(axis=0)]
    assert (winners == run.labels).mean() > 0.99, "the labels are the argmax of the scores, but for float16"
    assert run.history == result.history and run.stopped == "max_iterations"


def test_a_damaged_run_is_named(image: np.ndarray, tmp_path: Path) -> None:
    segment(image, runs=tmp_path, **SMALL)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=f"{path.name}: no whole run.*delete"):
        segment(image, runs=tmp_path, **SMALL)


def test_a_run_that_was_cut_short_is_not_kept(image: np.ndarray, tmp_path: Path) -> None:
    assert segment(image, runs=tmp_path, callback=lambda iteration: False, **SMALL).stopped == "callback"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_told_before_the_loop(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("msformer_fast.segmentation.guide_image", no_network)
    with pytest.raises(InputError, match="file: cannot be used as the output folder"):
        segment(image, runs=tmp_path / "file", **SMALL)


def test_several_seeds_vote(image: np.ndarray) -> None:
    single = [segment(image, seed=seed, **SMALL) for seed in (4, 5, 6)]
    together = segment(image, seed=4, seeds=3, **SMALL)
    for alone, run in zip(single, together.runs, strict=True):
        assert np.array_equal(alone.labels, run.labels)
    assert together.agreement is not None and together.agreement.shape == image.shape[:2]
    assert set(np.unique(np.round(together.agreement * 3))) <= {1, 2, 3}
    assert single[0].agreement is None and len(single[0].runs) == 1
    assert together.foreground.candidates == sum(alone.foreground.candidates for alone in single)
    assert set(together.foreground.labels) <= set(np.unique(together.labels[together.mask]).tolist())
    record = together.as_dict()
    assert len(record["runs"]) == 3 and record["settings"]["seeds"] == 3
    assert 0 <= record["foreground"]["confidence"] <= 1 and record["foreground"]["terms"]


def test_patience_stops_where_labels_no_longer_fall(image: np.ndarray) -> None:
    settings = {**SMALL, "max_iterations": 30}
    counts = [iteration.label_count for iteration in segment(image, **settings).history]
    for patience in (1, 2, 4):
        fewest = np.minimum.accumulate(counts)
        waits = [index - int(np.flatnonzero(fewest == fewest[index])[0]) for index in range(len(counts))]
        expected = next((index + 1 for index, wait in enumerate(waits) if wait >= patience), None)
        result = segment(image, **{**settings, "patience": patience})
        if expected is None:
            assert len(result.history) == len(counts) and result.stopped != "patience"
        else:
            assert len(result.history) == expected and result.stopped == "patience"


def test_a_last_step_into_nothing_is_told(image: np.ndarray) -> None:
    with pytest.raises(DivergenceError, match="NaN with the step of iteration 0; try a smaller learning rate than 1e"):
        segment(image, learning_rate=1e38, **{**SMALL, "max_iterations": 1})


def test_scores_beyond_half_precision_are_clamped() -> None:
    logits = torch.tensor([[1e6, -1e6], [0.0, 5.0], [3.0, 2.0]]).reshape(1, 3, 1, 2)
    scores, kept = _largest(logits, torch.tensor([[[0, 1]]], dtype=torch.uint8), 2)
    assert kept.tolist() == [[0, 1]] and scores.flatten().tolist() == [65504, -65504, 0, 5]


@pytest.mark.parametrize(("name", "value"), [("seeds", 0), ("patience", 0)])
def test_settings_are_checked(image: np.ndarray, name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        segment(image, **{**SMALL, name: value})
