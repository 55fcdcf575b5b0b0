"""How the clustering losses' kernels walk over maps (B, H, W, channels): in tiles of a row, some channels at a time.

A map whose rows follow one another in memory is one long row, so that a tile does not end where an image row does.

A tile is (image, row, columns [BLOCK_P], mask [BLOCK_P]); `strides` are those of a map along image, row, column and
channel. Here clusters are channels too: logits are a map of K channels.
`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks. Arguments that kernels share:
    stride_*, out_*: of a map and of its gradient, in elements, along image (b), row (h), column (w) and channel (k)
    grad_*: of the gradient of each pixel's loss (B, H, W), 0 for one number that serves all pixels
    H, W: rows of an image, pixels of a row    BLOCK_P: pixels of a tile
    PIXELS_INNER: pixels, not channels, are neighbours in memory (B, channels, H, W)
    VEC: elements that one access may take: a power of 2 that divides the length of the axis whose elements are
        neighbours, and every stride but the one of that axis
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.kernels.launch import vector_length

# VEC alone says what is divisible: sizes differ from image to image, and each class of them would be compiled again.
STRIDES = (
    *("stride_b", "stride_h", "stride_w", "stride_k"),
    *("grad_b", "grad_h", "grad_w"),
    *("out_b", "out_h", "out_w", "out_k"),
)


@triton.jit
def multiple_of(value, VEC: tl.constexpr):
    """The value, which is a multiple of VEC, in a form from which the compiler sees that it is one."""
    return value // VEC * VEC


@triton.jit
def row_length(W, VEC: tl.constexpr, PIXELS_INNER: tl.constexpr):
    """Pixels of a row, seen to be a multiple of VEC where pixels are neighbours."""
    return multiple_of(W, VEC) if PIXELS_INNER else W


@triton.jit
def tile_of(index, H, W, BLOCK_P: tl.constexpr):
    """A tile by its number: image and row (int64), columns (int64) and validity [BLOCK_P] of its pixels."""
    tiles = tl.cdiv(W, BLOCK_P)

    # int64: what they are multiplied with may lead beyond 2^31 elements.
    o_w = (index % tiles).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = (index // tiles).to(tl.int64)
    return row // H, row % H, o_w, o_w < W


@triton.jit
def pixels_of(tile, H, W):
    """Offsets [BLOCK_P] of a tile's pixels in a contiguous (B, H, W)."""
    b, h, o_w, _ = tile
    return (b * H + h) * W + o_w


@triton.jit
def offsets_of(tile, strides, o_k, VEC: tl.constexpr, PIXELS_INNER: tl.constexpr):
    """Offsets [BLOCK_P, channels] of channels o_k of a tile's pixels."""
    b, h, o_w, _ = tile
    stride_b, stride_h, stride_w, stride_k = strides

    # All strides are multiples of VEC but the 1 of the axis whose elements are neighbours.
    if PIXELS_INNER:
        stride_k = multiple_of(stride_k, VEC)
    else:
        stride_w = multiple_of(stride_w, VEC)

    o_row = b * multiple_of(stride_b, VEC) + h * multiple_of(stride_h, VEC)
    return o_row + (o_w * stride_w)[:, None] + (o_k.to(tl.int64) * stride_k)[None, :]


@triton.jit
def inside(tile, o_k, K, VEC: tl.constexpr, PIXELS_INNER: tl.constexpr):
    """Which of a tile's values exist [BLOCK_P, channels], in a map of K channels."""
    _, _, _, m_w = tile

    # An access is only as wide as its mask is seen to stay the same: here VEC elements.
    return m_w[:, None] & (o_k < (K if PIXELS_INNER else multiple_of(K, VEC)))[None, :]


@triton.jit
def load_tile(p_map, tile, strides, o_k, K, VEC: tl.constexpr, PIXELS_INNER: tl.constexpr, OTHER: tl.constexpr):
    """Channels o_k of a tile's pixels [BLOCK_P, channels], OTHER outside the map."""
    p_tile = p_map + offsets_of(tile, strides, o_k, VEC, PIXELS_INNER)
    return tl.load(p_tile, mask=inside(tile, o_k, K, VEC, PIXELS_INNER), other=OTHER)


@triton.jit
def store_tile(p_map, tile, strides, o_k, K, b, VEC: tl.constexpr, PIXELS_INNER: tl.constexpr):
    """A block [BLOCK_P, channels] to channels o_k of a tile's pixels, in the dtype there."""
    p_tile = p_map + offsets_of(tile, strides, o_k, VEC, PIXELS_INNER)
    tl.store(p_tile, b.to(p_map.dtype.element_ty), mask=inside(tile, o_k, K, VEC, PIXELS_INNER))


class Rows(NamedTuple):
    """Maps as rows of W pixels, H rows an image: one where memory allows."""

    B: int
    H: int
    W: int
    pixels_inner: bool
    arguments: dict[str, Any]  # of the kernels: H, W, VEC, PIXELS_INNER, and the strides of every map

    @classmethod
    def of(cls, **maps: Tensor) -> Rows:
        """Of maps by what their strides are called: the first (B, H, W, channels), others too, or (B, H, W)."""
        first, strides = next(iter(maps.values())), {name: m.stride() for name, m in maps.items()}
        B, H, W, K = first.shape
        if H == 1 or all(s[1] == W * s[2] for s in strides.values()):
            H, W = 1, H * W

        pixels_inner = W > 1 and first.stride(2) < first.stride(3)
        inner, length = (2, W) if pixels_inner else (3, K)
        blocks = [s for s in strides.values() if len(s) == 4]
        outer = [stride for s in blocks for axis, stride in enumerate(s) if axis != inner]
        vec = vector_length(first.dtype, length, *outer) if all(s[inner] == 1 for s in blocks) else 1

        named = {f"{name}_{'bhwk'[axis]}": stride for name, s in strides.items() for axis, stride in enumerate(s)}
        return cls(B, H, W, pixels_inner, dict(named, H=H, W=W, VEC=vec, PIXELS_INNER=pixels_inner))

    def tiles(self, block_p: int) -> int:
        """Tiles of block_p pixels."""
        return self.B * self.H * triton.cdiv(self.W, block_p)
