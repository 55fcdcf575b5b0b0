"""Count what Triton kernels move and multiply, by running them in Triton's interpreter on CPU tensors.

    with count_traffic() as t:
        kernel[grid](x, y, n, BLOCK=128)
    t.bytes_loaded, t.bytes_stored, t.unique_bytes_loaded, t.dot_flops, t.programs, t.launches
    t.kernels["kernel"].bytes_loaded           # the same, per kernel
    print(t.table())

Counts are exact for the launches made, and are those of the program text: lanes masked off are not counted, caches are
not modelled. bytes_loaded is what the kernel asks for (an upper bound of the traffic); unique_bytes_loaded counts an
address once per launch (a lower bound, what a perfect cache would read); their ratio shows re-reading.
"""

import contextlib
import dataclasses
import os

import numpy as np

from tests.harness.interpreter import install


@dataclasses.dataclass
class Counts:
    launches: int = 0  # kernel launches
    programs: int = 0  # program instances (blocks of the grid) over all launches
    bytes_loaded: int = 0  # bytes read by unmasked lanes of tl.load and descriptor loads
    unique_bytes_loaded: int = 0  # bytes at distinct addresses read, distinct within a launch
    bytes_stored: int = 0  # bytes written by unmasked lanes
    atomics: int = 0  # unmasked lanes of atomic operations (their bytes are in neither sum above)
    dot_flops: int = 0  # 2 M N K per tl.dot, padding included


@dataclasses.dataclass
class Traffic(Counts):
    kernels: dict = dataclasses.field(default_factory=dict)  # kernel name: Counts

    def add(self, name, **amounts):
        for counts in (self, self.kernels.setdefault(name, Counts())):
            for field, amount in amounts.items():
                setattr(counts, field, getattr(counts, field) + amount)

    def table(self):
        fields = [f.name for f in dataclasses.fields(Counts)]
        rows = [["kernel", *fields]]
        for name, counts in [*self.kernels.items(), ("total", self)]:
            rows.append([name, *(str(getattr(counts, f)) for f in fields)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=False)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)


class _Unique:
    """Distinct addresses, by element size. Merged now and then, so that memory stays near the answer's size."""

    def __init__(self):
        self.parts, self.pending = {}, 0

    def add(self, addresses, size):
        self.parts.setdefault(size, []).append(addresses)
        self.pending += addresses.size
        if self.pending > 1 << 22:
            self.merge()

    def merge(self):
        self.parts = {size: [np.unique(np.concatenate(parts))] for size, parts in self.parts.items()}
        self.pending = 0

    def bytes(self):
        self.merge()
        return sum(size * parts[0].size for size, parts in self.parts.items())


@contextlib.contextmanager
def count_traffic():
    """Count every launch of an interpreted kernel made inside the block; yields a Traffic."""
    if os.environ.get("TRITON_INTERPRET", "0") != "1":
        raise RuntimeError("count_traffic needs TRITON_INTERPRET=1, set before triton is imported")
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    total, state = Traffic(), []  # state: (kernel name, _Unique) of the launch in progress
    saved = {}
    undo = install(bf16=False, bounds=False)  # numbers alone

    def wrap(owner, name, replacement):
        saved[owner, name] = original = getattr(owner, name)
        setattr(owner, name, lambda self, *args, **kwargs: replacement(original, self, *args, **kwargs))

    def element_bytes(pointers):
        return max(1, pointers.get_element_ty().primitive_bitwidth // 8)

    def active(pointers, mask):
        return pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]

    def launch(original, self, *args, **kwargs):
        name = self.fn.__name__
        state.append((name, _Unique()))
        try:
            total.add(name, launches=1)
            return original(self, *args, **kwargs)
        finally:
            total.add(name, unique_bytes_loaded=state.pop()[1].bytes())

    def program(original, self, *index):
        total.add(state[-1][0], programs=1)
        return original(self, *index)

    def load(original, self, pointers, mask, *rest, **kwargs):
        name, unique = state[-1]
        addresses, size = active(pointers, mask), element_bytes(pointers)
        total.add(name, bytes_loaded=addresses.size * size)
        unique.add(addresses, size)
        return original(self, pointers, mask, *rest, **kwargs)

    def store(original, self, pointers, value, mask, *rest, **kwargs):
        total.add(state[-1][0], bytes_stored=active(pointers, mask).size * element_bytes(pointers))
        return original(self, pointers, value, mask, *rest, **kwargs)

    def dot(original, self, a, b, *rest, **kwargs):
        total.add(state[-1][0], dot_flops=2 * a.data.size * b.data.shape[-1])
        return original(self, a, b, *rest, **kwargs)

    def dot_scaled(original, self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        lhs, packs = args[0], {True: 2, False: 1}  # two 4-bit values a byte, along K when lhs_k_pack
        k = lhs.data.shape[-1] * packs["E2M1" in str(args[2]) and bool(args[7])]
        total.add(state[-1][0], dot_flops=2 * result.data.size * k)
        return result

    def rmw(original, self, op, pointers, value, mask, *rest, **kwargs):
        total.add(state[-1][0], atomics=int(np.count_nonzero(np.broadcast_to(mask.data, pointers.data.shape))))
        return original(self, op, pointers, value, mask, *rest, **kwargs)

    def cas(original, self, pointers, *rest, **kwargs):
        total.add(state[-1][0], atomics=pointers.data.size)
        return original(self, pointers, *rest, **kwargs)

    # Unmasked, descriptor and atomic loads and stores all pass through the masked ones.
    wrap(GridExecutor, "__call__", launch)
    for name, replacement in dict(
        set_grid_idx=program,
        create_masked_load=load,
        create_masked_store=store,
        create_dot=dot,
        create_dot_scaled=dot_scaled,
        create_atomic_rmw=rmw,
        create_atomic_cas=cas,
    ).items():
        if hasattr(Builder, name):  # not every version of the interpreter scales
            wrap(Builder, name, replacement)
    try:
        yield total
    finally:
        for (owner, name), original in saved.items():
            setattr(owner, name, original)
        undo()


def kernels_of(traffic):
    """As ``msformer_fast.benchmarks.traffic`` has them: launches, bytes at distinct addresses read, bytes written."""
    return {name: (k.launches, k.unique_bytes_loaded, k.bytes_stored) for name, k in traffic.kernels.items()}


def counted_as_recorded(call):
    """Traffic of each part of a call, which the recorded launches of the same call on tensors without data agree with.

    Args:
        call: a function that draws, yields, and yields again after each part.
    """
    from msformer_fast.benchmarks.traffic.recorded import moved, recorded_launches

    parts, steps = [], call()
    next(steps)
    while True:
        with count_traffic() as counted:
            ended = next(steps, "ended") == "ended"
        if ended:
            break
        parts.append(counted)
    with recorded_launches() as launches:
        steps = call()
        next(steps)
        for counted in parts:
            launches.clear()
            next(steps)
            assert moved(launches) == kernels_of(counted)
    return parts
