"""A small network guided on a device of choice, and the comparison of two that were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from msformer_fast import MSFormer, self_guide
from msformer_fast.capture import Device
from msformer_fast.self_guiding import Guided


def network(dtype: torch.dtype = torch.float64, backend: str | None = None, clusters: int = 12) -> MSFormer:
    return MSFormer(3, 6, clusters, depth=1, patch=4, seed=1, backend=backend).to(dtype)


def image(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(1, 3, 13, 15, dtype=dtype)


def guided_on(device: Device | None, model: MSFormer, x: torch.Tensor, **options: Any) -> Guided:
    """On the device of the tensors if there is no other."""
    if device is None:
        return self_guide(model, x, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msformer_fast.self_guiding.device_of", lambda tensor: device)
        return self_guide(model, x, **options)


def assert_the_same(model: MSFormer, guided: Guided, twin: MSFormer, want: Guided) -> None:
    """To the bit: labels, history but for its seconds, parameters, running statistics."""
    assert torch.equal(guided.labels, want.labels) and guided.labels.dtype == want.labels.dtype
    assert [replace(i, seconds=0.0) for i in guided.history] == [replace(i, seconds=0.0) for i in want.history]
    assert guided.stopped == want.stopped
    for found, wanted in ((guided.scores, want.scores), (guided.kept, want.kept)):
        assert (found is None) == (wanted is None) and (wanted is None or torch.equal(found, wanted))
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert all(parameter.grad is None for parameter in model.parameters())
