"""Bands of rows and tiles of columns of the CPU's Mix-FFN, cut anywhere by threads, images and the edges of the map."""

from __future__ import annotations

import pytest
import torch

from msformer_fast.kernels.native import library
from tests.ops.cases import OPS
from tests.ops.test_contract import leaves, run, whole_errors

pytestmark = pytest.mark.skipif(library.why_not_built() is not None, reason="no CPU kernels")

OP = OPS["mix_ffn"]
#: Bands of four rows, of three, of two and of one; then a map that is more than one tile.
WIDTHS = (1, 13, 34, 35, 45, 46, 68, 69, 128)
TILES = {"B": 2, "H": 15, "W": 131, "C": 8, "D": 660}


@pytest.fixture(params=[1, 2, 5])
def any_threads(request: pytest.FixtureRequest, threads: None) -> None:
    torch.set_num_threads(request.param)


@pytest.mark.usefixtures("any_threads")
@pytest.mark.parametrize("width", WIDTHS)
def test_heights_that_are_no_multiple_of_a_band(width: int) -> None:
    for height in (1, 3, 4, 6, 13, 26):
        sizes = {"B": 2, "H": height, "W": width, "C": 9, "D": 21}
        found = whole_errors(OP, sizes, "native")
        assert max(found.values()) < 1e-5, (sizes, found)


@pytest.mark.usefixtures("any_threads")
def test_tiles_of_columns() -> None:
    found = whole_errors(OP, TILES, "native")
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("sizes", [{"B": 2, "H": 14, "W": 11, "C": 40, "D": 100}, TILES], ids=["bands", "tiles"])
def test_what_is_not_a_number_stays_in_its_neighbourhood(sizes: dict[str, int]) -> None:
    """Three pixels a side of the map, five of the gradient of what goes in; all else is the same to the bit."""
    drawn = {name: value.float() for name, value in OP.draw(sizes).items()}
    right, right_gradients = run(OP, leaves(drawn, torch.float32), sizes, "native")
    row, column = sizes["H"] // 2, sizes["W"] - 3
    drawn["t"] = drawn["t"].detach().clone()
    drawn["t"][0, row, column, 0] = float("nan")
    found, gradients = run(OP, leaves(drawn, torch.float32), sizes, "native")

    for value, wanted, reach in ((found[0], right[0], 1), (gradients["t"], right_gradients["t"], 2)):
        is_nan = value.isnan().any(dim=-1)
        near = torch.zeros_like(is_nan)
        near[0, row - reach : row + reach + 1, column - reach : column + reach + 1] = True
        assert torch.equal(is_nan, near)
        assert torch.equal(value[~near], wanted[~near])
