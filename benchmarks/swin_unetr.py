"""MONAI's Swin UNETR on volumes, plain, with its flash attention, and accelerated.

``pytest benchmarks/swin_unetr.py --benchmark-only``, or ``python -m msformer_fast.benchmarks.swin_unetr`` for a table.

One call in inference, and one with its backward, in float32. The three run in turn, round by round, on the same
numbers, on a GPU where there is one. MONAI's flash attention serves inference alone. Memory is what lives at the peak
beside the model and its input: on a GPU as its allocator has it, on the CPU counted operator by operator.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import msformer_fast as mf
from msformer_fast.benchmarks.without_data import LiveBytes

#: Volumes as they are trained on, and the two usual widths.
SIDE, WIDTHS = 96, (24, 48)
ROUNDS = 5

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
    size: Sequence[int], feature_size: int, training: bool, device: str, rounds: int = ROUNDS, warm_up: int = 2
) -> list[Row]:
    """Each network on one volume of this size."""
    models = networks(feature_size, device, training)
    x = torch.randn(1, 1, *size, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    outputs, peaks = {}, {}
    for name, model in models.items():
        outputs[name] = call(model, x, training)
        peaks[name] = peak_of(lambda model=model: call(model, x, training), device)  # type: ignore[misc]
    for _ in range(warm_up - 1 + rounds):
        for name, model in models.items():
            seconds[name].append(timed(lambda model=model: call(model, x, training), device))  # type: ignore[misc]

    rows, largest = [], float(outputs["plain"].abs().max())
    for name in models:
        mine = seconds[name][-rounds:]
        ratios = [theirs / own for theirs, own in zip(seconds["plain"][-rounds:], mine, strict=True)]
        difference = float((outputs[name] - outputs["plain"]).abs().max()) / largest
        rows.append(Row(name, statistics.median(mine), statistics.median(ratios), peaks[name], difference))
    return rows


def call(model: nn.Module, x: Tensor, training: bool) -> Tensor:
    """A forward without gradients, or one with its backward."""
    if not training:
        with torch.no_grad():
            return model(x)
    out: Tensor = model(x)
    out.square().mean().backward()
    model.zero_grad(set_to_none=True)
    return out.detach()


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds, the device's included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_of(run: Callable[[], object], device: str) -> int:
    """Bytes that live at the peak beside what lived before."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as counted:
        run()
    return counted.peak


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
