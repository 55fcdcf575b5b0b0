"""Bootstrap intervals and paired tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from msformer_fast.errors import InputError
from msformer_fast.statistics import bootstrap_interval, paired_test


def test_the_width_is_that_of_the_theory() -> None:
    sample = np.random.default_rng(3).normal(5.0, 2.0, 400)
    for level in (0.5, 0.95):
        interval = bootstrap_interval(sample, level=level)
        assert interval.value == pytest.approx(sample.mean())
        half = stats.norm.ppf(0.5 + level / 2) * sample.std() / 20
        assert interval.high - interval.value == pytest.approx(half, rel=0.1)
        assert interval.value - interval.low == pytest.approx(half, rel=0.1)


def test_coverage() -> None:
    """In 95 % of 300 draws the interval holds the mean, within what chance allows (3.5 standard deviations)."""
    rng = np.random.default_rng(11)
    intervals = [bootstrap_interval(rng.normal(size=60), resamples=500, seed=seed) for seed in range(300)]
    held = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert abs(held - 0.94) < 3.5 * np.sqrt(0.95 * 0.05 / 300)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_as_scipy_has_it(statistic: str) -> None:
    sample = np.random.default_rng(7).gamma(2.0, size=60)
    interval = bootstrap_interval(sample, statistic, level=0.9)
    function = {"mean": np.mean, "median": np.median}[statistic]
    theirs = stats.bootstrap((sample,), function, n_resamples=10_000, confidence_level=0.9, method="percentile")
    assert (interval.low, interval.high) == pytest.approx(theirs.confidence_interval, abs=0.03)


def test_many_images_are_drawn_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = np.random.default_rng(8).random(50)
    at_once = bootstrap_interval(sample, resamples=999)
    monkeypatch.setattr("msformer_fast.statistics._BATCH", 50 * 7)
    batched = bootstrap_interval(sample, resamples=999)
    assert (batched.low, batched.high) == pytest.approx((at_once.low, at_once.high), abs=0.02)


def test_median_and_repeats() -> None:
    sample = [0.1, 0.2, 0.3, 0.4, 9.0]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (bootstrap_interval(sample, "median") for _ in range(2))
    assert first == again and first.value == 0.3 and 0.1 <= first.low <= 0.3 <= first.high <= 9.0
    assert first.low in sample and first.high in sample
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert bootstrap_interval(sample, seed=1) != bootstrap_interval(sample, seed=2)


def test_one_value_equal_values_and_infinity() -> None:
    assert bootstrap_interval([0.7]) == bootstrap_interval([0.7] * 9)
    only = bootstrap_interval([0.7])
    assert (only.value, only.low, only.high) == (0.7, 0.7, 0.7)
    infinite = bootstrap_interval([1.0, 2.0, 3.0, np.inf])
    assert infinite.value == infinite.high == np.inf and infinite.low >= 1.0
    assert bootstrap_interval([np.inf, np.inf]).low == np.inf
    assert bootstrap_interval([0.1] * 3).value == 0.1  # not the 0.10000000000000002 of the rounded sum
    both = bootstrap_interval([-np.inf, 1.0, np.inf])
    assert np.isnan(both.value) and (both.low, both.high) == (-np.inf, np.inf)


def test_an_effect_is_found_and_its_absence_is_not() -> None:
    rng = np.random.default_rng(5)
    b = rng.random(40)
    effect = paired_test(b + 0.05 + 0.02 * rng.normal(size=40), b)
    assert effect.count == 40 and effect.difference.low > 0.03 and effect.p_value < 1e-6
    opposite = paired_test(b, b + 0.05 + 0.02 * rng.normal(size=40))
    assert opposite.difference.high < -0.03
    none = [paired_test(b + 0.02 * rng.normal(size=40), b, resamples=500) for _ in range(60)]
    assert np.mean([test.difference.low <= 0 <= test.difference.high for test in none]) > 0.8
    assert np.mean([test.p_value < 0.05 for test in none]) < 0.2


def test_pairs_that_are_equal() -> None:
    same = paired_test([1.0, 2.0, np.inf], [1.0, 2.0, np.inf])
    assert same.p_value == 1 and (same.difference.value, same.difference.low, same.difference.high) == (0, 0, 0)
    one = paired_test([1.0, np.inf, np.inf], [1.0, np.inf, 5.0])
    assert one.difference.value == np.inf and 0 < one.p_value <= 1
    opposed = paired_test([np.inf, 1.0, 2.0, 3.0], [1.0, np.inf, 2.5, 3.5])
    assert np.isnan(opposed.difference.value) and 0 < opposed.p_value <= 1


def test_an_infinite_difference_ranks_above_any_finite_one() -> None:
    a, b = np.arange(1.0, 13.0) ** 2, np.full(12, 20.5)
    finite = paired_test(a, b).p_value
    assert finite == pytest.approx(stats.wilcoxon(a - b).pvalue)
    a[-1] = np.inf
    assert paired_test(a, b).p_value == finite


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (([],), {}, "^values: .*accepted"),
        (([[1.0, 2.0]],), {}, "^values: .*accepted"),
        (([1.0, np.nan],), {}, "^values: 1 of 2 are NaN"),
        (([1.0, 2.0], "mode"), {}, "^statistic: .*mean, median"),
        (([1.0, 2.0],), {"level": 1.0}, "^level"),
        (([1.0, 2.0],), {"resamples": 0}, "^resamples"),
        (([1.0, 2.0],), {"seed": -1}, "^seed"),
        ((["a", "b"],), {}, "^values: not all are numbers"),
    ],
)
def test_bad_samples(arguments: tuple, options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        bootstrap_interval(*arguments, **options)


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [([1.0], [2.0], "^a: .*2 or more"), ([1.0, 2.0], [1.0, 2.0, 3.0], "^b: got 3"), ([1.0, 2.0], [1.0, np.nan], "NaN")],
)
def test_bad_pairs(a: list, b: list, match: str) -> None:
    with pytest.raises(InputError, match=match):
        paired_test(a, b)
