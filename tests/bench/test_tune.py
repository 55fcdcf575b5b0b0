"""The search for launch settings, on made-up times and in the interpreter."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from msformer_fast.benchmarks import candidate_rows, tune
from msformer_fast.benchmarks.tune_tables import TABLES
from msformer_fast.kernels.launch import compile_options

triton = pytest.importorskip("triton")

COLUMNS = ("block", "block", "warps", "stages")


def test_neighbours_differ_in_one_number_and_stay_within_limits() -> None:
    assert set(tune.neighbours((16, 0, 8, 1), COLUMNS)) == {
        *((8, 0, 8, 1), (32, 0, 8, 1)),  # a block of 0 is a whole dimension: it stays
        *((16, 0, 4, 1), (16, 0, 16, 1), (16, 0, 8, 2)),
    }
    assert (8, 256, 1, 4) not in tune.neighbours((8, 256, 1, 4), COLUMNS)
    assert set(tune.neighbours((8, 256, 1, 4), COLUMNS)) == {
        (16, 256, 1, 4),
        (8, 128, 1, 4),
        (8, 256, 2, 4),
        (8, 256, 1, 3),
    }


def cost(row: tune.TableRow) -> float:
    """A valley with its bottom at (64, 32, 4, 2); wide blocks with many warps do not run."""
    if row[0] > 128:
        return math.inf
    goal = (64, 32, 4, 2)
    return 1.0 + sum(abs(math.log2(a) - math.log2(b)) for a, b in zip(row, goal, strict=True))


def test_the_search_walks_to_the_bottom_and_measures_no_row_twice() -> None:
    measured: list[tune.TableRow] = []
    found = tune.search((16, 128, 8, 1), COLUMNS, lambda row: measured.append(row) or cost(row), lambda: False)
    assert found.after == (64, 32, 4, 2) and found.after_seconds == 1.0 and found.finished
    assert found.before == (16, 128, 8, 1) and found.before_seconds == cost(found.before)
    assert len(measured) == len(set(measured)) == len(found.tried)


def test_a_gain_within_noise_moves_nothing() -> None:
    found = tune.search((32, 32, 4, 1), COLUMNS, lambda row: 1.0 - 0.001 * row[0] / 32, lambda: False)
    assert found.after == found.before and found.finished


def test_when_time_is_up_the_best_so_far_is_kept() -> None:
    measured: list[tune.TableRow] = []
    found = tune.search(
        (16, 32, 4, 2), COLUMNS, lambda row: measured.append(row) or cost(row), lambda: len(measured) > 2
    )
    assert not found.finished and len(measured) == 3
    assert found.after == min(measured, key=cost)


def test_every_table_is_what_it_is_said_to_be() -> None:
    """Columns and parts against the launch tables themselves: what a table holds, warps and stages among it."""
    for table in TABLES:
        rows = importlib.import_module(f"msformer_fast.kernels.{table.module}").TABLE
        for key, sizes in rows.items():
            for row in sizes.values():
                assert len(row) == len(table.columns), (table.op, key)
                warps = row[table.columns.index("warps")]
                assert warps in (1, 2, 4, 8, 16), (table.op, key)
                assert all(
                    stage in (1, 2, 3, 4) for stage, kind in zip(row, table.columns, strict=True) if kind == "stages"
                )
        parts = {key[0] for key in rows}
        assert set(table.parts) <= parts, table.op


def test_a_row_is_in_force_inside_and_gone_after_even_a_failure() -> None:
    from msformer_fast.kernels import stability_loss as kernels

    key, before = ("forward", "ieee"), dict(kernels.TABLE["forward", "ieee"])

    def use() -> None:
        with candidate_rows.replaced(kernels.TABLE, [key], (16, 16, 16, 2, 3)):
            settings = kernels.launch_settings("forward", 100, torch.float32, "ieee", "sm_90")
            assert settings == dict(BLOCK_M=16, BLOCK_N=16, BLOCK_K=16, **compile_options(num_warps=2, num_stages=3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert kernels.TABLE[key] == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter")
@pytest.mark.usefixtures("one_thread")
def test_a_search_on_a_real_op_says_what_to_paste() -> None:
    from msformer_fast.benchmarks.case import Case

    (table,) = (table for table in TABLES if table.op == "stability_loss")
    case = Case.of("stability_loss", {"side": 9, "channels": 32, "patch": 2})
    found = tune.tune(table, "forward", case, seconds=0.0, rounds=1)
    assert found is not None
    assert tuple(found["before"]) == (32, 32, 32, 4, 1) and found["before_ms"] > 0
    assert found["paste"].startswith(
        "kernels/stability_loss.py: ('forward', 'ieee'): (\"None\", 32): (32, 32, 32, 4, 1)"
    )
