"""Bytes that kernels move, from recorded launches on tensors without data, in place of formulas of their sizes.

    with recorded_launches() as launches:
        ops.stability_loss(queries, keys, backend="triton")
    moved(launches)

A launch shows which tensors a kernel is given, the kernel's text which of them it loads from and which it stores to.
Each is taken to move once, whole. Where a kernel stores an element more than once, or leaves a part of a tensor alone,
``moved`` is told what it moves instead. As in all of ``msformer_fast.benchmarks.traffic``, a read counts each address
once a launch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from msformer_fast.benchmarks.largest import LiveBytes, as_on_a_card
from msformer_fast.benchmarks.traffic import Kernels
from msformer_fast.benchmarks.traffic.uses import uses_of


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes:
        kernel: its name.
        programs: of its grid.
        loads, stores: bytes of each tensor that it loads from, or stores to, by the name of the argument.
        arguments: all of them by name.
    """

    kernel: str
    programs: int
    loads: dict[str, int]
    stores: dict[str, int]
    arguments: dict[str, Any]


#: What an argument of a kernel moves where that is not its size, from the launch; by kernel and argument.
Instead: TypeAlias = Mapping[tuple[str, str], Callable[[Launch], int]]


@contextlib.contextmanager
def recorded_launches(on_a_card: bool = False) -> Iterator[list[Launch]]:
    """The launches that are made inside, in their order. Tensors made inside hold no data, and nothing is computed.

    Args:
        on_a_card: launchers take themselves to be on the card of :mod:`msformer_fast.benchmarks.largest`, not on a CPU.
    """
    from triton.runtime.interpreter import InterpretedFunction

    launches: list[Launch] = []

    def record(kernel: Any, *given: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
        arguments = dict(zip(kernel.arg_names, given, strict=False)) | named
        used = uses_of(kernel, arguments)
        loads, stores = (_sizes(arguments, names) for names in (used.loads, used.stores))
        launches.append(Launch(kernel.fn.__name__, math.prod(grid), loads, stores, arguments))

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(InterpretedFunction, "run", record))
        if on_a_card:
            stack.enter_context(as_on_a_card())
        stack.enter_context(FakeTensorMode())
        stack.enter_context(LiveBytes())  # looks into the bodies of registered ops
        yield launches


def moved(launches: list[Launch], instead: Instead | None = None) -> Kernels:
    """Launches, bytes read and bytes written of each kernel.

    Args:
        instead: what an argument moves where that is not its size.
    """
    instead = instead or {}

    def total(launch: Launch, sizes: Mapping[str, int]) -> int:
        given = {name: instead.get((launch.kernel, name)) for name in sizes}
        return sum(sizes[name] if count is None else count(launch) for name, count in given.items())

    kernels: Kernels = {}
    for launch in launches:
        count, loaded, stored = kernels.get(launch.kernel, (0, 0, 0))
        loaded, stored = loaded + total(launch, launch.loads), stored + total(launch, launch.stores)
        kernels[launch.kernel] = count + 1, loaded, stored
    return kernels


def _sizes(arguments: Mapping[str, Any], names: set[str]) -> dict[str, int]:
    """Bytes of each of these tensors; of one that is given under several names, under the first of them alone."""
    found = {id(arguments[name]): name for name in reversed(list(arguments)) if name in names}
    return {name: size_of(arguments[name]) for name in arguments if name in found.values()}


def size_of(tensor: Tensor) -> int:
    """Bytes of the distinct elements of a view: an axis that was expanded has one."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size if stride else min(size, 1) for size, stride in pairs)
