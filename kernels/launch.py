"""What every launcher shares: names of cards, dtypes of sums, kinds of products, widths of accesses. No kernels."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import triton
import triton.language as tl

Row: TypeAlias = tuple[int, ...]


def target_of(device: torch.device) -> str | None:
    """Name of a device's architecture, as launch tables spell it (``sm_90``, ``gfx942``); None on the CPU."""
    if device.type != "cuda":
        return None
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def processors_of(device: torch.device) -> int:
    """Multiprocessors of a device; a few on the CPU, so that tests in the interpreter see several slots."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """What sums of a dtype are taken in (see ``sum_dtype``), as a kernel spells it."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def product_kind(dtype: torch.dtype, input_precision: str) -> str:
    """Row of a launch table that serves a product: "half" (16 bit), "tf32" or "ieee" (also tf32x3 and float64)."""
    if dtype.itemsize == 2:
        return "half"
    return "tf32" if input_precision == "tf32" else "ieee"


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


def choose(rows: dict[tuple[str, int], Row], size: int, target: str | None) -> Row:
    """The row of a launch table ``{(targets, largest size): row}`` that serves a size on a card.

    A row that names the target goes before one for any (``""``), then the narrowest that fits. ``"sm_90 before 3.7"``
    serves these cards under older versions of Triton alone, and goes before a row of the same width for all versions.
    """
    fits = []
    for (cards, limit), row in rows.items():
        targets, _, newer = cards.partition(" before ")
        serves = target in (targets.split() or [target]) and (not newer or version_of(newer) > TRITON)
        if serves and size <= limit:
            fits.append((not targets, limit, not newer, row))
    return min(fits)[-1]


def version_of(name: str) -> tuple[int, ...]:
    """Major and minor version, which compare as numbers."""
    return tuple(int(part) for part in name.split(".")[:2])


TRITON = version_of(triton.__version__)
