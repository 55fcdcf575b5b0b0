"""What every launcher shares: the launch itself, names of cards, dtypes of sums, kinds of products. No kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
import triton
import triton.language as tl

Row: TypeAlias = tuple[int, ...]


def launch(kernel: Any, grid: tuple[int, ...], *shared: Mapping[str, Any], **arguments: Any) -> None:
    """Launch a kernel with every argument by its name.

    Args:
        kernel: a ``triton.jit`` function.
        grid: programs along each axis. An empty grid launches nothing.
        shared: arguments and options that several launches have in common; a kernel takes those that it knows.
        arguments: of this launch. They go before shared ones of the same name.

    Raises:
        TypeError: an argument that the kernel lacks, or one that it needs and that is not given (Triton's).
    """
    if 0 in grid:
        return
    known = (*kernel.arg_names, *OPTIONS)
    common = {name: value for mapping in shared for name, value in mapping.items() if name in known}
    kernel[grid](**{**common, **arguments})


def target_of(device: torch.device) -> str | None:
    """Name of a device's architecture, as launch tables spell it (``sm_90``, ``gfx942``); None on the CPU."""
    if device.type != "cuda":
        return None
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def multiprocessors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a device; a few on the CPU: tests in the interpreter see several programs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """What sums of a dtype are taken in (see ``sum_dtype``), as a kernel spells it."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def product_kind(dtype: torch.dtype, input_precision: str) -> str:
    """Rows of a launch table that serve a product: "half" (16 bit), or as float32 operands are multiplied.

    "tf32": their mantissas cut to 10 bits; "tf32x3": a sum of three products of such parts, with float32's error;
    "ieee": fused multiply-adds (also float64).
    """
    return "half" if dtype.itemsize == 2 else input_precision


def served_kind(table: Mapping[Any, Any], part: str, kind: str) -> str:
    """The kind of products whose rows of a launch table serve a part.

    Where it has none for "tf32x3", "ieee", as which it then multiplies; for "mixed" (16-bit products of float32 in
    memory), "half".
    """
    return kind if (part, kind) in table else {"tf32x3": "ieee", "mixed": "half"}.get(kind, kind)


def vector_length(dtype: torch.dtype, *divided: int) -> int:
    """Elements that a 128-bit access holds, or the largest lower power of 2 that divides all these numbers."""
    return math.gcd(16 // dtype.itemsize, *divided)


def padded(size: int) -> int:
    """The block that holds all of a dimension: a power of 2, and no less than a product takes."""
    return max(16, triton.next_power_of_2(size))


def compile_options(num_warps: int, num_stages: int = 1) -> dict[str, int]:
    """What every launch asks of the compiler.

    A product and the sum that it goes into may become one fma: what the launch tables were made with, and half the
    instructions. Triton 3.9 warns that its default will change, so it is asked for by name.
    """
    return dict(num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)


OPTIONS = tuple(compile_options(1))


def choose(rows: Mapping[tuple[str, int], Row], size: int, target: str | None) -> Row:
    """The row of a launch table ``{(targets, largest size): row}`` that serves a size on a card.

    The narrowest that fits; of rows of that width one that names the target goes before one for any (``""``).
    ``"sm_90 before 3.8"`` serves these cards under older versions of Triton alone, and goes before a row of the same
    width for all versions.
    """
    fits = []
    for (cards, limit), row in rows.items():
        targets, _, newer = cards.partition(" before ")
        serves = (not targets or target in targets.split()) and (not newer or version_of(newer) > TRITON)
        if serves and size <= limit:
            fits.append((limit, not targets, not newer, row))
    return min(fits)[-1]


def version_of(name: str) -> tuple[int, ...]:
    """Major and minor version, which compare as numbers."""
    return tuple(int(part) for part in name.split(".")[:2])


TRITON = version_of(triton.__version__)
