"""Peak memory of whole steps, as the difference from just before the first, in a process of its own.

``python -m benchmarks.memory --pixels 257 --variant reference`` prints megabytes (1e6 bytes).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

MEGABYTE = 1e6


def peak_of_step(pixels: int, variant: str, keep_freed_memory: bool) -> float:
    """Peak resident memory above the start of the first of three steps, in megabytes, measured in a child process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--pixels", str(pixels), "--variant", variant]
    command += ["--keep-freed-memory"] if keep_freed_memory else []
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800, cwd=root)
    return float(done.stdout)


def _resident() -> float:
    """Resident bytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=int, default=257)
    parser.add_argument("--variant", default="reference")
    parser.add_argument("--keep-freed-memory", action="store_true")
    arguments = parser.parse_args()

    from benchmarks.step import prepare
    from msformer_fast.process import keep_freed_memory

    if arguments.keep_freed_memory:
        keep_freed_memory()
    # A small step first, so that threads and libraries are counted as start, not as the step.
    prepare(65, arguments.variant, channels=8).step()
    parts = prepare(arguments.pixels, arguments.variant)
    before = _resident()
    for _ in range(3):
        parts.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print((peak - before) / MEGABYTE)


if __name__ == "__main__":
    main()
