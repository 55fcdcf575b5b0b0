"""The counts of window attention of volumes: the rival is the op, and both are counted as they are by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from msformer_fast.benchmarks.aten_traffic import AtenTraffic
from msformer_fast.benchmarks.cards import CARDS
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.volume_attention import (
    BENCH,
    COLUMNS,
    OPERATORS,
    OTHERS,
    STAGES,
    VOLUMES,
    Volume,
    fused,
    mask,
    rows,
    shift_of,
)
from tests.swin_blocks import monai_swin

#: Shifted, with voxels outside; of whole windows; one window, which is not shifted.
SMALL = (Volume(5, 16, 2, 3), Volume(4, 8, 2, 2), Volume(3, 8, 1, 3))


def case_of(volume: Volume, dtype: str = "float32") -> Case:
    return Case.of("cross_scale_attention", volume._asdict(), dtype)


@pytest.mark.parametrize("backend", ["sdpa", "torch"])
@pytest.mark.parametrize("volume", SMALL, ids=str)
def test_the_rival_is_the_op(volume: Volume, backend: str) -> None:
    """Results and gradients of the volume, the projection and the table, beside the reference in float64."""
    truth = BENCH.truth(case_of(volume))
    found = BENCH.prepare(case_of(volume), backend).results()
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        assert (found[name].double() - value).abs().max() <= 2e-5 * value.abs().max(), name


@pytest.mark.parametrize("volume", SMALL, ids=str)
def test_kernels_move_what_the_interpreter_counts(volume: Volume) -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("counted in the interpreter")
    from tests.harness.traffic import count_traffic, kernels_of

    subject = BENCH.prepare(case_of(volume), "triton")
    for part in ("forward", "backward"):
        subject.before[part]()
        with count_traffic() as traffic:
            subject.parts[part]()
        assert BENCH.kernels(case_of(volume), part, 3, None) == kernels_of(traffic)


def test_the_operators_by_hand() -> None:
    """Eight windows of 64 tokens, two heads of 8 channels, bfloat16, shifted."""
    assert shift_of({"side": 8, "window": 4}) == 2
    unit, pairs = 8**3 * 16 * 2, 64**2
    table, bias, mask, added = 7**3 * 2 * 2, 2 * pairs * 2, 8 * pairs * 2, 8 * 2 * pairs * 2
    lse, seed = 8**3 * 2 * 4, 2 * 8

    # Padding, a copy; a roll and a cut each way; the table's rows gathered, permuted, the mask added; the attention.
    forward = 5 * 2 * unit + (table + 8 * pairs + bias) + 2 * bias + (bias + mask + added) + (4 * unit + added + seed)
    found = OPERATORS.kernels(case_of(Volume(8, 16, 2, 4), "bfloat16"), "forward", 132, "sm_90")
    assert found == {"operators": (9, forward, 0)}

    # The attention's own gradients read what its forward read and wrote.
    ((launches, moved, _),) = OPERATORS.kernels(
        case_of(Volume(8, 16, 2, 4), "bfloat16"), "backward", 132, "sm_90"
    ).values()
    attention = (3 * unit + added + seed) + 2 * unit + lse + (3 * unit + added)
    assert launches >= 9 and moved > 5 * 2 * unit + attention + (added + bias)


@pytest.mark.parametrize("volume", [STAGES[24][0], OTHERS[3], STAGES[48][3]], ids=str)
def test_the_operators_are_monais(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its block's first half with flash attention, less norm, projections and a copy of the table's index."""
    library, moved = monai_swin(), []

    class ByName(AtenTraffic):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            before, out = self.bytes, super().__torch_dispatch__(func, types, args, kwargs)
            moved.append((func.name(), self.bytes - before))
            return out

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float, scale: float) -> Tensor:
        return fused(q, k, v, attn_mask.expand(*q.shape[:2], *attn_mask.shape[2:]), scale)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    window, shift = (volume.window,) * 3, (shift_of(volume._asdict()),) * 3
    with FakeTensorMode(), torch.no_grad():
        block = library.SwinTransformerBlock(
            volume.channels, volume.heads, window, shift, qkv_bias=True, use_flash_attention=True
        )
        x, seen = torch.empty(1, *(volume.side,) * 3, volume.channels), mask(volume._asdict()).float()
        with ByName():
            block.forward_part1(x, seen)
    counted = [bytes_ for name, bytes_ in moved if bytes_ and name not in ("aten::addmm", "aten::native_layer_norm")]
    copied = 2 * 8 * volume.window**6
    assert counted.count(copied) == 1
    found = OPERATORS.kernels(case_of(volume), "forward", 132, "sm_90")
    assert found == {"operators": (len(counted) - 1, sum(counted) - copied, 0)}


def test_rows_of_a_card() -> None:
    """The first stage moves few bytes more than it must; the rival's mask of all windows moves thirty times as many."""
    pytest.importorskip("triton")
    found = rows("forward", "bfloat16", "H100 SXM")
    assert len(found) == len(VOLUMES) == 15 and set(STAGES[24] + STAGES[48]) <= set(VOLUMES)
    launches, moved, least, ms, of_rival, rivals_moved, rivals_ms = found["48^3, 24 in 3 heads, 7^3"]
    assert len(COLUMNS) == 8 and (launches, of_rival) == (1, 10)

    numbers, table = 48**3 * 24, 13**3 * 3 * 2
    assert least * 1e6 == pytest.approx(4 * numbers * 2 + table)
    assert moved * 1e6 == pytest.approx(4 * numbers * 2 + table + numbers // 8 * 4 + 2 * 24 * 2)
    added = 7**3 * 3 * 343**2 * 2 / 1e6  # in a bias for every window and head, written once and read once
    assert 2 * added < rivals_moved < 3 * added
    assert ms == pytest.approx(1e9 * moved / CARDS["H100 SXM"].bandwidth) and rivals_ms > 25 * ms
