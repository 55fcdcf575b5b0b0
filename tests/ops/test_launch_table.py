"""Which row of a launch table serves a size on a card."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from msformer_fast.kernels.launch import Row, choose

ROWS: dict[tuple[str, int], Row] = {
    ("", 128): (3,),
    ("sm_90", 128): (13,),
    ("", 32): (1,),
    ("sm_80 sm_90", 64): (12,),
    ("", 64): (2,),
    ("gfx942", 16): (10,),
}


@pytest.mark.parametrize(
    ("size", "target", "row"),
    [
        (16, "sm_86", 1),
        (32, "sm_86", 1),
        (33, "sm_86", 2),
        (65, "sm_86", 3),
        # A row for the card goes before one for any card of its width, and does not hide a narrower one.
        (64, "sm_90", 12),
        (64, "sm_80", 12),
        (128, "sm_90", 13),
        (128, "sm_80", 3),
        (32, "sm_90", 1),
        (16, "gfx942", 10),
        (17, "gfx942", 1),
    ],
)
def test_the_narrowest_then_the_card(size: int, target: str, row: int) -> None:
    assert choose(ROWS, size, target) == (row,)
    assert choose(dict(reversed(ROWS.items())), size, target) == (row,), "in any order of rows"


def test_a_card_that_no_row_names() -> None:
    """And None, which is no card: the interpreter."""
    assert choose(ROWS, 64, "sm_75") == (2,)
    assert choose(ROWS, 64, None) == (2,)


def test_no_row_is_wide_enough() -> None:
    with pytest.raises(ValueError, match="empty"):
        choose(ROWS, 129, "sm_90")


@pytest.mark.parametrize(("version", "row"), [((3, 3), 21), ((3, 7), 21), ((3, 8), 12), ((3, 10), 12)], ids=str)
def test_rows_for_older_versions_alone(version: tuple[int, ...], row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``before 3.8``: goes before the card's own row of its width, not before a narrower one."""
    monkeypatch.setattr("msformer_fast.kernels.launch.TRITON", version)
    rows = {**ROWS, ("sm_90 before 3.8", 64): (21,), ("sm_80 before 3.8", 128): (22,)}
    assert choose(rows, 64, "sm_90") == (row,)
    assert choose(rows, 32, "sm_90") == (1,)
    assert choose(rows, 64, "sm_80") == (12,), "of another card"
    assert choose(rows, 128, "sm_80") == ((22,) if version < (3, 8) else (3,))
