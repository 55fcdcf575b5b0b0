"""Peak memory of a whole training step at any size, and the largest image that fits a memory: nothing is computed.

    python -m msformer_fast.benchmarks.largest [--sides 257 513 1025 2049] [--channels 100]

The step runs on tensors that hold no data, through the bodies of the registered ops; every block of memory that an
operator of PyTorch's makes counts from its creation until it is freed. On a CPU that is what PyTorch's profiler sees
in a real step, to the byte at the paper's widths and 129 and 257 pixels. Not counted is what no tensor holds: scratch
memory inside an operator (of cuDNN, oneDNN, BLAS), the allocator's rounding and fragmentation, the device's context,
the process itself. GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

from torch._subclasses.fake_tensor import FakeTensorMode

from msformer_fast.benchmarks.case import check_names
from msformer_fast.benchmarks.step import PROVIDERS
from msformer_fast.benchmarks.training_step import training_step
from msformer_fast.benchmarks.without_data import LiveBytes, as_on_a_card, without_launches
from msformer_fast.errors import InputError

#: What a table has a line for: device, memory in GB, providers.
TABLE = (
    ("cpu", 24, ("reference", "torch", "torch-lean", "native")),
    ("cuda", 24, ("reference", "triton", "triton-lean")),
    ("cuda", 80, ("reference", "triton", "triton-lean")),
)

#: Strips of a loop that are run beside its first: the most that can hold memory at once, with one to spare.
FEW = 3


@contextlib.contextmanager
def few_strips() -> Iterator[None]:
    """Loops over strips run their first and the longest :data:`FEW` neighbours, as if they followed: all strips make
    memory of one pattern and free it again, so the peak is the same, at a cost that does not grow with the map."""
    from msformer_fast.identities import strips as home

    whole = home.strips

    def shortened(length: int, bytes_each: int) -> Iterator[tuple[int, int]]:
        ranges = list(whole(length, bytes_each))
        if len(ranges) <= FEW + 1:
            return iter(ranges)
        starts = range(1, len(ranges) - FEW + 1)
        best = max(starts, key=lambda at: ranges[at + FEW - 1][1] - ranges[at][0])
        back = ranges[best][0] - ranges[0][1]
        return iter(ranges[:1] + [(first - back, last - back) for first, last in ranges[best : best + FEW]])

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            users = name.startswith("msformer_fast.identities.") and module is not home
            if users and getattr(module, "strips", None) is whole:
                stack.enter_context(mock.patch.object(module, "strips", shortened))
        yield


class Peak(NamedTuple):
    """Memory of a step, in bytes.

    Attributes:
        held: before it and behind it: parameters, buffers, momentum, image.
        above: the most beside those.
    """

    held: int
    above: int

    @property
    def total(self) -> int:
        return self.held + self.above


@cache
def peak_of(
    backend: str,
    memory: str,
    side: int,
    channels: int = 100,
    clusters: int | None = None,
    *,
    depth: int = 2,
    patch: int = 32,
    device: str = "cpu",
    all_strips: bool = False,
    cross_scale: str = "none",
) -> Peak:
    """Peak of forward, losses, backward and update by SGD with momentum, on one square image, in float32.

    Args:
        backend, memory: see :class:`msformer_fast.MSFormer`.
        side: pixels.
        clusters: as many as channels by default.
        device: ``"cuda"`` for what the kernels' launchers would do on a card.
        cross_scale: see :class:`msformer_fast.MSFormer`.
        all_strips: run every strip of the ``"torch"`` backend; see :func:`few_strips`.

    Raises:
        InputError: an argument out of range.
        BackendError: ``"triton"``, and triton is not installed.
    """
    check_names("device", [device], ("cpu", "cuda"))
    triton = importlib.util.find_spec("triton") is not None
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_launches())
        if triton and backend == "triton" and device == "cuda":
            stack.enter_context(as_on_a_card())
        if not all_strips:
            stack.enter_context(few_strips())
        stack.enter_context(mock.patch("torch.nn.init.trunc_normal_", lambda tensor, **_: tensor))  # looks at its draws
        stack.enter_context(FakeTensorMode())
        live = stack.enter_context(LiveBytes())
        how: dict[str, Any] = {"memory": memory, "depth": depth, "patch": patch, "cross_scale": cross_scale}
        step = training_step(backend, side, channels, clusters or channels, **how)
        step()  # makes the momentum
        held = live.now
        live.restart()
        step()
        return Peak(held, live.peak - held)


def peak_bytes(backend: str, memory: str, side: int, channels: int = 100, **sizes: Any) -> int:
    """The total of :func:`peak_of`, which says what it takes and raises."""
    return peak_of(backend, memory, side, channels, **sizes).total


def largest_side(budget_bytes: int, backend: str, memory: str, *, patch: int = 32, **sizes: Any) -> int:
    """Pixels of the largest square image, a multiple of ``patch`` and one more, whose step fits.

    Args:
        budget_bytes: for everything that :attr:`Peak.total` counts.
        sizes: as :func:`peak_of` takes them.

    Raises:
        InputError: not even one patch fits; or as :func:`peak_of`.
        BackendError: as :func:`peak_of`.
    """

    def needed(patches: int) -> int:
        return peak_bytes(backend, memory, patches * patch + 1, patch=patch, **sizes)

    if needed(1) > budget_bytes:
        raise InputError(f"largest_side: budget_bytes must be at least {needed(1)}, for one patch; got {budget_bytes}")
    return _last(lambda patches: needed(patches) <= budget_bytes) * patch + 1


def _last(fits: Callable[[int], bool]) -> int:
    """A number that fits, while the next does not; 1 fits."""
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[257, 513, 1025, 2049], help="pixels")
    parser.add_argument("--channels", type=int, default=100, help="channels and clusters")
    options = parser.parse_args(arguments)
    triton = importlib.util.find_spec("triton") is not None
    print(f"A training step at C = K = {options.channels}, float32: predicted, from tensors without data;")
    print("without workspaces of cuDNN and fragmentation.\n")
    heads = " | ".join(f"GB at {side}" for side in options.sides)
    print(f"| device | provider | memory in GB | largest side | {heads} |")
    print("| --- " * (4 + len(options.sides)) + "|")
    for device, gigabytes, providers in TABLE:
        for provider in providers:
            backend, memory = PROVIDERS[provider]
            if backend == "triton" and not triton:
                continue
            sizes: dict[str, Any] = {"channels": options.channels, "device": device}
            side = largest_side(gigabytes * 10**9, backend, memory, **sizes)
            peaks = [f"{peak_bytes(backend, memory, each, **sizes) / 1e9:.2f}" for each in options.sides]
            print(f"| {device} | {provider} | {gigabytes} | {side} | {' | '.join(peaks)} |", flush=True)


if __name__ == "__main__":
    main()
