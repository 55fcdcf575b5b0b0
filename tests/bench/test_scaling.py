"""Exponents of power laws, what stands out from them, and a measurement of tiny sizes from end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from msformer_fast.benchmarks import scaling
from msformer_fast.benchmarks.records import Row, read_results
from msformer_fast.benchmarks.scaling import AXES, Axis, exponents, lines, surprises
from msformer_fast.errors import InputError


def axis_of(name: str) -> Axis:
    return next(axis for axis in AXES if axis.name == name)


def rows_of(axis: Axis, *seconds: float) -> list[Row]:
    """As if a run had found these medians."""
    cases = [axis.case(value, "cpu") for value in axis.values]
    rows = [Row(c.bench, dict(c.sizes), c.dtype, c.device, "torch", "both") for c in cases]
    for row, median in zip(rows, seconds, strict=True):
        row.seconds, row.peak_bytes = [median / 2, median, 3 * median], 5_000_000
    return rows


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.5])
def test_exponents_of_power_laws(power: float) -> None:
    sizes = [3, 4, 10, 11]
    assert exponents(sizes, [7 * n**power for n in sizes]) == pytest.approx([power] * 3)


def test_exponents_are_local() -> None:
    assert exponents([1, 2, 4], [1, 8, 16]) == pytest.approx([3, 1])
    assert exponents([5], [1]) == exponents([], []) == []


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ([1, 2], [1], "as many"),
        ([2, 2], [1, 1], "rise"),
        ([2, 1], [1, 1], "rise"),
        ([0, 1], [1, 1], "positive"),
        ([1, 2], [1, 0], "positive"),
    ],
)
def test_exponents_refuse(sizes: list[float], values: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        exponents(sizes, values)


def test_units_and_work_of_the_axes() -> None:
    """By hand: 129^2 pixels; 32 x 32 patches of 4 pixels in 129; half of the work the clusters' at 831 of them."""
    assert axis_of("pixels").units({"side": 129}) == 16641
    assert axis_of("patches").units({"side": 129, "patch": 4}) == 1024
    assert axis_of("channels").expected([32, 64]) == pytest.approx([2.0])
    assert axis_of("clusters").expected([830.9, 831.1]) == pytest.approx([0.5], abs=1e-3)


def test_the_share_of_the_clusters_is_that_of_the_floors() -> None:
    from msformer_fast.floors import efficient_attention, guided_score_map, mix_ffn

    blocks = sum(
        2 * sum((*efficient_attention.flops(*map_, 100).values(), *mix_ffn.flops(*map_, 100, 400).values()))
        for map_ in ((1, 129, 129), (1, 65, 65))
    )
    head = sum(guided_score_map.flops(1, 129, 129, 100, 1, 100, 32).values())
    (constant, _), (slope, _) = axis_of("clusters").work
    assert constant / slope == pytest.approx(blocks / head, rel=0.01)


def test_what_stands_out_is_named() -> None:
    """From 32 to 64 channels four times the seconds are due; twice are 1.0 below, and 3.5 times only 0.19."""
    axis = dataclasses.replace(axis_of("channels"), values=(32, 64, 128))
    rows = rows_of(axis, 1.0, 2.0, 7.0)
    assert surprises(axis, rows) == ["channels 32 to 64: exponent 1.00, expected 2.00"]
    table = lines(axis, rows)
    assert "| 64 | 64 | 2000.000 | 5.0 | 3.125e+04 | 1.00 | 2.00 |" in table
    assert "channels 32 to 64: exponent 1.00, expected 2.00" in table
    assert "all exponents as expected" in lines(axis, rows_of(axis, 1.0, 4.0, 16.0))


def test_a_run_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    """Tiny sizes of the step and of an op: the rows of the file are the lines of the tables."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    step = dataclasses.replace(
        axis_of("pixels"), values=(17, 25, 33), fixed={"channels": 4, "clusters": 5, "depth": 1, "patch": 8}
    )
    patches = dataclasses.replace(axis_of("patches"), values=(9, 17), fixed={"channels": 4, "patch": 4})
    monkeypatch.setattr(scaling, "AXES", (step, patches))
    file = tmp_path / "rows.json"
    scaling.main(["--seconds", "0.01", "--smallest", "2", "-o", str(file)])
    rows = read_results(file).rows
    assert [(row.bench, row.part, row.sizes["side"]) for row in rows] == [
        ("step", "step", 17),
        ("step", "step", 25),
        ("stability_loss", "both", 9),
        ("stability_loss", "both", 17),
    ]
    assert all(len(row.seconds) >= 3 and row.provider == "torch" and row.label == "measured" for row in rows)
    small, large = (row.peak_bytes or 0 for row in rows[:2])
    assert 0 < small < large
    printed = capsys.readouterr().out
    assert printed.count("exponent | expected |") == 2 and f"| {large / 1e6:.1f} |" in printed
    with pytest.raises(SystemExit):
        scaling.main(["-o", str(file)])
    assert len(json.loads(file.read_text())["rows"]) == 4
