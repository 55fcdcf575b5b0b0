"""MONAI's Swin UNETR on volumes, plain, with its flash attention, and accelerated.

``pytest benchmarks/swin_unetr.py --benchmark-only``, or ``python -m msformer_fast.benchmarks.swin_unetr`` for a table.

One call in inference, and one with its backward, in float32. The three run in turn, round by round, on the same
numbers, on a GPU where there is one. MONAI's flash attention serves inference alone. Memory is what lives at the peak
beside the model and its input.
"""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import msformer_fast as mf
from msformer_fast.benchmarks.clock import Clock, in_turn, look_inside

#: Volumes as they are trained on, and the two usual widths.
SIDE, WIDTHS = 96, (24, 48)
#: Seconds for the rounds of the three.
BUDGET = 60.0

#: Largest difference of the outputs, over the largest output, that is rounding in float32.
ROUNDING = 1e-4


class Row(NamedTuple):
    """What one of the networks took.

    Attributes:
        seconds: median of the rounds; ``times``: how many times faster than the plain one, round by round: median.
        peak: bytes.
        difference: of its output from the plain one's, over the largest output.
    """

    name: str
    seconds: float
    times: float
    peak: int
    difference: float


def networks(feature_size: int, device: str, training: bool) -> dict[str, nn.Module]:
    """The same network three times."""
    from monai.networks.nets.swin_unetr import SwinUNETR

    torch.manual_seed(0)
    plain: nn.Module = SwinUNETR(1, 2, feature_size=feature_size, spatial_dims=3).to(device).train(training)
    found = {"plain": plain}
    if not training:
        flash = SwinUNETR(1, 2, feature_size=feature_size, spatial_dims=3, use_flash_attention=True)
        flash.load_state_dict(plain.state_dict())
        found["flash"] = flash.to(device).eval()
    found["ours"] = copy.deepcopy(plain)
    mf.accelerate(found["ours"], backend="torch" if device == "cpu" else None)
    return found


def measured(
    size: Sequence[int], feature_size: int, training: bool, device: str, *, budget: float = BUDGET, least: int = 5
) -> list[Row]:
    """Each network on one volume of this size.

    Args:
        budget, least: seconds for the rounds, and how many there are at least; see :func:`benchmarks.clock.in_turn`.
    """
    models = networks(feature_size, device, training)
    x = torch.randn(1, 1, *size, device=device)
    calls = {name: functools.partial(call, model, x, training) for name, model in models.items()}
    outputs = {name: run() for name, run in calls.items()}
    peaks = {name: look_inside(device, run, _nothing).peak_bytes for name, run in calls.items()}
    pairs = [(run, _nothing) for run in calls.values()]
    seconds = dict(zip(calls, in_turn(Clock(device, ahead=False), pairs, budget=budget, least=least), strict=True))

    rows, largest = [], float(outputs["plain"].abs().max())
    for name, mine in seconds.items():
        ratios = [theirs / own for theirs, own in zip(seconds["plain"], mine, strict=True)]
        difference = float((outputs[name] - outputs["plain"]).abs().max()) / largest
        rows.append(Row(name, statistics.median(mine), statistics.median(ratios), peaks[name] or 0, difference))
    return rows


def _nothing() -> None:
    """To be done before a call."""


def call(model: nn.Module, x: Tensor, training: bool) -> Tensor:
    """A forward without gradients, or one with its backward."""
    if not training:
        with torch.no_grad():
            return model(x)
    out: Tensor = model(x)
    out.square().mean().backward()
    model.zero_grad(set_to_none=True)
    return out.detach()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("feature_size", WIDTHS)
def test_swin_unetr(benchmark: Any, feature_size: int, training: bool) -> None:
    """Rounds of one network after the other; the rows are in the extra information."""
    pytest.importorskip("monai")
    rows = benchmark.pedantic(lambda: measured((SIDE,) * 3, feature_size, training, DEVICE), rounds=1)
    benchmark.extra_info["rows"] = [row._asdict() for row in rows]
    assert all(row.difference < ROUNDING for row in rows)


def main() -> None:
    """Print the table."""
    print("| width | call | network | seconds | times faster | peak, MB |\n| --- | --- | --- | --- | --- | --- |")
    for feature_size in WIDTHS:
        for training in (False, True):
            for row in measured((SIDE,) * 3, feature_size, training, DEVICE):
                cells = (
                    feature_size,
                    "training" if training else "inference",
                    row.name,
                    f"{row.seconds:.3g}",
                    f"{row.times:.2f}",
                    f"{row.peak / 1e6:.0f}",
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
