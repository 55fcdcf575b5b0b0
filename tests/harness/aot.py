"""Compile a Triton kernel ahead of time for GPUs that are absent, and report what the compilers say.

What comes out are predictions of compilers and of a table of limits, not measurements: nothing here knows clocks,
caches or latencies. Runs in a process without TRITON_INTERPRET (see ``aot_table``).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch

from msformer_fast.kernels.launch import compile_options
from msformer_fast.ops.precision import TF32X3_TARGETS

# compute capability: (shared memory per SM, KiB; max resident warps per SM; max resident blocks per SM)
NVIDIA = {
    80: (164, 64, 32),
    86: (100, 48, 16),
    89: (100, 48, 24),
    90: (228, 64, 32),
    100: (228, 64, 32),
    120: (100, 48, 24),
}
TARGETS = (*(f"sm_{capability}" for capability in NVIDIA), "gfx942")
#: dtype of the operands of a product, and Triton's ``input_precision``.
Product = tuple[torch.dtype, str]

#: Those with cases in ``tests/aot``.
OPS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).resolve().parents[1] / "aot").glob("*.py")
    if not path.stem.startswith(("_", "test_"))
)
CDNA_WAVES, CDNA_LDS = 32, 65536  # CDNA3: 4 SIMDs a CU, 512 vector registers a lane, 8 waves a SIMD, 64 KiB LDS a CU

TENSOR_CORE = re.compile(r"^([HIDQOB]MMA|[HIQB]GMMA|UTC[A-Z]*MMA)$")  # mma.sync, wgmma, tcgen05 as they read in SASS
SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def products_on(target: str, *others: Product) -> tuple[Product, ...]:
    """Kinds of products that kernels are compiled for on a card: float32's, and after them others."""
    float32 = ("ieee", "tf32", *["tf32x3"] * (target in TF32X3_TARGETS))
    return (*((torch.float32, precision) for precision in float32), *others)


def short(dtype: torch.dtype) -> str:
    """The dtype's name in the table."""
    return str(dtype).removeprefix("torch.")


@dataclasses.dataclass(frozen=True)
class Case:
    """One compilation: types and constexprs by argument name. "i32:16" is an integer divisible by 16."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, int]  # of the compiler: warps, stages

    @classmethod
    def of(
        cls, name: str, kernel: Any, settings: dict[str, int], dtype: torch.dtype, constexprs: dict[str, Any],
        **types: str,
    ) -> Case:  # fmt: skip
        """The compilation of a launch. ``types``: of arguments that are neither of ``dtype`` (pointers) nor int32."""
        settings = dict(settings)
        options = {name: settings.pop(name) for name in compile_options(1)}
        constexprs = {**settings, **constexprs}
        pointer = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]
        default = {n: pointer if n.startswith("p_") else "i32" for n in kernel.arg_names if n not in constexprs}
        return cls(name, kernel, {n: types.get(n, t) for n, t in default.items()}, constexprs, options)


@dataclasses.dataclass
class Report:
    """What the compilers say of one case on one card."""

    case: str
    target: str
    error: str = ""  # why it did not compile or could not be launched; empty when all is well
    registers: int = 0  # 32-bit registers a thread (AMD: vector registers a lane, AGPRs included)
    spill_bytes: int = 0  # a thread's stack and local memory, where values go for want of registers
    shared_bytes: int = 0  # shared memory (LDS) of a block
    warps: int = 0  # of a block (AMD: waves of 64)
    occupancy: str = ""  # warps that can be resident on an SM (CU) at once / the most it holds
    tensor_core: int = 0  # matrix instructions in the code: static count, not executed count
    memory: str = ""  # global accesses in the code by width in bits: "ld.128x4 st.32x1"

    @property
    def ok(self) -> bool:
        return not (self.error or self.spill_bytes)


def refuse_interpreter() -> None:
    """End a command that compiles where kernels would be interpreted."""
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("TRITON_INTERPRET is set: there is nothing to compile")


def source_of(case: Case, target: str) -> tuple[Any, Any]:
    """A case as Triton's compiler takes it, and the card as it names it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    hip = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if hip else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    signature, attributes = {}, {}
    for index, name in enumerate(case.kernel.arg_names):
        kind, _, divisor = case.signature.get(name, "constexpr").partition(":")
        signature[name] = "constexpr" if name in case.constexprs else kind
        if name not in case.constexprs and (kind.startswith("*") or divisor == "16"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(case.kernel, signature, case.constexprs, attributes), gpu


def build(case: Case, target: str) -> Any:
    """What Triton makes of a case for one card (``sm_90``, ``gfx942``), as it would launch it there."""
    import triton

    source, gpu = source_of(case, target)
    with contextlib.redirect_stdout(io.StringIO()):  # triton prints the whole PTX when ptxas fails
        return triton.compile(source, target=gpu, options=case.options)


def describe(name: str, target: str, compiled: Any) -> Report:
    """The report on what ``build`` made."""
    report = Report(name, target)
    if target.startswith("gfx"):
        _fill_amd(report, compiled)
    else:
        _fill_nvidia(report, int(target.removeprefix("sm_")), compiled)
    return report


def compile_case(case: Case, target: str) -> Report:
    """Compile one case for one card; what fails is a report too."""
    try:
        return describe(case.name, target, build(case, target))
    except Exception as error:  # a report on every card, whatever one compiler thinks of the kernel
        return Report(case.name, target, error=" ".join(f"{type(error).__name__}: {error}".split()))


def said_of(cubin: bytes, tool: str, *options: str) -> str:
    """What one of the tools that come with Triton says of machine code."""
    from triton.backends.nvidia import compiler as nvidia

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(pathlib.Path(nvidia.__file__).parent / "bin" / tool), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _fill_nvidia(report: Report, capability: int, compiled: Any) -> None:
    """From the cubin that Triton launches, as this version and its flags made it: nothing is assembled again."""
    resources = said_of(compiled.asm["cubin"], "cuobjdump", "--dump-resource-usage")
    usage = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", resources))
    sass = said_of(compiled.asm["cubin"], "nvdisasm", "-c")

    report.registers = int(usage["REG"])
    report.spill_bytes = int(usage["STACK"]) + int(usage["LOCAL"])
    report.shared_bytes = compiled.metadata.shared + int(usage["SHARED"])
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", compiled.asm["ptx"])
    report.warps = int(threads[1]) // 32 if threads else compiled.metadata.num_warps

    memory: collections.Counter[str] = collections.Counter()
    names = {"LDG": "ld", "STG": "st", "LDGSTS": "cp.async"}
    for opcode in SASS.findall(sass):
        head, *parts = opcode.split(".")
        if TENSOR_CORE.match(head):
            report.tensor_core += 1
        elif head in names:
            wide = (w for w in (256, 128, 64, 16, 8) if {str(w), f"U{w}", f"S{w}", f"F{w}"} & set(parts))
            memory[f"{names[head]}.{next(wide, 32)}"] += 1
    report.memory = " ".join(f"{kind}x{count}" for kind, count in sorted(memory.items()))

    kib, most_warps, most_blocks = NVIDIA[capability]
    limit = (kib - 1) * 1024
    if report.shared_bytes > limit:
        report.error = f"needs {report.shared_bytes} bytes of shared memory, a block may have {limit}"
    # 65536 registers an SM in four quarters, given to a warp 256 at a time; 1 KiB of each block is the system's.
    registers_of_warp = -(-max(report.registers, 1) * 32 // 256) * 256
    tensor_memory = getattr(compiled.metadata, "tmem_size", 0) or 0
    blocks = min(
        most_warps // report.warps,
        most_blocks,
        4 * (16384 // registers_of_warp) // report.warps,
        kib * 1024 // (-(-report.shared_bytes // 128) * 128 + 1024),
        512 // tensor_memory if tensor_memory else most_blocks,
    )
    report.occupancy = f"{blocks * report.warps}/{most_warps}"


def _fill_amd(report: Report, compiled: Any) -> None:
    asm = compiled.asm["amdgcn"]

    def field(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", asm)[1])

    report.registers = field("vgpr_count")
    report.spill_bytes = 8 * field("vgpr_spill_count")
    report.shared_bytes, report.warps = compiled.metadata.shared, compiled.metadata.num_warps
    report.tensor_core = len(re.findall(r"^\s+v_s?mfma_", asm, re.M))
    widths = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "b128": 128, "b64": 64, "b32": 32}
    memory: collections.Counter[str] = collections.Counter()  # without the spills, which LLVM marks "Folded"
    for op, kind in re.findall(r"^\s+(?:global|buffer|flat)_(load|store)_(\w+)\b(?!.*Folded)", asm, re.M):
        width = widths.get(kind.removeprefix("lds_")) or (16 if "short" in kind or "16" in kind else 8)
        memory[f"{'ld' if op == 'load' else 'st'}.{width}"] += 1
    report.memory = " ".join(f"{kind}x{count}" for kind, count in sorted(memory.items()))
    if report.shared_bytes > CDNA_LDS:
        report.error = f"needs {report.shared_bytes} bytes of LDS, a block may have {CDNA_LDS}"
    per_simd = 512 // (-(-max(report.registers, 1) // 8) * 8)
    lds = CDNA_LDS // (-(-report.shared_bytes // 512) * 512) if report.shared_bytes else 512
    blocks = min(CDNA_WAVES // report.warps, 4 * per_simd // report.warps, lds, 16 if report.warps > 1 else 32)
    report.occupancy = f"{blocks * report.warps}/{CDNA_WAVES}"
