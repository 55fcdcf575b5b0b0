"""The machine: builds its core in C++ at the first use, and runs a program on memory that is watched."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.harness.ptx import findings as found
from tests.harness.ptx.memory import Memory
from tests.harness.ptx.parser import parse
from tests.harness.ptx.program import SPECIALS, Program

SOURCES = Path(__file__).with_name("machine")
#: Not -ffast-math, and no fusing of its own: each instruction rounds as on a card.
FLAGS = ("-std=c++20", "-O1", "-march=native", "-ffp-contract=off", "-fPIC")
MOST_FINDINGS = 256
MOST_STEPS = 1 << 33


class _Launch(ctypes.Structure):
    """As ``Launch`` in ``machine/state.h``."""

    _fields_ = (
        ("code", ctypes.c_void_p),
        ("operands", ctypes.c_void_p),
        ("image", ctypes.c_void_p),
        ("file_bytes", ctypes.c_int64),
        ("registers_at", ctypes.c_int64),
        ("params", ctypes.c_void_p),
        ("regions", ctypes.c_void_p),
        ("n_regions", ctypes.c_int64),
        ("shared_bytes", ctypes.c_int64),
        ("shared_granule", ctypes.c_int64),
        ("global_granule", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("grid", ctypes.c_int64 * 3),
        ("specials", ctypes.c_int64 * len(SPECIALS)),
        ("seed", ctypes.c_int64),
        ("max_steps", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("findings", ctypes.c_void_p),
        ("max_findings", ctypes.c_int64),
        ("n_findings", ctypes.c_int64),
    )


def cache() -> Path:
    """The user's folder for the machine and for compiled kernels."""
    folder = Path(tempfile.gettempdir()) / f"msformer-fast-ptx-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def compiler() -> str | None:
    """The C++ compiler that builds the machine, None where there is none."""
    return shutil.which("g++")


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled machine; processes that want it at once wait for the one that builds it."""
    from filelock import FileLock

    content = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
    digest = hashlib.sha256(content + " ".join(FLAGS).encode()).hexdigest()[:16]
    built = cache() / f"machine-{digest}.so"
    with FileLock(f"{built}.lock"):
        if not built.exists():
            _build(built)
    machine = ctypes.CDLL(str(built))
    machine.ptx_lookup.argtypes, machine.ptx_run.argtypes = [ctypes.c_char_p], [ctypes.POINTER(_Launch)]
    return machine


def _build(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:

        def compiled(source: Path) -> str:
            result = f"{folder}/{source.stem}.o"
            subprocess.run([compiler(), *FLAGS, "-c", str(source), "-o", result], check=True)
            return result

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sorted(SOURCES.glob("*.cpp"))))
        whole = Path(folder) / target.name
        subprocess.run([compiler(), "-shared", *objects, "-o", str(whole)], check=True)
        whole.rename(target)


@functools.cache
def lookup(name: str) -> int:
    """The machine's number of an instruction, -1 where it knows none."""
    return library().ptx_lookup(name.encode())


@functools.lru_cache(maxsize=512)
def program_of(ptx: str) -> Program:
    """The program of a PTX text, see :func:`tests.harness.ptx.parser.parse`."""
    return parse(ptx, lookup)


@dataclass
class Result:
    """What a launch did wrong, and how many instructions its warps executed."""

    findings: list[found.Finding]
    steps: int


def run(
    program: Program,
    grid: tuple[int, int, int],
    memory: Memory,
    params: bytes,
    shared: int = 0,
    threads: int = 0,
    seed: int = 0,
    max_steps: int = MOST_STEPS,
) -> Result:
    """One launch.

    Args:
        program: that runs.
        grid: blocks along three axes.
        memory: of its arguments, written in place.
        params: bytes of its parameters.
        shared: bytes of a block's shared memory.
        threads: of a block, where the PTX does not say how many.
        seed: of the order of blocks and warps.
        max_steps: instructions of warps after which the launch counts as endless.
    """
    regions, cells = memory.table(program.global_granule)  # cells: alive until the end
    records = np.zeros(MOST_FINDINGS, found.RECORD)
    buffer = np.frombuffer(params.ljust(16, b"\0"), np.uint8).copy()
    launch = _Launch(
        code=program.code.ctypes.data,
        operands=program.operands.ctypes.data,
        image=program.image.ctypes.data,
        file_bytes=program.image.nbytes,
        registers_at=program.registers_at,
        params=buffer.ctypes.data,
        regions=regions.ctypes.data,
        n_regions=len(regions),
        shared_bytes=shared,
        shared_granule=program.shared_granule,
        global_granule=program.global_granule,
        threads=program.threads or threads,
        grid=(ctypes.c_int64 * 3)(*grid),
        specials=(ctypes.c_int64 * len(SPECIALS))(*program.specials),
        seed=seed,
        max_steps=max_steps,
        findings=records.ctypes.data,
        max_findings=MOST_FINDINGS,
    )
    library().ptx_run(ctypes.byref(launch))
    del cells
    listed = [found.Finding.of(record, program, grid, memory) for record in records[: launch.n_findings]]
    return Result(listed, launch.steps)
