"""Two runs: a planted slow-down is seen, an unchanged run is not accused, and a machine's drift is taken out."""

from __future__ import annotations

import random

import pytest

from msformer_fast.benchmarks import compare
from msformer_fast.benchmarks.records import Row
from tests.conftest import SEED


def row(seconds: list[float], anchor: list[float], provider: str = "torch", **more) -> Row:
    sizes = {"side": 65, "channels": 100}
    return Row("mix_ffn", sizes, "float32", "cpu", provider, "both", seconds=seconds, anchor=anchor, **more)


def noisy(draw: random.Random, scale: float, drift: float = 1.0, n: int = 15) -> tuple[list[float], list[float]]:
    """Times with 5 per cent of noise and an outlier, and the anchor's beside them, on a machine slowed by ``drift``."""
    times = [drift * scale * draw.lognormvariate(0, 0.05) for _ in range(n)]
    times[draw.randrange(n)] *= 4
    return times, [drift * 0.01 * draw.lognormvariate(0, 0.03) for _ in range(n)]


def test_an_unchanged_run_is_not_accused_and_a_slow_down_is_seen() -> None:
    draw = random.Random(SEED)
    accused = seen = 0
    for _ in range(100):
        before, same, slower = row(*noisy(draw, 1.0)), row(*noisy(draw, 1.0, 1.4)), row(*noisy(draw, 1.3, 0.8))
        accused += compare.compare([same], [before])[0].verdict != "same"
        seen += compare.compare([slower], [before])[0].verdict == "slower"
    assert accused <= 2
    assert seen >= 95


def test_a_change_that_does_not_come_again_is_doubted() -> None:
    then = [row([1.0] * 9, [0.1] * 9), row([1.0] * 9, [0.1] * 9, "triton")]
    first = compare.compare([row([1.5] * 9, [0.1] * 9), row([1.5] * 9, [0.1] * 9, "triton")], then)
    second = compare.compare([row([1.0] * 9, [0.1] * 9), row([1.6] * 9, [0.1] * 9, "triton")], then)
    assert [change.verdict for change in first] == ["slower", "slower"]
    assert [change.verdict for change in compare.confirmed(first, second)] == ["same", "slower"]


def test_small_changes_count_for_nothing_however_sure() -> None:
    then, now = row([1.0] * 9, []), row([1.05] * 9, [])
    assert compare.compare([now], [then])[0].verdict == "same"
    assert compare.compare([now], [then], threshold=0.02)[0].verdict == "slower"
    assert compare.compare([then], [now], threshold=0.02)[0].verdict == "faster"


def test_only_measured_rows_that_both_have() -> None:
    then = [row([1.0] * 5, []), row([1.0] * 5, [], "triton", label="dry run")]
    now = [row([9.0] * 5, [], "triton"), row([1.0] * 5, []), row([], [], "einsum")]
    assert [change.now.provider for change in compare.compare(now, then)] == ["torch"]


def test_the_table_names_what_changed() -> None:
    then = [row([1.0] * 9, []), row([1.0] * 9, [], "triton")]
    changes = compare.compare([row([2.0] * 9, []), row([1.0] * 9, [], "triton")], then)
    slower, last = compare.table(changes)
    assert slower.startswith("slower   2.00 times the earlier time (2.00 to 2.00)  mix_ffn: channels 100, side 65")
    assert last == "1 of 2 rows as before, within noise"


def test_a_bootstrap_interval_holds_the_ratio() -> None:
    low, high = compare.interval([2.0, 2.2, 2.1, 1.9, 2.0], [1.0, 1.1, 0.9, 1.0, 1.05])
    assert low <= 2.0 <= high and low == pytest.approx(1.8, abs=0.15)
