"""Bytes that kernels move, from recorded launches on tensors without data.

    with recorded_launches() as launches:
        ops.stability_loss(queries, keys, backend="triton")
    moved(launches)

A launch shows which tensors a kernel is given, the kernel's text which of them it loads from and which it stores to.
Each moves once, whole, but where :mod:`msformer_fast.benchmarks.traffic.partly` says otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from msformer_fast.benchmarks.aten_traffic import size_of
from msformer_fast.benchmarks.traffic import Kernels, Launch, Partly
from msformer_fast.benchmarks.traffic.partly import LOADED, STORED, WITHIN_A_TILE_LOADED, WITHIN_A_TILE_STORED
from msformer_fast.benchmarks.traffic.uses import uses_of
from msformer_fast.benchmarks.without_data import LiveBytes, as_on_a_card, launches_given_to


class _Ops(LiveBytes):
    """Looks into the bodies of registered ops.

    Attributes:
        running: name, and shape of the first tensor, of the op whose body runs.
    """

    running: tuple[str, tuple[int, ...]] = "", ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "msformer_fast":
            return super().__torch_dispatch__(func, types, args, kwargs)
        outside, first = self.running, next(value for value in args if isinstance(value, Tensor))
        self.running = func.name().removeprefix("msformer_fast::"), tuple(first.shape)
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.running = outside


@contextlib.contextmanager
def recorded_launches(multiprocessors: int = 0, target: str | None = None) -> Iterator[list[Launch]]:
    """The launches that are made inside, in their order. Tensors made inside hold no data, and nothing is computed.

    Args:
        multiprocessors, target: launchers take themselves to be on such a card; without a target, in Triton's
            interpreter.
    """
    launches: list[Launch] = []
    ops = _Ops()

    def record(kernel: Any, *given: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
        arguments = dict(zip(kernel.arg_names, given, strict=False)) | named
        used = uses_of(kernel, arguments)
        loads, stores = (_sizes(arguments, names) for names in (used.loads, used.stores))
        launches.append(Launch(kernel, *ops.running, grid, loads, stores, arguments))

    with contextlib.ExitStack() as stack:
        stack.enter_context(launches_given_to(record))
        if target is not None:
            stack.enter_context(as_on_a_card(multiprocessors, target))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(ops)
        yield launches


def moved(launches: Iterable[Launch], loaded: Partly | None = None, stored: Partly | None = None) -> Kernels:
    """What each kernel moves.

    Args:
        loaded, stored: exceptions beside those of :mod:`msformer_fast.benchmarks.traffic.partly`, before which they go.
    """

    def total(launch: Launch, sizes: Mapping[str, int], partly: Partly) -> int:
        given = {name: partly.get((launch.kernel, name)) for name in sizes}
        return sum(sizes[name] if count is None else count(launch, name) for name, count in given.items())

    kernels: Kernels = {}
    loaded, stored = {**LOADED, **(loaded or {})}, {**STORED, **(stored or {})}
    for launch in launches:
        count, read, written = kernels.get(launch.kernel, (0, 0, 0))
        read, written = read + total(launch, launch.loads, loaded), written + total(launch, launch.stores, stored)
        kernels[launch.kernel] = count + 1, read, written
    return kernels


def to_memory(launches: Iterable[Launch], resident: Partly | None = None) -> Kernels:
    """What each kernel moves, without what a program of Mix-FFN stores and reads back within a tile, which the last
    cache of a card keeps.

    Args:
        resident: what else stays there, as exceptions of :func:`moved`.
    """
    kept = resident or {}
    return moved(launches, {**WITHIN_A_TILE_LOADED, **kept}, {**WITHIN_A_TILE_STORED, **kept})


def _sizes(arguments: Mapping[str, Any], names: set[str]) -> dict[str, int]:
    """Bytes of each of these tensors; of one that is given under several names, under the first of them alone."""
    found = {id(arguments[name]): name for name in reversed(list(arguments)) if name in names}
    return {name: size_of(arguments[name]) for name in arguments if name in found.values()}
