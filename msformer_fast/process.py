"""Settings of a whole process: what its allocator keeps, how many threads it uses, how cuDNN computes, how it ends.
Nothing here runs unasked: the command line calls it, whose process is its own; a library's caller decides for theirs.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from msformer_fast.errors import InputError

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_GIGABYTE = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed for the next tensor, instead of giving it back to the system.

    By default every tensor above 32 MB is mapped anew, and each of its pages is zeroed at its first touch: at the
    paper's sizes about a third of the time of a plain step on two cores. The process keeps its peak until it ends.
    Call it before the first large tensor; calling again changes nothing.

    Returns:
        Whether the platform has this allocator and took the setting. Elsewhere (macOS, Windows, musl) nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    taken = mallopt(_M_MMAP_THRESHOLD, _GIGABYTE), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return taken == (1, 1)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """No garbage collection in a block that imports large modules, nor of what they made, ever after.

    All that a module makes stays, so going through it again and again finds nothing: with PyTorch half a million
    objects, each time. Errors of the block pass through.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def leave(code: int) -> NoReturn:
    """End this process with an exit code, at once where nothing is left to do.

    Python would take all modules apart first, PyTorch's thousands of objects one by one, for some tenths of a second.
    What was registered to run at exit is run, and outputs are flushed. Raises SystemExit where that fails or other
    threads go on: then Python ends the process in its own way.
    """
    others = [each for each in threading.enumerate() if each is not threading.main_thread() and not each.daemon]
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # a pipe whose reader left, a stream that is closed or None
        sys.exit(code)
    if others:
        sys.exit(code)
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota where there is one (at least 1).

    PyTorch counts the machine's; in a container with a quota of 2 on 64 cores its 64 threads stand in each other's way.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(count if quota is None else min(count, math.ceil(quota)), 1)


def limit_memory(more: int) -> bool:
    """Let this process take ``more`` bytes beyond what it has now: further allocations fail in it, with an error that
    can be handled, where the system would otherwise end some process. Not for processes that use a GPU.

    Returns:
        Whether the platform counts a process's own memory so (Linux).
    """
    if not sys.platform.startswith("linux"):
        return False
    import resource

    status = Path("/proc/self/status").read_text()
    now = next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return True


def set_threads(threads: int | None = None) -> int:
    """Set the threads of PyTorch's operators; returns how many they are.

    Args:
        threads: 1 or more; ``None`` lowers PyTorch's own choice to :func:`usable_cores` where it is larger, and leaves
            alone what the environment says (``OMP_NUM_THREADS``).

    Raises:
        InputError: fewer than 1.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    import torch

    wanted = torch.get_num_threads() if threads is None else threads
    if threads is None and not any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        wanted = min(wanted, usable_cores())
    # Not for nothing: once told a number, even the same, MKL no longer takes fewer threads where that is faster (an
    # eighth of an efficient attention at 129 pixels on two cores).
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)
    return torch.get_num_threads()


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores of the control group's quota, version 2 or 1; ``None`` where there is none."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        return None if quota <= 0 else quota / int((root / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def cudnn_settings(**settings: bool) -> Iterator[None]:
    """Settings of cuDNN's convolutions inside a block, or a function that this decorates; outside, what they were.

    Args:
        settings: attributes of ``torch.backends.cudnn``, such as ``deterministic`` or ``allow_tf32``. Its own default
            is that float32 operands are rounded to tf32, whatever :func:`torch.set_float32_matmul_precision` was told.
    """
    from torch.backends import cudnn

    before = {name: getattr(cudnn, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(cudnn, name, value)
