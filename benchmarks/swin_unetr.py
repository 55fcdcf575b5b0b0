"""MONAI's Swin UNETR on volumes, plain, with its flash attention, and accelerated.

``pytest benchmarks/swin_unetr.py --benchmark-only``, or ``python -m msformer_fast.benchmarks.swin_unetr`` for a table.

One call in inference, and one with its backward, in float32. The three run in turn, round by round, on the same
numbers, on a GPU where there is one. MONAI's flash attention serves inference alone. Memory is what lives at the peak
beside the model and its input.

``--blocks`` prints how many times faster a block of the network is on one CPU core instead, by the processor's seconds,
which other programs on the machine change less than the clock's.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence
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
    mf.accelerate(found["ours"])
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


#: Channels, heads and a side of the volume: those of the network's four stages, widths 24 and 48, at 96 voxels.
BLOCKS = ((24, 3, 48), (48, 6, 24), (48, 3, 24), (96, 12, 12), (96, 6, 12))
WINDOW = 7


def block_ratios(channels: int, heads: int, side: int, shifted: bool, *, least: int = 5) -> dict[str, list[float]]:
    """How many times faster a block's drop-in is than MONAI's, round by round, in turn, on one core.

    In inference than the better of plain code and flash attention, and than the plain one; in training than that.
    """
    from monai.networks.nets import swin_unetr

    library: Any = swin_unetr
    window, shift = (WINDOW,) * 3, (WINDOW // 2 * shifted,) * 3
    torch.manual_seed(0)
    plain: Any = library.SwinTransformerBlock(channels, heads, window, shift, qkv_bias=True)
    flash, ours = copy.deepcopy(plain), mf.nn.MonaiSwinBlock.of(copy.deepcopy(plain), backend="native")
    flash.attn.use_flash_attention = True
    padded = [-(-side // WINDOW) * WINDOW] * 3
    mask = library.compute_mask(padded, window, shift, "cpu") if shifted else None
    x = torch.randn(1, side, side, side, channels)

    with torch.no_grad():
        blocks = [(plain, mask), (flash, mask), (ours, "standard")]
        inference = _processor_seconds([functools.partial(block, x, given) for block, given in blocks], least)
    x.requires_grad_()
    blocks = [(plain, mask), (ours, "standard")]
    training = _processor_seconds([functools.partial(_step, block, x, given) for block, given in blocks], least)
    return {
        "inference": [min(usual, fused) / own for usual, fused, own in inference],
        "inference, plain": [usual / own for usual, _, own in inference],
        "training": [usual / own for usual, own in training],
    }


def _step(block: nn.Module, x: Tensor, mask: Any) -> None:
    block(x, mask).sum().backward()


def _processor_seconds(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Of every call, round by round, after one that is not counted."""
    found: list[list[float]] = []
    for _ in range(rounds + 1):
        found.append([])
        for run in calls:
            begin = time.process_time()
            run()
            found[-1].append(time.process_time() - begin)
    return found[1:]


def print_blocks() -> None:
    """The table of ``--blocks``: medians and quartiles."""
    torch.set_num_threads(1)
    print("| channels, heads, volume | shifted | inference | inference, plain | training |")
    print("| --- | --- | --- | --- | --- |")
    for channels, heads, side in BLOCKS:
        for shifted in (False, True):
            ratios = block_ratios(channels, heads, side, shifted).values()
            low, middle, high = zip(*(statistics.quantiles(each, n=4) for each in ratios), strict=True)
            cells = [f"{m:.1f} ({a:.1f} to {b:.1f})" for m, a, b in zip(middle, low, high, strict=True)]
            name = f"{channels}, {heads}, {side}^3"
            print("| " + " | ".join([name, "yes" if shifted else "no", *cells]) + " |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", action="store_true", help="of blocks, on one CPU core")
    if parser.parse_args().blocks:
        print_blocks()
        return
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
