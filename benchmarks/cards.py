"""Graphics cards that predictions are made for: figures from the vendors' data sheets, without sparsity."""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """One card.

    Attributes:
        bandwidth: of the memory, bytes a second.
        float32: operations a second in float32, on the units that round as IEEE says.
        tf32: the same of the matrix units that round operands to tf32.
        half: the same for 16-bit operands, sums in float32.
        target: name of the architecture in launch tables and compilers' reports.
        multiprocessors: multiprocessors, or compute units.
        memory: bytes.
        clock: cycles a second at most.
    """

    name: str
    bandwidth: float
    float32: float
    tf32: float
    half: float
    target: str
    multiprocessors: int
    memory: int
    clock: float

    @property
    def issue(self) -> float:
        """Instructions a second of all warps: four a cycle on each multiprocessor."""
        return 4 * self.multiprocessors * self.clock

    def least_seconds(self, moved: float, flops: float, operations: float, instructions: float) -> dict[str, float]:
        """By what may bound a time: bytes, products of ``operations`` a second, instructions of all warps."""
        return {
            "memory": moved / self.bandwidth,
            "products": flops / operations,
            "instructions": instructions / self.issue,
        }

    def operations(self, dtype: str, precision: str) -> float:
        """Operations a second of products.

        Args:
            dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            precision: of float32 products, ``"ieee"``, ``"tf32"`` or ``"tf32x3"``, three products for one.
        """
        if dtype != "float32":
            return self.half
        return {"ieee": self.float32, "tf32": self.tf32, "tf32x3": self.tf32 / 3}[precision]


_FIGURES = (  # GB/s; TFLOP/s in float32, tf32 and 16 bits; architecture; multiprocessors; GB; GHz
    ("A100 SXM 80 GB", 2039, 19.5, 156, 312, "sm_80", 108, 80, 1.41),
    ("H100 SXM", 3350, 67, 494, 989, "sm_90", 132, 80, 1.98),
    ("H200 SXM", 4800, 67, 494, 989, "sm_90", 132, 141, 1.98),
    ("RTX 4090", 1008, 82.6, 82.6, 165.2, "sm_89", 128, 24, 2.52),
    ("MI300X", 5300, 163.4, 653.7, 1307.4, "gfx942", 304, 192, 2.1),
)

#: By name.
CARDS = {
    name: Card(name, 1e9 * bandwidth, 1e12 * f32, 1e12 * tf32, 1e12 * half, target, units, memory * 10**9, 1e9 * clock)
    for name, bandwidth, f32, tf32, half, target, units, memory, clock in _FIGURES
}
