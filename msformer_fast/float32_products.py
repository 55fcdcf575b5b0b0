"""How float32 products are computed: what the user chose, of the whole process."""

from __future__ import annotations

import torch

#: Whether fused multiply-adds alone multiply float32 (:func:`msformer_fast.ops.use_ieee_products`).
ieee_everywhere = False


def parts_of_16_bits() -> int:
    """In how many parts the matrix unit of a CPU takes an operand: 3 keep float32's digits, 2 those of tf32 and more,
    as :func:`torch.get_float32_matmul_precision` asks; 0 where it is not to be used."""
    if ieee_everywhere:
        return 0
    return 3 if torch.get_float32_matmul_precision() == "highest" else 2
