"""The ledger of a step: it forgets no kernel, and its formulas are what the interpreter counts."""

from __future__ import annotations

import collections

import pytest
import torch

from msformer_fast import MSFormer, self_guiding_losses

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counted in the interpreter")


def test_every_launch_of_a_step_is_in_it() -> None:
    from msformer_fast.benchmarks.ledger import rows_of
    from tests.harness.traffic import count_traffic

    side, channels, depth, patch = 17, 8, 2, 8
    model = MSFormer(3, channels, channels, depth, patch, seed=0, backend="triton")
    with count_traffic() as counted:
        self_guiding_losses(model(torch.rand(1, 3, side, side)), backend="triton").total.backward()
    predicted: collections.Counter[str] = collections.Counter()
    for row in rows_of(side, channels, multiprocessors=3, depth=depth, patch=patch):
        for name, (launches, _, _) in row.kernels.items():
            predicted[name] += row.times * launches
    assert dict(predicted) == {name: kernel.launches for name, kernel in counted.kernels.items()}


def test_the_goal_for_strips_that_stay_in_the_cache() -> None:
    """Of the paper's step: far fewer bytes than one strip, and no less than the floor."""
    from msformer_fast.benchmarks.ledger import rows_of

    whole, strips = (
        sum(row.times * row.moved for row in rows_of(257, 100, multiprocessors=132, strips=strips))
        for strips in (False, True)
    )
    floor = sum(row.times * row.floor for row in rows_of(257, 100, multiprocessors=132))
    assert floor < strips < 1.7 * floor < whole < 3.1 * floor
