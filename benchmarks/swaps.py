"""A published network's block before and after ``accelerate``: ``pytest benchmarks/swaps.py --benchmark-only``.

One call, in inference and with its backward. The module as it was runs before every round of its drop-in; the extra
information of a row has the ratio of the two, round by round (least, median, most). Where a drop-in would be slower it
runs the module's own code, by the limits in ``msformer_fast/nn/published.py``: ``MSFORMER_FAST_SWAPS=native`` has it
compute in any case, to find them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import msformer_fast as mf
from tests.published_networks import EfficientAttention, EfficientTransformerBlock, MixFFN, MixFFN_skip

ROUNDS = 11

#: Module by (channels, height and width), and whether it takes tokens.
MODULES: dict[str, tuple[Callable[[int], nn.Module], bool]] = {
    "EfficientAttention": (EfficientAttention, False),
    "EfficientAttention, 8 heads": (lambda channels: EfficientAttention(channels, head_count=8), False),
    "MixFFN": (lambda channels: MixFFN(channels, 4 * channels), True),
    "MixFFN_skip": (lambda channels: MixFFN_skip(channels, 4 * channels), True),
    "EfficientTransformerBlock": (lambda channels: EfficientTransformerBlock(channels, context=False), True),
}
SIZES = ((32, 14), (512, 7), (64, 56), (320, 28), (128, 129), (64, 257))


def prepare(name: str, channels: int, side: int, training: bool) -> tuple[nn.Sequential, Callable[[], None]]:
    """The module in a container, and one call of it."""
    make, tokens = MODULES[name]
    torch.manual_seed(0)
    model = nn.Sequential(make(channels))
    shape = (1, side * side, channels) if tokens else (1, channels, side, side)
    inputs: tuple[Any, ...] = (torch.randn(shape, requires_grad=training), *((side, side) if tokens else ()))

    def call() -> None:
        if not training:
            with torch.no_grad():
                model[0](*inputs)
            return
        model[0](*inputs).square().mean().backward()
        model.zero_grad(set_to_none=True)
        inputs[0].grad = None

    return model, call


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(("channels", "side"), SIZES)
@pytest.mark.parametrize("name", MODULES)
def test_swap(benchmark: Any, name: str, channels: int, side: int, training: bool) -> None:
    model, call = prepare(name, channels, side, training)
    swaps = mf.accelerate(model, backend=os.environ.get("MSFORMER_FAST_SWAPS"))
    (swap,) = swaps.swapped
    rivals: list[float] = []
    ours: list[float] = []

    def timed(module: nn.Module, seconds: list[float]) -> None:
        model[0] = module
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)

    benchmark.group = f"{side} x {side}, {channels} channels, {'training' if training else 'inference'}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(
        lambda: timed(swap.replacement, ours),
        setup=lambda: timed(swap.original, rivals),
        rounds=ROUNDS,
        warmup_rounds=2,
    )
    ratios = [theirs / mine for mine, theirs in zip(ours, rivals, strict=True)][-ROUNDS:]
    spread = min(ratios), statistics.median(ratios), max(ratios)
    benchmark.extra_info["times_faster"] = [round(value, 3) for value in spread]
