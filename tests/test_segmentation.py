"""The self-guided loop on one image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from msformer_fast import DivergenceError, InputError, MSFormer, phantom, segment, self_guide, self_guiding_losses
from msformer_fast.images import write_png

SMALL = {"channels": 8, "clusters": 10, "depth": 1, "size": 65, "max_iterations": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return phantom.lesion((70, 65), seed=3)[0]


def test_result(image: np.ndarray) -> None:
    seen = []
    result = segment(image, callback=seen.append, **SMALL)
    assert result.labels.shape == result.mask.shape == (70, 65)
    assert result.labels.dtype == np.uint8
    assert result.mask.dtype == bool
    assert 0 < result.mask.sum() < result.mask.size
    assert result.network_size == (65, 60)
    assert seen == list(result.history)
    assert [iteration.index for iteration in result.history] == [0, 1, 2]
    assert result.stopped == "max_iterations"
    for iteration in result.history:
        parts = iteration.clustering + iteration.consistency + iteration.stability
        assert iteration.total == pytest.approx(parts, rel=1e-5)
    assert json.loads(json.dumps(result.as_dict()))["settings"]["seed"] == 0


def test_a_seed_repeats_and_another_differs(image: np.ndarray) -> None:
    state = torch.random.get_rng_state()
    first, again = (segment(image, seed=4, **SMALL) for _ in range(2))
    other = segment(image, seed=5, **SMALL)
    assert np.array_equal(first.labels, again.labels)
    assert [i.total for i in first.history] == [i.total for i in again.history]
    assert first.history[0].total != other.history[0].total
    assert torch.equal(state, torch.random.get_rng_state())


def test_array_tensor_and_path_agree(image: np.ndarray, tmp_path) -> None:
    eight_bit = (image * 255).astype(np.uint8)
    write_png(tmp_path / "image.png", eight_bit)
    results = [
        segment(given, **SMALL)
        for given in (eight_bit, torch.from_numpy(eight_bit).permute(2, 0, 1), tmp_path / "image.png")
    ]
    for result in results[1:]:
        assert np.array_equal(result.labels, results[0].labels)
    assert np.array_equal(eight_bit, (image * 255).astype(np.uint8)), "the caller's array was changed"


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts(channels: int) -> None:
    pixels = np.random.default_rng(0).random((40, 34, channels))
    assert segment(pixels, **{**SMALL, "size": None}).labels.shape == (40, 34)


def test_stops_at_min_labels(image: np.ndarray) -> None:
    result = segment(image, min_labels=10, **SMALL)
    assert result.stopped == "min_labels"
    assert len(result.history) == 1


def test_callback_stops(image: np.ndarray) -> None:
    result = segment(image, callback=lambda iteration: iteration.index < 1, **SMALL)
    assert result.stopped == "callback"
    assert len(result.history) == 2


def test_divergence_names_the_iteration(image: np.ndarray) -> None:
    with pytest.raises(DivergenceError, match=r"in iteration [12] .* smaller learning rate than 1e\+30"):
        segment(image, learning_rate=1e30, **SMALL)


def test_the_loop_is_sgd_with_momentum() -> None:
    """Two steps by hand, in float64."""
    x = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    model, twin = (MSFormer(3, 4, 5, depth=1, patch=4, seed=0).double() for _ in range(2))
    self_guide(model, x, learning_rate=0.05, momentum=0.5, max_iterations=2, min_labels=0)

    velocity = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for _ in range(2):
        total = self_guiding_losses(twin(x)).total
        gradients = torch.autograd.grad(total, list(twin.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(twin.named_parameters(), gradients, strict=True):
                velocity[name] = 0.5 * velocity[name] + gradient
                parameter -= 0.05 * velocity[name]
    for (name, value), wanted in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "kidney"}, "rule must be one of .*lesion.*; got 'kidney'"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
        ({"min_labels": 0}, "min_labels must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"weights": (1, -1, 1)}, "consistency must be a finite number"),
        ({"dtype": torch.float16}, "dtype must be"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"size": 20}, "33"),
        ({"clusters": 1}, "clusters must be at least 2"),
    ],
)
def test_settings_are_checked(image: np.ndarray, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        segment(image, **{**SMALL, **arguments})
