"""Predictions against figures computed by hand, with and without launch tables, and the compilers' reports."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import pytest
import torch

from msformer_fast import InputError
from msformer_fast.benchmarks import compiler_reports
from msformer_fast.benchmarks.cards import CARDS
from msformer_fast.benchmarks.case import Case, Floor, Kernels
from msformer_fast.benchmarks.options import OPS
from msformer_fast.benchmarks.predict import COMPILED, FLOORS, HEADING, SOURCES, Prediction, predict, table
from msformer_fast.benchmarks.suite import bench_of
from tests.harness.aot_table import FOLDER, read_table

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs launch tables")
H100 = ("H100 SXM",)  # 3350 GB/s; 67 TFLOP/s in float32, 494 in tf32, 989 in 16 bits


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing triton, or any of the kernels, fails."""
    kernels = [name for name in sys.modules if name.startswith("msformer_fast.kernels")]
    for name in ("triton", "msformer_fast.kernels", *kernels):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def of(name: str, dtype: str = "float32", cards: tuple[str, ...] = H100, **sizes: int) -> dict[str, Prediction]:
    """Predictions of one case by part."""
    return {p.part: p for p in predict([(bench_of(name), Case.of(name, sizes, dtype))], cards)}


class Halves:
    """One microsecond of bytes forward, two of products backward, on an H100."""

    name = "halves"
    parts = ("forward", "backward", "both")

    def floor(self, case: Case, part: str) -> Floor:
        return {"forward": Floor(3_350_000, 0), "backward": Floor(0, 134_000_000)}[part]

    def kernels(self, case: Case, part: str, multiprocessors: int, target: str | None) -> Kernels | None:
        return None


def test_halves_follow_one_another() -> None:
    """The slower of bytes and products of each, then the sum: not the slower of the sums."""
    found = predict([(Halves(), Case.of("halves", {}))], H100)
    assert [p.part for p in found] == ["forward", "backward", "both"]
    assert [p.seconds for p in found] == pytest.approx([1e-6, 2e-6, 3e-6])
    assert [p.bound for p in found] == ["memory", "products", "products"]
    assert (found[2].moved_bytes, found[2].flops, found[2].launches) == (3_350_000, 134_000_000, 0)
    assert (found[2].registers, found[2].occupancy) == (None, None)


@needs_triton
def test_a_call_bound_by_products() -> None:
    """256 patches of 100 channels: 2 x 256^2 x 100 operations, three times as many backward."""
    found = of("stability_loss", side=65, channels=100, patch=4)
    pair, rows, product = 2 * 256 * 100 * 4, 2 * 256 * 4, 2 * 256**2 * 100
    slots = 256 // 32 * 4  # of a launch table whose tile has 32 rows
    assert found["forward"].moved_bytes == (pair + rows + slots) + (slots + 4)
    assert found["backward"].moved_bytes == 2 * (pair + rows + 4) + pair
    assert found["forward"].floor_bytes == pair + rows + 4
    assert [found[part].launches for part in found] == [2, 2, 4]
    assert [found[part].flops for part in found] == [product, 3 * product, 4 * product]
    assert [found[part].seconds for part in found] == pytest.approx([n * product / 67e12 for n in (1, 3, 4)])
    assert {p.bound for p in found.values()} == {"products"}
    assert {(p.registers, p.occupancy) for p in found.values()} == {(168, "12/64")}


@needs_triton
def test_products_in_tf32(tf32: None) -> None:
    """The same call is then bound by its bytes, and runs other kernels."""
    found = of("stability_loss", side=65, channels=100, patch=4)["backward"]
    assert found.bound == "memory"
    assert found.seconds == pytest.approx(found.moved_bytes / 3350e9)
    assert (found.registers, found.occupancy) == (227, "8/64")


@needs_triton
def test_a_step_is_the_ledgers() -> None:
    from msformer_fast.benchmarks.ledger import rows_of

    sizes = dict(side=257, channels=100, depth=2, patch=32)
    found = of("step", **sizes)
    rows = rows_of(**sizes, multiprocessors=132)
    assert found["step"].launches == 83
    h100 = CARDS["H100 SXM"]
    assert found["step"].seconds == pytest.approx(sum(row.seconds(h100, h100.tf32 / 3) for row in rows))
    assert found["step"].seconds == pytest.approx(found["forward"].seconds + found["backward"].seconds)
    assert found["step"].moved_bytes == sum(row.times * row.moved for row in rows) == pytest.approx(4.70e9, rel=0.001)
    image = of("image", **sizes, iterations=5)["image"]
    assert (image.launches, image.flops) == (5 * 83, 5 * found["step"].flops)
    other = of("step", cards=("MI300X",), **sizes)["step"]
    assert other.moved_bytes != found["step"].moved_bytes  # of its own launch table and its 304 compute units


@needs_triton
@pytest.mark.parametrize("name", OPS)
def test_every_op_is_predicted(name: str) -> None:
    """Every launch of every op on every card moves no less than a tenth below the floor, and has been compiled."""
    bench = bench_of(name)
    for dtype in ("float32", "bfloat16"):
        case = Case.of(name, {**bench.sizes, "side": 129, "channels": bench.paper}, dtype)
        found = predict([(bench, case)])
        assert len(found) == 5 * 3
        for p in found:
            assert p.launches > 0 and p.moved_bytes > 0.9 * p.floor_bytes, p
            assert p.registers is not None and 32 <= p.registers <= 512, p


def test_floors_where_there_is_no_triton(without_triton: None) -> None:
    """A pixel has 100 scores of 4 bytes and a label of one; beside them a loss and a count."""
    found = of("clustering_loss", side=129, channels=100)
    forward = 129**2 * (100 * 4 + 1) + 4 + 4
    assert found["forward"].moved_bytes == found["forward"].floor_bytes == forward
    assert found["forward"].seconds == pytest.approx(forward / 3350e9)
    assert found["forward"].bound == "memory"
    step = of("step", side=65, channels=8, depth=1, patch=8)["step"]
    assert step.moved_bytes == step.floor_bytes > 0
    assert {p.launches for p in (*found.values(), step)} == {0}


@needs_triton
def test_a_case_wider_than_the_kernels_take() -> None:
    found = of("mix_ffn", side=9, channels=512)["forward"]
    assert found.launches == 0 and found.moved_bytes == found.floor_bytes


def test_the_table(without_triton: None) -> None:
    cases = [(bench_of("clustering_loss"), Case.of("clustering_loss", {"side": 129, "channels": 100}))]
    cards = ("H100 SXM", "RTX 4090")
    found = predict(cases, cards)
    assert [(p.part, p.card) for p in found[:3]] == [
        ("forward", "H100 SXM"), ("forward", "RTX 4090"), ("backward", "H100 SXM")
    ]  # fmt: skip
    heading, columns, forward, backward, both, floors, last, _, compiled, names, reports = table(found)
    assert heading == HEADING == "predicted, not measured: at least, ms"
    assert columns.split() == ["case", "part", "launches", "MB", "moved", "of", "floor", "H100", "SXM", "RTX", "4090"]
    assert forward.split()[:6] == ["clustering_loss:", "channels", "100,", "side", "129,", "float32"]
    # 129^2 401 + 8 bytes at 3350 and 1008 GB/s
    assert forward.split()[6:] == ["forward", "-", "6.7", "1.00", "0.00199*", "0.00662*"]
    assert backward.split()[6] == "backward" and both.split()[6] == "both"
    assert floors == FLOORS
    assert last == SOURCES and "No GPU measured" in last
    assert compiled == COMPILED and names.split()[-4:] == ["H100", "SXM", "RTX", "4090"]
    of_card = [compiler_reports.worst("clustering_loss", "float32", "ieee", target) for target in ("sm_90", "sm_89")]
    expected = [f"{registers}, {occupancy}" for registers, occupancy in of_card]
    assert " ".join(reports.split()) == " ".join(["clustering_loss float32", *expected])


def test_an_unknown_card_is_refused() -> None:
    with pytest.raises(InputError, match="card: 'H1000' is not known; choose from A100"):
        predict([], ["H1000"])


def test_tables_of_the_compilers() -> None:
    """Found where the gate looks and where the package looks, with the same figures."""
    modules = sorted(path.stem for path in FOLDER.glob("*.csv"))
    assert {"stability_loss", "mix_ffn", "partial_sums"} <= set(modules)
    for module in modules:
        _, rows = read_table(module)
        reports = compiler_reports.reports_of(module)
        assert rows and {(r.case, r.target): r.registers for r in reports} == {
            key: int(row["registers"]) for key, row in rows.items()
        }
    assert compiler_reports.reports_of("nothing") == ()


def test_the_worst_kernel() -> None:
    """Of one dtype, one kind of product and one card."""
    worst = compiler_reports.worst
    assert worst("stability_loss", "float32", "ieee", "sm_90") == (168, "12/64")
    assert worst("stability_loss", "float32", "tf32", "sm_90") == (227, "8/64")
    assert worst("stability_loss", "bfloat16", "ieee", "sm_90") == worst("stability_loss", "bfloat16", "tf32", "sm_90")
    assert worst("stability_loss", "float32", "ieee", "sm_10") == (None, None)
    # Small kernels alone, of which there are tables in this dtype, say nothing of the op.
    assert worst("partial_sums", "float16", "ieee", "sm_90") == (56, "36/64")
    assert worst("mix_ffn", "float16", "ieee", "sm_90") == (None, None)
    of_parts = [worst(op, "float32", "ieee", "gfx942")[0] or 0 for op in ("score_map", "patch_embedding")]
    assert worst("guided_score_map", "float32", "ieee", "gfx942")[0] == max(of_parts)
