"""The vote of masks from several sources."""

from __future__ import annotations

import numpy as np
import pytest

from msformer_fast.foreground.choice import choose, vote
from msformer_fast.foreground.evidence import Mask
from msformer_fast.metrics import dice


def square(top: int, left: int, bottom: int, right: int) -> Mask:
    mask = np.zeros((40, 50), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_of_two_sources_that_are_sure_what_they_share_is_left() -> None:
    one, other = square(5, 5, 30, 30), square(10, 10, 35, 35)
    voted, expected = vote([([one], np.zeros(1)), ([other], np.zeros(1))])
    np.testing.assert_array_equal(voted, one & other)
    assert expected == pytest.approx((dice(voted, one) + dice(voted, other)) / 2)


def test_a_source_that_is_unsure_is_decided_by_the_other() -> None:
    small, large = square(5, 5, 20, 30), square(5, 5, 35, 30)
    unsure = [small, large], np.array([0.0, -0.1])
    for sure in (small, large):
        voted, _ = vote([unsure, ([sure], np.array([-7.0]))])
        np.testing.assert_array_equal(voted, sure)


def test_a_source_has_one_say_however_many_masks_it_has() -> None:
    rng = np.random.default_rng()
    middle = square(10, 10, 30, 40)
    many = [middle | (rng.random(middle.shape) < 0.3) for _ in range(20)]
    voted, expected = vote([(many, rng.normal(size=20)), ([middle], np.zeros(1))])
    np.testing.assert_array_equal(voted, middle)
    assert 0.5 < expected < 1


def test_holes_are_filled_and_specks_left_out() -> None:
    ring = square(5, 5, 30, 30) & ~square(12, 12, 20, 20)
    voted, _ = vote([([ring | square(35, 45, 37, 47)], np.zeros(1))])
    np.testing.assert_array_equal(voted, square(5, 5, 30, 30))


def test_the_weights_are_those_of_the_choice() -> None:
    masks, scores = [square(5, 5, 20, 30), square(5, 5, 22, 30), square(0, 0, 40, 50)], np.array([1.0, 0.0, -9.0])
    voted, _ = vote([(masks, scores)])
    np.testing.assert_array_equal(voted, masks[choose(masks, scores).index])
