"""What the contract does not cover of cross-scale attention's kernels: tiles of the cards, strides, launches, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from msformer_fast.floors import cross_scale_attention as floor
from msformer_fast.reference.cross_scale_attention import cross_scale_attention as reference
from msformer_fast.windows import Windows, windows_of

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("strict_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="counted, or in float64, in the interpreter")


class Call(NamedTuple):
    """One call: q, k, v, bias, pad_k, pad_v; windows; scale, seam and precision."""

    leaves: list[Tensor | None]
    windows: Windows
    options: dict[str, Any]

    def forward(self) -> tuple[Tensor, Tensor]:
        from msformer_fast.kernels.cross_scale_attention import cross_scale_attention_forward

        q, k, v, bias, pad_k, pad_v = self.leaves
        return cross_scale_attention_forward(q, k, v, self.windows, bias=bias, pad_k=pad_k, pad_v=pad_v, **self.options)

    def backward(self, grad: Tensor, out: Tensor, lse: Tensor, into: Any = None) -> list[Tensor | None]:
        from msformer_fast.kernels.cross_scale_attention import cross_scale_attention_backward

        q, k, v, bias, pad_k, pad_v = self.leaves
        more = dict(bias=bias, pad_k=pad_k, pad_v=pad_v, into=into, **self.options)
        return list(cross_scale_attention_backward(grad, q, k, v, out, lse, self.windows, **more))

    def truth(self, grad: Tensor) -> list[Tensor | None]:
        """Result and gradients of the reference in float64."""
        leaves = [None if t is None else t.detach().double().requires_grad_() for t in self.leaves]
        q, k, v, bias, pad_k, pad_v = leaves
        options = {name: value for name, value in self.options.items() if name != "input_precision"}
        out = reference(q, k, v, self.windows, bias=bias, pad_k=pad_k, pad_v=pad_v, **options)
        given = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad(out, given, grad.double(), allow_unused=True, materialize_grads=True))
        return [out.detach(), *(None if t is None else next(found) for t in leaves)]


def draw(
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    window: int | tuple[int, ...],
    *,
    batch: int = 2,
    heads: int = 2,
    d: int = 10,
    bias: str | None = "table",
    dtype: torch.dtype = torch.float64,
    scale: float = 0.4,
    seam: float = -math.inf,
    precision: str = "ieee",
    **options: Any,
) -> Call:
    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(DEVICE, dtype)

    windows = windows_of("test", queries, keys, window, **options)
    shape = {None: None, "table": (windows.table, heads), "dense": (heads, windows.queries, windows.keys)}[bias]
    leaves = [rand(batch, *queries, heads, d), rand(batch, *keys, heads, d), rand(batch, *keys, heads, d)]
    pads = [rand(heads, d), rand(heads, d)] if options.get("outside") == "pad" else [None, None]
    leaves += [None if shape is None else rand(*shape), *pads]
    return Call(leaves, windows, {"scale": scale, "seam": seam, "input_precision": precision})


def check(call: Call, tolerance: float) -> None:
    """Result and gradients, tensor by tensor, against the reference."""
    out, lse = call.forward()
    grad = torch.randn(out.shape, dtype=torch.float64).to(out)
    found = [out, *call.backward(grad, out, lse)]
    names = ("out", "q", "k", "v", "bias", "pad_k", "pad_v")
    for name, ours, truth in zip(names, found, call.truth(grad), strict=True):
        assert (ours is None) == (truth is None), name
        if ours is not None:
            assert ours.shape == truth.shape and ours.dtype == out.dtype, name
            assert (ours.double() - truth).norm() <= tolerance * truth.norm() + 1e-12, name


CASES: dict[str, dict[str, Any]] = {
    "a finite seam": dict(queries=(8, 8), keys=(8, 8), window=4, shift=(2, 1), seam=-1.5, heads=1),
    "a finite seam, padded": dict(queries=(7, 9), keys=(7, 9), window=(4, 3), shift=(2, 1), outside="pad", seam=-2.5),
    "a map below its window": dict(
        queries=(3, 9), keys=(3, 9), window=4, shift=2, outside="pad", order="roll_pad", d=8, heads=1
    ),
    "half, padded": dict(queries=(9, 11), keys=(5, 6), window=(4, 6), shift=(2, 4), bias="dense", outside="pad"),
    "half with a padded halo": dict(
        queries=(9, 7), keys=(5, 4), window=4, shift=2, halo=(1, 3), outside="pad", batch=1, heads=1
    ),
    "twice": dict(queries=(4, 5), keys=(7, 9), window=(2, 4), shift=(1, 2), halo=(1, 0), d=25, batch=1, heads=1),
    "two thirds": dict(queries=(6, 9), keys=(4, 6), window=(3, 6), shift=(0, 3), halo=(0, 1), batch=1, heads=1),
    "a wide head": dict(queries=(8, 8), keys=(4, 4), window=8, d=128, batch=1, heads=1),
    "a volume": dict(
        queries=(5, 4, 6), keys=(5, 4, 6), window=(4, 3, 4), shift=(2, 1, 0), outside="pad", seam=-1.5, heads=1
    ),
    "a volume with a padded halo": dict(
        queries=(4, 5, 4), keys=(2, 5, 7), window=(2, 3, 2), shift=(0, 1, 1), halo=(1, 0, 2), outside="pad", batch=1
    ),
    "a volume, rolled first": dict(
        queries=(3, 5, 2), keys=(3, 5, 2), window=2, shift=(1, 1, 0), order="roll_pad", bias="dense", seam=-2.0
    ),
}


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_in_float64(name: str) -> None:
    check(draw(**CASES[name]), 1e-12)


SINGLE, TF32, HALF = (torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee")
SEVERAL = dict(queries=(4, 9), keys=(4, 9), window=4, shift=2, d=8, outside="pad")
ONE = dict(queries=(7, 8), keys=(7, 8), window=7, shift=3, d=20, outside="pad", seam=-3.0)
TILES = dict(queries=(6, 11), keys=(6, 11), window=(6, 11), shift=(0, 4), d=16)
BRICK = dict(queries=(4, 5, 4), keys=(4, 5, 4), window=4, shift=(0, 2, 1), d=8, outside="pad", seam=-3.0)
VOLUME = dict(queries=(7, 7, 7), keys=(7, 7, 7), window=7, d=8, seam=-3.0)
HALO = dict(queries=(8, 6), keys=(4, 3), window=8, halo=2, d=16, outside="pad", bias="dense")


@interpreted
@pytest.mark.parametrize(
    ("card", "product", "shape"),
    [
        ("sm_86", HALF, SEVERAL),
        ("gfx942", SINGLE, SEVERAL),
        ("sm_90", HALF, ONE),
        ("sm_80", SINGLE, ONE),
        ("sm_86", TF32, ONE),
        ("gfx942", TF32, ONE),
        ("sm_86", HALF, TILES),
        ("sm_90", TF32, TILES),
        ("sm_86", SINGLE, TILES),
        ("gfx942", HALF, HALO),
        ("sm_86", TF32, HALO),
        ("sm_90", HALF, BRICK),
        ("sm_80", SINGLE, BRICK),
        ("sm_90", TF32, VOLUME),
    ],
)
def test_settings_of_the_cards(
    card: str, product: tuple[torch.dtype, str], shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launch table's own tiles: several windows a tile, one, several tiles a window, a halo; fused and split."""
    monkeypatch.setattr("msformer_fast.kernels.cross_scale_attention.target_of", lambda device: card)
    dtype, precision = product
    check(draw(**shape, batch=1, heads=1, dtype=dtype, precision=precision), 2e-5 if product == SINGLE else 0.03)


@interpreted
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 32, 128])
@pytest.mark.parametrize("window", [1, 7, 8, 16])
def test_every_card_has_a_tile(window: int, d: int, dtype: torch.dtype, precision: str) -> None:
    from msformer_fast.kernels.cross_scale_attention_table import tile_of

    for card in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "sm_75", "gfx90a"):
        for part in ("forward", "query", "bias", "key"):
            tile = tile_of(part, window**2, (window + 2) ** 2, d, dtype, precision, card)
            assert tile.N == 1 or tile.tiles(window**2, (window + 2) ** 2) == (1, 1)


@interpreted
def test_chunks_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """More windows than programs, fused and split: each sums over a chunk of them, the last over fewer."""
    monkeypatch.setattr("msformer_fast.kernels.cross_scale_attention_table.PROGRAMS", 1)
    monkeypatch.setattr("msformer_fast.kernels.cross_scale_attention_table.INTERPRETER", {"": (16, 16, 4)})
    check(draw((5, 16), (5, 16), (5, 4), shift=(0, 2), batch=1, heads=1), 1e-12)
    check(draw((4, 28), (4, 28), 4, shift=(0, 2), batch=1, heads=1, outside="pad"), 1e-12)


@interpreted
def test_a_query_without_a_key() -> None:
    call = draw((5, 8), (3, 4), 4, shift=(2, 0), order="roll_pad", bias=None)
    out, lse = call.forward()
    empty = lse == -math.inf
    assert empty.any() and not empty.all() and not lse.isnan().any()
    found = call.backward(torch.randn_like(out), out, lse)
    rows = empty.permute(0, 2, 3, 1)
    assert (out[rows] == 0).all() and (found[0][rows] == 0).all()
    assert all(t.isfinite().all() for t in found[:3])


@interpreted
@pytest.mark.parametrize("halo", [0, 1])
def test_strides_in_place(halo: int) -> None:
    """Packed and channels-first maps, a transposed table, a gradient that is one number: bit by bit as contiguous."""
    call = draw((4, 5), (4, 5), (4, 3), shift=(1, 2), halo=halo, heads=2, d=8, batch=1)
    bias = call.leaves[3].t().contiguous().t()
    packed = torch.randn(1, 4, 5, 3, 2, 8, dtype=torch.float64)
    first = torch.randn(1, 3, 2, 8, 4, 5, dtype=torch.float64).permute(0, 4, 5, 1, 2, 3)
    for maps in (packed,) if halo else (packed, first):
        plain = call._replace(leaves=[*(t.contiguous() for t in maps.unbind(3)), *call.leaves[3:]])
        views = call._replace(leaves=[*maps.unbind(3), bias, None, None])
        out, lse = views.forward()
        assert all(torch.equal(a, b) for a, b in zip((out, lse), plain.forward(), strict=True))
        assert out.is_contiguous()
        grad = torch.randn(1, 1, 1, 1, 1, dtype=torch.float64).expand(out.shape)
        result = torch.empty_like(maps)
        found = views.backward(grad, out, lse, into=result.unbind(3))
        wanted = plain.backward(grad.contiguous(), out, lse)
        assert all(torch.equal(a, b) for a, b in zip(found[:4], wanted[:4], strict=True))
        assert torch.equal(result, torch.stack(wanted[:3], 3))


@interpreted
def test_an_empty_batch() -> None:
    call = draw((7, 9), (7, 9), (4, 3), outside="pad", batch=0)
    out, lse = call.forward()
    found = call.backward(torch.randn_like(out), out, lse)
    assert out.shape == call.leaves[0].shape and lse.shape == (0, 2, 7, 9)
    assert all((t == 0).all() and t.shape == leaf.shape for t, leaf in zip(found, call.leaves, strict=True))


def test_too_wide_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 128"):
        draw((4, 4), (4, 4), 4, d=129, batch=1).forward()


COUNTED: dict[str, dict[str, Any]] = {
    "swin": dict(queries=(16, 16), keys=(16, 16), window=8, shift=4),
    "no bias": dict(queries=(16, 16), keys=(16, 16), window=8, bias=None),
    "ragged, dense": dict(queries=(9, 11), keys=(9, 11), window=4, bias="dense"),
    "padded": dict(queries=(9, 11), keys=(9, 11), window=4, outside="pad"),
    "half": dict(queries=(16, 8), keys=(8, 4), window=8, shift=4),
    "three launches": dict(queries=(6, 12), keys=(6, 12), window=6, batch=1, small=True),
    "three launches, padded": dict(queries=(7, 6), keys=(7, 6), window=6, outside="pad", batch=1, small=True),
    "a halo": dict(queries=(8, 8), keys=(8, 8), window=4, halo=1, batch=1, outside="pad"),
    "a volume": dict(queries=(3, 8, 4), keys=(3, 8, 4), window=(3, 4, 4), shift=(1, 2, 2), batch=1, small=True),
    "a volume, padded": dict(queries=(3, 5, 4), keys=(3, 5, 4), window=(3, 4, 4), outside="pad", batch=1, small=True),
}


@interpreted
@pytest.mark.parametrize("name", COUNTED)
def test_launches_and_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel reads and writes what its recorded launches say."""
    from tests.harness.traffic import counted_as_recorded

    options = dict(batch=2, heads=2, d=16, dtype=torch.float32) | COUNTED[name]
    if options.pop("small", False):  # tiles, so that a window has several
        monkeypatch.setattr("msformer_fast.kernels.cross_scale_attention_table.INTERPRETER", {"": (32, 32, 4)})
    windows: list[Windows] = []

    def call() -> Iterator[None]:
        case = draw(**options)
        windows.append(case.windows)
        yield
        out, lse = case.forward()
        yield
        case.backward(torch.randn_like(out), out, lse)
        yield

    ahead, back = counted_as_recorded(call)
    assert ahead.atomics == back.atomics == 0
    if name == "a volume":  # every byte of the maps and of the table, though tiles read some of them several times
        unit, table = 2 * 3 * 8 * 4 * 16 * 4, windows[0].table * 2 * 4
        assert ahead.unique_bytes_loaded == 3 * unit + table
        assert ahead.bytes_stored == unit + unit // 16
    if name == "no bias":  # every byte once: 3 maps in, 1 out; 4 in, 3 out
        pixels = 2 * 2 * 16 * 16
        unit, rows = pixels * 16 * 4, pixels * 4
        assert ahead.bytes_loaded == ahead.unique_bytes_loaded == 3 * unit and ahead.bytes_stored == unit + rows
        assert back.bytes_loaded == back.unique_bytes_loaded == 4 * unit + rows and back.bytes_stored == 3 * unit
        assert back.launches == 1
        sizes = 2, 2, 16, windows[0]
        assert floor.bytes_moved(*sizes, torch.float32) == {"forward": 4 * unit, "backward": 7 * unit}
        assert floor.flops(*sizes)["forward"] == 4 * unit // 4 * 64


def test_the_forward_moves_four_maps() -> None:
    """Queries, keys, values and the result once, at equal sizes; little more. The usual chain of operators around a
    fused attention moves twenty: rolls, cuts into windows, copies of heads, each way."""
    from msformer_fast.benchmarks.traffic.recorded import moved, recorded_launches

    unit = 64 * 96 * 4 * 32 * 2
    with recorded_launches(132, "sm_90") as launches:
        draw((64, 96), (64, 96), 8, shift=4, batch=1, heads=4, d=32, bias=None, dtype=torch.bfloat16).forward()
    ((_, loaded, stored),) = moved(launches).values()
    assert 4 * unit < loaded + stored < 4.1 * unit


def test_the_forward_of_a_volume_moves_four_maps_and_the_table() -> None:
    """Swin UNETR's first shifted block: no mask, and no bias of windows x heads x 343 x 343 numbers."""
    from msformer_fast.benchmarks.traffic.recorded import moved, recorded_launches

    numbers, size, options = 48**3 * 3 * 8, (48, 48, 48), dict(shift=3, outside="pad", seam=-100.0)
    with recorded_launches(132, "sm_90") as launches:
        draw(size, size, 7, batch=1, heads=3, d=8, dtype=torch.bfloat16, **options).forward()
    ((_, loaded, stored),) = moved(launches).values()
    table, pads = 13**3 * 3 * 2, 2 * 3 * 8 * 2
    assert loaded == 3 * numbers * 2 + table + pads
    assert stored == numbers * 2 + numbers // 8 * 4  # and the logarithms of sums, in float32


@pytest.mark.parametrize(("side", "sums"), [(24, 0), (48, 1)])
def test_one_partial_sum_is_not_summed(side: int, sums: int) -> None:
    """Where a program goes through all windows, its sum of the bias's gradient is the sum."""
    from msformer_fast.benchmarks.traffic.recorded import moved, recorded_launches

    size, heads = (side,) * 3, 3 * 48 // side
    with recorded_launches(132, "sm_90") as launches:
        call = draw(size, size, 6, batch=1, heads=heads, d=8, shift=3, dtype=torch.bfloat16)
        out, lse = call.forward()
        launches.clear()
        call.backward(torch.empty_like(out), out, lse)
    found = {name: count for name, (count, _, _) in moved(launches).items()}
    assert found.pop("add_partial_sums_kernel", 0) == sums
    assert set(found) == {f"{part}_gradient_kernel" for part in ("query", "bias", "key", "table")}


@interpreted
def test_a_cropped_volume_is_copied() -> None:
    """Its depth and height do not fold into one axis, as those of packed and channels-first volumes do."""
    call = draw((3, 4, 5), (3, 4, 5), (2, 2, 3), shift=(1, 0, 1), heads=2, d=8, batch=1)
    whole = torch.randn(1, 3, 6, 5, 3, 2, 8, dtype=torch.float64)
    first = torch.randn(1, 3, 2, 8, 3, 4, 5, dtype=torch.float64).permute(0, 4, 5, 6, 1, 2, 3)
    for maps in (whole[:, :, 1:5], whole[:, :, :4], first):
        views = call._replace(leaves=[*maps.unbind(4), *call.leaves[3:]])
        plain = call._replace(leaves=[*(t.contiguous() for t in maps.unbind(4)), *call.leaves[3:]])
        out, lse = views.forward()
        assert all(torch.equal(a, b) for a, b in zip((out, lse), plain.forward(), strict=True))
        grad = torch.randn(1, 3, 5, 4, 2, 8, dtype=torch.float64).transpose(2, 3)
        for ours, wanted in zip(
            views.backward(grad, out, lse), plain.backward(grad.contiguous(), out, lse), strict=True
        ):
            assert ours is wanted is None or torch.equal(ours, wanted)
