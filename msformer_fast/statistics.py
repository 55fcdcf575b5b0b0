"""How sure a mean over images is, and whether one method beats another on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError

Values = Sequence[float] | NDArray[Any]
_STATISTICS: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}
_BATCH = 2**22  # values drawn at a time, so that many images do not need much memory


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval, which is the whole line where the figure is undefined (NaN)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """How a method differs from another on the same images.

    Attributes:
        difference: mean of the paired differences, with its bootstrap interval.
        p_value: of Wilcoxon's signed-rank test, two-sided; 1 where no pair differs.
        count: number of pairs.
    """

    difference: Interval
    p_value: float
    count: int


def bootstrap_interval(
    values: Values, statistic: str = "mean", *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean or median over images with its percentile bootstrap interval (Efron, Annals of Statistics 7, 1979).

    Images are drawn with replacement. The percentile interval is taken since it stays inside the range of the values
    and needs no jackknife, as BCa does, which infinite distances would spoil and which is degenerate for medians.
    Its ends are draws, not points between two: between infinities there are none, which is why this is not
    ``scipy.stats.bootstrap``. Equal values give an interval of no width. Infinities of both signs leave nothing to
    say: the value is NaN, the interval the whole line.

    Args:
        values: one an image, one or more; infinity is allowed (a distance to an empty mask), NaN is not.
        statistic: ``"mean"`` or ``"median"``.
        level: of the interval, between 0 and 1.
        resamples: number of draws, 1 or more.
        seed: of the draws, a non-negative integer; NumPy's global generator is left alone.

    Raises:
        InputError: no value, a NaN or what is no number, an unknown statistic, a level beyond (0, 1), no resample, or
            a negative seed.
    """
    sample = _checked(values, "values", 1)
    if statistic not in _STATISTICS:
        raise InputError(f"statistic: got {statistic!r}; accepted is one of {', '.join(_STATISTICS)}")
    if not 0 < level < 1:
        raise InputError(f"level: got {level}; accepted is a number between 0 and 1")
    if resamples < 1:
        raise InputError(f"resamples: got {resamples}; accepted is 1 or more")
    if seed < 0:
        raise InputError(f"seed: got {seed}; accepted is a non-negative integer")
    if (sample == sample[0]).all():  # the mean of equal numbers can differ from them in the last digit
        return Interval(*[float(sample[0])] * 3)
    if np.isposinf(sample).any() and np.isneginf(sample).any():
        return Interval(math.nan, -math.inf, math.inf)
    measure, rng = _STATISTICS[statistic], np.random.default_rng(seed)
    value, statistics = float(measure(sample)), np.empty(resamples)
    rows = max(1, _BATCH // sample.size)
    for start in range(0, resamples, rows):
        batch = statistics[start : start + rows]
        batch[:] = measure(sample[rng.integers(sample.size, size=(batch.size, sample.size))], axis=1)
    statistics.sort()
    # Not np.quantile: it would interpolate between infinities.
    outside = (1 - level) / 2
    low, high = (statistics[min(resamples - 1, round(part * (resamples - 1)))] for part in (outside, 1 - outside))
    return Interval(value, float(low), float(high))


def paired_test(a: Values, b: Values, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> PairedTest:
    """Whether ``a`` differs from ``b``, image by image.

    Sources: bootstrap of the paired differences (Efron, 1979); signed-rank test (Wilcoxon, Biometrics Bulletin 1,
    1945), which asks for no normal distribution. The two answer different questions: the interval is of the mean, the
    p-value is about ranks, in which an infinite difference is one that is larger than any finite one.

    Args:
        a, b: one value an image in the same order, two or more; where both are infinite they do not differ. Where
            some differences are inf and others -inf their mean is undefined; the p-value is not.
        level, resamples, seed: as in :func:`bootstrap_interval`.

    Raises:
        InputError: the lengths differ, there are fewer than two pairs, or a value is NaN.
    """
    from scipy import stats

    first, second = _checked(a, "a", 2), _checked(b, "b", 2)
    if first.shape != second.shape:
        raise InputError(f"b: got {second.size} values; accepted are as many as a has, {first.size}")
    same = first == second
    differences = np.where(same, 0.0, np.where(same, 0.0, first) - np.where(same, 0.0, second))
    changed = differences[~same]  # Wilcoxon's own treatment of ties: pairs that do not differ are left out
    # The test sees signs and ranks only, so ranks stand for the differences and infinities need no care.
    ranks = np.sign(changed) * stats.rankdata(np.abs(changed))
    p_value = 1.0 if same.all() else float(stats.wilcoxon(ranks).pvalue)
    interval = bootstrap_interval(differences, level=level, resamples=resamples, seed=seed)
    return PairedTest(interval, p_value, first.size)


def _checked(values: Values, name: str, least: int) -> NDArray[np.float64]:
    try:
        sample = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: not all are numbers; accepted is a sequence of {least} or more numbers") from None
    if sample.ndim != 1 or sample.size < least:
        raise InputError(f"{name}: got shape {sample.shape}; accepted is a sequence of {least} or more numbers")
    if np.isnan(sample).any():
        raise InputError(f"{name}: {int(np.isnan(sample).sum())} of {sample.size} are NaN; accepted are numbers")
    return sample
