"""Live bytes of programs whose peak is known by hand, of a step whose peak the profiler knows, and what fits."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from msformer_fast.benchmarks import largest
from msformer_fast.benchmarks.clock import look_inside
from msformer_fast.benchmarks.largest import largest_side, peak_bytes, peak_of, training_step
from msformer_fast.benchmarks.without_data import LiveBytes
from msformer_fast.errors import InputError
from msformer_fast.identities import strips
from msformer_fast.ops.backend import interpreting

#: Bytes of a tensor in the programs below.
ONE = 4 * 1000

TINY: dict[str, Any] = {"channels": 8, "depth": 1, "patch": 8}


def chain(x: Tensor) -> Tensor:
    """Each dies when the next is there."""
    x = x + 1
    x = x * 2
    return x.neg()


def freed(x: Tensor) -> Tensor:
    """One at a time."""
    y = x + 1
    del y
    return x + 2


def views(x: Tensor) -> Tensor:
    y = x + 1
    return y.view(10, 100).t()[2:]


def in_place(x: Tensor) -> Tensor:
    y = x + 1
    x.mul_(2)
    return y.add_(1).mul_(2)


def several(x: Tensor) -> tuple[Tensor, ...]:
    """Values (of 4 bytes) and places (of 8) of one operator."""
    return tuple(x.sort())


@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize(
    ("program", "peak", "left"),
    [(chain, 2, 1), (freed, 1, 1), (views, 1, 1), (in_place, 1, 1), (several, 3, 3)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_peaks_by_hand(program: Callable[[Tensor], object], peak: int, left: int, mode: str) -> None:
    """Above an argument that lived before and counts for nothing; what is left goes with the result."""
    with FakeTensorMode() if mode == "fake" else torch.no_grad():
        x = torch.zeros(1000)
        with LiveBytes() as live:
            result = program(x)
        assert (live.peak, live.now) == (peak * ONE, left * ONE)
        del result
        assert live.now == 0


def test_a_new_start_forgets_the_peak() -> None:
    with LiveBytes() as live:
        kept = torch.ones(1000)
        torch.ones(5000)
        assert live.peak == 6 * ONE
        live.restart()
        assert live.peak == live.now == ONE
        kept = kept.resize_(2000)
        assert live.peak == 2 * ONE


def test_a_backward_keeps_what_it_needs() -> None:
    """Two kept results and a map of gradients, twice, beside the sum and its own gradient; then the gradient of x."""
    x = torch.zeros(1000, requires_grad=True)
    with LiveBytes() as live:
        x.exp().exp().sum().backward()
    assert live.peak == 3 * ONE + 8 and live.now == ONE


@pytest.mark.parametrize(("backend", "memory"), [("reference", "fast"), ("torch", "fast"), ("torch", "lean")])
def test_a_step_without_data_is_a_real_one(backend: str, memory: str, one_thread: None) -> None:
    step = training_step(backend, 33, 8, 8, memory=memory, depth=1, patch=8)
    step()
    real = look_inside("cpu", step, lambda: None).peak_bytes
    assert peak_of(backend, memory, 33, **TINY).above == pytest.approx(real, rel=0.01)


def test_what_is_held_is_counted_by_hand() -> None:
    """Parameters, as much momentum, buffers, the image, and the gradient of the total, one number."""
    from msformer_fast import MSFormer

    model = MSFormer(3, 8, 8, 1, 8)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    peak = peak_of("reference", "fast", 33, **TINY)
    assert peak.held == 2 * parameters + buffers + 4 * 3 * 33 * 33 + 4
    assert peak_bytes("reference", "fast", 33, **TINY) == peak.held + peak.above


def test_a_few_strips_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six strips of hidden activations two are left out, of five of the tokens one: the same peak."""
    monkeypatch.setattr(strips, "STRIP_BYTES", 3 * 17 * 32 * 4)
    uncached = peak_of.__wrapped__
    few, every = (uncached("torch", "lean", 17, all_strips=all_, **TINY) for all_ in (False, True))
    assert few == every


def test_kernels_keep_less_than_plain_code() -> None:
    """By the hidden activations that a lean block does not keep, too, and more multiprocessors hold more sums."""
    if importlib.util.find_spec("triton") is None or not interpreting():
        pytest.skip("the launchers run on CPU tensors in Triton's interpreter alone")
    sizes = {**TINY, "depth": 2}  # of one block the peak lies where both memories hold the same
    plain, fast, lean = (
        peak_of(backend, memory, 33, **sizes).above
        for backend, memory in (("reference", "fast"), ("triton", "fast"), ("triton", "lean"))
    )
    assert plain > fast > lean
    wide = 4 * 4 * 8 * (33**2 + 17**2)  # a block of each branch keeps 4 C channels of 4 bytes
    assert fast - lean <= wide
    assert peak_of("triton", "fast", 33, device="cuda", **sizes).above > fast


def test_the_largest_side_fits_and_the_next_does_not() -> None:
    """Of sides 17, 33, ...; a memory without room for the first is refused."""
    sizes = {**TINY, "patch": 16}
    first, second = (peak_bytes("reference", "fast", side, **sizes) for side in (17, 33))
    assert first < second
    for budget in (first, second - 1):
        assert largest_side(budget, "reference", "fast", **sizes) == 17
    with pytest.raises(InputError, match=f"budget_bytes must be at least {first}"):
        largest_side(first - 1, "reference", "fast", **sizes)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 8, 100])
def test_the_search_ends_at_the_last_that_fits(most: int) -> None:
    assert largest._last(lambda number: number <= most) == most


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="of the kernels' launchers")
def test_launchers_know_where_they_are_again() -> None:
    """In a process that had imported none of them: each asks for the device itself afterwards."""
    code = (
        "import sys, torch\n"
        "from msformer_fast.benchmarks import without_data\n"
        "with without_data.as_on_a_card():\n"
        "    from msformer_fast.kernels import mix_ffn\n"
        "    assert mix_ffn.multiprocessors_of(torch.device('cpu')) == without_data.MULTIPROCESSORS\n"
        "kernels = [m for n, m in sys.modules.items() if n.startswith('msformer_fast.kernels.')]\n"
        "found = [m for m in kernels if hasattr(m, 'multiprocessors_of')]\n"
        "assert len(found) > 5 and all(m.multiprocessors_of(torch.device('cpu')) == 3 for m in found)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
