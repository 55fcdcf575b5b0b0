"""A Triton driver without a GPU: kernels are compiled for a card, and their PTX runs on CPU tensors."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.harness.ptx import machine
from tests.harness.ptx.findings import COPIES, Finding
from tests.harness.ptx.memory import Arguments
from tests.harness.ptx.program import Unsupported

#: Compute capability -> the most shared memory that a block may have, and multiprocessors, as the card reports them.
CARDS = {80: (166912, 108), 86: (101376, 84), 89: (101376, 142), 90: (232448, 132)}


class KernelFault(AssertionError):
    """A launch did what no launch may do; ``findings`` lists it."""

    def __init__(self, findings: list[Finding] | list[str]) -> None:
        super().__init__("\n".join(map(str, findings)))
        self.findings = findings


@dataclass
class Options:
    """What every launch asks for.

    Attributes:
        arch: compute capability that kernels are compiled for, one of :data:`CARDS`.
        seed: of the order of blocks and warps.
        repeats: how many times a launch runs, each with another order, on the same inputs; results must be equal bit by
            bit.
        strict: a finding raises :class:`KernelFault`; otherwise it is collected.
        tolerate: kinds of findings that are counted in :data:`notes` alone.
        edit: changes the PTX before it runs, to plant a fault.
        max_steps: instructions of warps after which a launch counts as endless.
    """

    arch: int = 90
    seed: int = 0
    repeats: int = 1
    strict: bool = True
    tolerate: frozenset[str] = frozenset({COPIES})
    edit: Callable[[str], str] | None = None
    max_steps: int = machine.MOST_STEPS


@dataclass
class Account:
    """What the launches of a kernel cost."""

    launches: int = 0
    blocks: int = 0
    steps: int = 0
    seconds: float = 0.0

    def __add__(self, other: Account) -> Account:
        return Account(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.launches} launches, {self.blocks} blocks, {self.steps / 1e6:.2f} million instructions of warps, "
            f"{self.seconds:.2f} s"
        )


options = Options()
#: (kernel, compute capability) -> what its launches cost.
ledger: defaultdict[tuple[str, int], Account] = defaultdict(Account)
#: What was tolerated, and in how many launches.
notes: Counter[str] = Counter()
_collected: list[Finding] = []


@contextlib.contextmanager
def collected(**changes: Any) -> Iterator[list[Finding]]:
    """Other options for the length of a block; findings are collected unless ``strict=True``."""
    global _collected
    before, list_before = dict(vars(options)), _collected
    vars(options).update({"strict": False, **changes})
    _collected = []
    try:
        yield _collected
    finally:
        vars(options).update(before)
        _collected = list_before


class _Launcher:
    """Called as Triton calls the launcher of a compiled kernel."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.kinds, self.names, self.shared = tuple(src.signature.values()), tuple(src.signature), metadata.shared
        self.threads = metadata.num_warps * 32
        if getattr(metadata, "num_ctas", 1) != 1:
            raise Unsupported("clusters of blocks")
        if any(getattr(metadata, f"{name}_scratch_size", 0) for name in ("global", "profile")):
            raise Unsupported("scratch memory")

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        function: tuple[str, int],
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *values: Any,
    ) -> None:
        ptx, arch = function
        program = machine.program_of(options.edit(ptx) if options.edit else ptx)
        arguments = Arguments(self.kinds, self.names, values)
        params, memory = arguments.parameters(program), arguments.memory
        grid, account = (grid_x, grid_y, grid_z), ledger[program.name, arch]

        before = memory.contents() if options.repeats > 1 else []
        first: list[bytes] = []
        for repeat in range(options.repeats):
            if repeat:
                memory.restore(before)
            began = time.perf_counter()
            seed = options.seed + account.launches + 1000 * repeat
            result = machine.run(program, grid, memory, params, self.shared, self.threads, seed, options.max_steps)
            account.seconds += time.perf_counter() - began
            account.launches += 1
            account.blocks += grid_x * grid_y * grid_z
            account.steps += result.steps
            _judge(result.findings)
            if options.repeats > 1:
                now = memory.contents()
                first = first or now
                differ = [name for name, a, b in zip(memory.names, now, first, strict=True) if a != b]
                if differ:
                    text = f"{program.name}: {', '.join(differ)} depend on the order of blocks and warps"
                    raise KernelFault([text])


def _judge(findings: list[Finding]) -> None:
    """Count what is tolerated; raise or collect the rest."""
    wrong = [finding for finding in findings if finding.kind not in options.tolerate]
    for finding in findings:
        if finding.kind in options.tolerate:
            notes[f"{finding.kernel}: {finding.kind} at {finding.line.source}"] += 1
    if wrong and options.strict:
        raise KernelFault(wrong)
    _collected.extend(wrong)


class _Utils:
    @staticmethod
    def load_binary(name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """Module, function, registers, spilled bytes; the most threads of a block, where this Triton asks for them."""
        from triton.compiler.compiler import CompiledKernel

        function = (kernel.decode(), device)
        asks = "n_max_threads" in CompiledKernel._init_handles.__code__.co_names
        return (function, function, 0, 0, 1024)[: 5 if asks else 4]

    @staticmethod
    def unload_module(module: Any) -> None: ...

    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        shared, processors = CARDS[device]
        return {"max_shared_mem": shared, "multiprocessor_count": processors, "max_num_regs": 65536, "warpSize": 32}


class Driver:
    """What Triton asks of a driver. Devices have their compute capability as number, hence kernels of their own."""

    utils, launcher_cls = _Utils(), _Launcher

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_device(self) -> int:
        return options.arch

    def set_current_device(self, device: int) -> None: ...

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int) -> tuple[int, int]:
        return divmod(options.arch, 10)

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", options.arch, 32)

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


def install(**changes: Any) -> None:
    """Make Triton compile for a card and run here, for the rest of the process.

    Args:
        changes: of :data:`options`.

    Raises:
        RuntimeError: under TRITON_INTERPRET=1, where nothing is compiled.
    """
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise RuntimeError("TRITON_INTERPRET=1: nothing would be compiled")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    # Not the usual folder: what lies here for a cubin is PTX.
    os.environ["TRITON_CACHE_DIR"] = str(machine.cache() / f"kernels-{importlib.metadata.version('triton')}")
    import triton

    vars(options).update(changes)
    backend = triton.backends.backends["nvidia"].compiler  # the class in use; Triton 3.3 loads the module twice
    backend.make_cubin = lambda self, src, metadata, opt, capability: src.encode()
    triton.runtime.driver.set_active(Driver())
