"""Products on the matrix unit of a CPU: every length and width, both precisions, what is not a number."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
import torch

from msformer_fast import ops
from msformer_fast.float32_products import parts_of_16_bits
from msformer_fast.kernels.native import library
from tests.ops import test_contract as contract
from tests.ops.cases import OPS
from tests.ops.test_contract import leaves, run

pytestmark = pytest.mark.skipif(
    library.why_not_built() is not None or library.use_tiles(3) == 0, reason="no CPU kernels, or no matrix unit"
)

#: Bounds of relative errors with operands of two parts and of three; 2e-5 and 4e-7 were seen, and as much with vectors.
TWO_PARTS, THREE_PARTS = 2.0**-14, 8e-7


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    ops.use_ieee_products(False)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("wanted", ["highest", "high"])
def test_every_number_of_terms_rows_and_columns(wanted: str) -> None:
    """Terms, rows and columns that fill tiles, and those that leave a rest of any length."""
    torch.set_float32_matmul_precision(wanted)
    bound = THREE_PARTS if wanted == "highest" else TWO_PARTS
    largest = 0.0
    for number in range(34):
        sizes = {"B": 1, "H": 9, "W": 32 + number, "C": 64 + number, "D": 96 + 3 * number}
        found = contract.whole_errors(OPS["mix_ffn"], sizes, "native")
        assert max(found.values()) < bound, (sizes, found)
        largest = max(largest, *found.values())
    assert (largest > THREE_PARTS) == (wanted == "high")


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("name", ["mix_ffn", "efficient_attention", "score_map", "patch_embedding", "stability_loss"])
def test_products_of_vectors_where_the_unit_is_not_wanted(name: str) -> None:
    ops.use_ieee_products()
    assert parts_of_16_bits() == 0
    op = OPS[name]
    for variant in op.sizes:
        contract.test_error_is_no_larger_than_pytorchs(op, "native", variant, torch.float32)


@pytest.mark.usefixtures("precision")
def test_the_precision_of_each_call_is_that_of_the_moment() -> None:
    """Also between the forward and the backward; and vectors differ from tiles, so that the unit is in use."""
    op = OPS["mix_ffn"]
    sizes = {"B": 1, "H": 9, "W": 40, "C": 64, "D": 128}
    inputs = leaves(op.draw(sizes), torch.float32)
    outputs = {}
    for name, wanted, ieee in (("exact", "highest", False), ("high", "high", False), ("vectors", "high", True)):
        torch.set_float32_matmul_precision(wanted)
        ops.use_ieee_products(ieee)
        outputs[name] = run(op, inputs, sizes, "native")[0][0].detach()
    assert not torch.equal(outputs["exact"], outputs["vectors"])
    distance = {name: float((y - outputs["vectors"]).norm() / y.norm()) for name, y in outputs.items()}
    assert distance["exact"] < THREE_PARTS < distance["high"] < TWO_PARTS


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_what_is_not_a_number_stays_so_in_its_pixel_alone(bits: int) -> None:
    features = torch.rand(1, 9, 8, 64)
    weight, bias = torch.rand(100, 64), torch.rand(100)
    right = ops.linear_clustering_loss(features, weight, bias, reduction="none", backend="native")[0]

    (nan,) = struct.unpack("<i", struct.pack("<I", bits))
    features.view(torch.int32)[0, 4, 5, 6] = nan
    found = ops.linear_clustering_loss(features, weight, bias, reduction="none", backend="native")[0]
    assert found.isnan().nonzero().tolist() == [[0, 4, 5]]
    others = ~found.isnan()
    assert torch.equal(found[others], right[others])


def test_another_precision_within_a_mode_without_data() -> None:
    """The library is told by numbers, not by tensors: a step is counted on tensors without data at any time."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert library.use_tiles(2) == 2
        assert library.use_tiles(3) == 3
