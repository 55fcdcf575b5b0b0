"""How launchers walk over maps of pixels: in rows of W pixels, one row an image where memory allows."""

from __future__ import annotations

from typing import NamedTuple

import triton
from torch import Tensor

from msformer_fast.kernels.launch import vector_length


class Rows(NamedTuple):
    """How tiles walk over maps of (B, H, W, clusters): in rows of W pixels, one an image where memory allows."""

    B: int
    H: int
    W: int
    strides: list[tuple[int, ...]]  # of each map, with that H and W
    pixels_inner: bool
    VEC: int

    @classmethod
    def of(cls, *maps: Tensor) -> Rows:
        """Of maps (B, H, W, K) and at last perhaps one without clusters (B, H, W)."""
        B, H, W, K = maps[0].shape
        strides = [m.stride() for m in maps]
        if all(m.stride(1) == W * m.stride(2) or H == 1 for m in maps):
            H, W = 1, H * W
        pixels_inner = W > 1 and strides[0][2] < strides[0][3]
        inner, length = (2, W) if pixels_inner else (3, K)
        wide = [s for s in strides if len(s) == 4]
        outer = [stride for s in wide for axis, stride in enumerate(s) if axis != inner]
        unit = all(s[inner] == 1 for s in wide)
        return cls(B, H, W, strides, pixels_inner, vector_length(maps[0].dtype, length, *outer) if unit else 1)

    def tiles(self, block_p: int) -> int:
        return self.B * self.H * triton.cdiv(self.W, block_p)


def clusters_last(logits: Tensor, cluster_dim: int) -> Tensor:
    """A view (B, H, W, K)."""
    return logits.permute(0, 2, 3, 1) if cluster_dim == 1 else logits
