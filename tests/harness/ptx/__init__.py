"""Runs the PTX that Triton compiles, on a CPU, and watches every access to memory.

Triton's interpreter runs the Python of a kernel, block by block, in numpy. It cannot show what the compiler makes of
it: threads, warps, barriers, vector accesses, tensor cores. Here a kernel is compiled for a card, as Triton would do
there, and its PTX is executed on CPU tensors: the 32 lanes of a warp in lockstep, the warps of a block in a random
order between barriers, the blocks in a random order. Python parses, a core in C++ (``machine``, built by g++ at its
first use) runs. Kernels are installed before they are imported, in a process without TRITON_INTERPRET::

    from tests.harness import ptx

    ptx.install(arch=90)
    kernel[grid](x, out, n, BLOCK=128)  # CPU tensors; raises ptx.KernelFault
    with ptx.collected(seed=3, repeats=3) as findings: ...  # collects them
    with ptx.collected(edit=lambda text: text.replace(...)): ...  # plants a fault in the PTX

What it finds stands in :mod:`tests.harness.ptx.findings`. Registers and shared memory start as NaN, and an access that
may not be reads NaN or is dropped. What it cannot see: the work of ptxas (registers, spills, its own fusing of
products and additions), time, a missing ``wgmma.wait_group`` or proxy fence (wgmma happens at once), and barriers of a
part of the block, which count as of the whole. ``ex2``, ``lg2``, ``sin`` and their like are exact to the last bit or
so, better than a card's. Operands of tensor cores in tf32 are cut to 10 bits; sums are exact within an instruction and
cut to float32. What it does not know (TMA, mbarrier, clusters, tcgen05, fp8, local memory, generic addresses) it
refuses with ``ptx.Unsupported``, before anything runs.
"""

from tests.harness.ptx.driver import KernelFault, Options, collected, install, ledger, notes, options
from tests.harness.ptx.findings import Finding
from tests.harness.ptx.machine import compiler, program_of, run
from tests.harness.ptx.memory import Memory
from tests.harness.ptx.program import Program, Unsupported

__all__ = [
    "Finding",
    "KernelFault",
    "Memory",
    "Options",
    "Program",
    "Unsupported",
    "collected",
    "compiler",
    "install",
    "ledger",
    "notes",
    "options",
    "program_of",
    "run",
]
