"""The overlapping 3 x 3 embedding of an image, for one stride or for two at once, and the statistics of its channels.

    y[p, c] = bias_c + sum over r of patch[p, r] weight[c, r]    r = (n, ky, kx), 9 N of them    p = (b, row, column)
    patch[p, r] = image[b, n, row stride + ky - 1, column stride + kx - 1], 0 outside of the image
    dweight[c, r] = sum over p of dy[p, c] patch[p, r]    dbias_c = sum over p of dy[p, c]

A patch is put together where it is read: 9 N numbers of an image that stays in the cache, for C that are written. With
two maps of one image the programs of the second follow those of the first in the same launch.

`b_` value of a block, `p_` pointer, `o_` offsets, `m_` masks, `s_` a sum that a program keeps over its tiles. Arguments
that kernels share:
    p_image (B, N, H, W), any strides (stride_i*)
    p_more_*: of the second map, None without one    more_*: its sizes
    stride: from pixel to pixel of y    rows, columns: of y    programs: that share the pixels of y
    N, C: channels of the image, of y; constexpr, so that rows of y are written with wide accesses
    BLOCK_P, BLOCK_R, BLOCK_C: pixels, entries of a patch and channels at a time
    ACC: dtype of sums    PREC: how float32 operands are multiplied, see ``launch.product_kind``
Sums across programs: partial sums of each program, added in order by a second kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.batch_statistics import add_block, merge_moments, store_moments
from msformer_fast.kernels.blocks import add_dot, load_block, load_vector
from msformer_fast.kernels.launch import accumulator, compile_options, launch, multiprocessors_of, padded
from msformer_fast.kernels.partial_sums import store_gradient, sum_of_partials

# never specialised: a new size runs the code of the old one
SIZES = (
    *("B", "H", "W", "stride", "rows", "columns", "programs"),
    *("more_stride", "more_rows", "more_columns", "more_programs"),
)
_jit = triton.jit(do_not_specialize=SIZES)


@triton.jit
def _pixels_of(tile, rows, columns, BLOCK_P: tl.constexpr):
    """Image, row and column [BLOCK_P] of the pixels of a tile of y; beyond the last one the image is B or more.

    Tile t begins at pixel t BLOCK_P, of which there may be more than 2^31; lines and columns are counted in int32.
    """
    o_column = tile % columns * BLOCK_P + tl.arange(0, BLOCK_P)
    o_line = tile // columns * BLOCK_P + o_column // columns
    return o_line // rows, o_line % rows, o_column % columns


@triton.jit
def _load_patches(p_image, pixel, o_r, sizes, strides, stride, N: tl.constexpr):
    """Entries o_r of the patches of some pixels [BLOCK_P, BLOCK_R], 0 outside of the image and beyond 9 N."""
    o_b, o_row, o_column = pixel
    B, H, W = sizes
    stride_ib, stride_in, stride_ih, stride_iw = strides
    o_n, o_ky, o_kx = o_r // 9, o_r // 3 % 3 - 1, o_r % 3 - 1

    o_y, o_x = (o_row * stride)[:, None] + o_ky[None, :], (o_column * stride)[:, None] + o_kx[None, :]
    m_patch = (o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W) & (o_b < B)[:, None] & (o_r < 9 * N)[None, :]

    o_pixel = o_b.to(tl.int64) * stride_ib + (o_row * stride).to(tl.int64) * stride_ih
    o_pixel += (o_column * stride).to(tl.int64) * stride_iw
    o_entry = o_n.to(tl.int64) * stride_in + o_ky.to(tl.int64) * stride_ih + o_kx.to(tl.int64) * stride_iw
    return tl.load(p_image + o_pixel[:, None] + o_entry[None, :], mask=m_patch, other=0.0)


@_jit
def project_kernel(
    p_image, p_weight, p_bias, p_y, p_more_weight, p_more_bias, p_more_y, p_moments,
    B, H, W, stride_ib, stride_in, stride_ih, stride_iw,
    stride, rows, columns, programs, more_stride, more_rows, more_columns, more_programs,
    N: tl.constexpr, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y, and the moments of this program's pixels of it.

    Grid: programs of the one map, of the other; blocks of channels.
    p_weight (C, 9 N), contiguous    p_bias (C) or None    p_y (B, rows, columns, C), contiguous
    p_moments (programs + more_programs, 4, C), see ``batch_statistics``; the shift is the mean of the first tile
    """
    program = tl.program_id(0)
    if p_more_y is not None:  # noqa: SIM102 - known when compiled, the next one is not
        if program >= programs:
            p_weight, p_bias, p_y = p_more_weight, p_more_bias, p_more_y
            stride, rows, columns = more_stride, more_rows, more_columns
            program, programs = program - programs, more_programs

    sizes, strides = (B, H, W), (stride_ib, stride_in, stride_ih, stride_iw)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    o_r, o_p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    pixels = B.to(tl.int64) * rows * columns
    b_bias = load_vector(p_bias, o_c, C, 0.0, ACC)
    b_w = load_block(p_weight, o_r, o_c * (9 * N), o_r < 9 * N, o_c < C)  # [BLOCK_R, BLOCK_C]

    n = tl.zeros((), ACC)
    b_shift, b_mean, b_m2 = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)

    for tile in range(program, tl.cdiv(pixels, BLOCK_P).to(tl.int32), programs):
        first = tile * tl.full((), BLOCK_P, tl.int64)
        pixel = _pixels_of(tile, rows, columns, BLOCK_P)
        b_y = tl.zeros((BLOCK_P, BLOCK_C), ACC)
        for r in range(0, 9 * N, BLOCK_R):
            if 9 * N > BLOCK_R:
                b_w = load_block(p_weight, r + o_r, o_c * (9 * N), r + o_r < 9 * N, o_c < C)
            b_x = _load_patches(p_image, pixel, r + o_r, sizes, strides, stride, N)  # [BLOCK_P, BLOCK_R]
            b_y = add_dot(b_x, b_w, b_y, PREC, ACC)
        b_out = (b_y + b_bias[None, :]).to(p_y.dtype.element_ty)

        m_p = o_p < pixels - first
        m_y = m_p[:, None] & (o_c < C)[None, :]
        tl.store(p_y + first * C + ((o_p * C)[:, None] + o_c[None, :]), b_out, mask=m_y)

        # Of y as it is stored.
        b_out = tl.where(m_y, b_out.to(ACC), 0.0)
        more = tl.sum(m_p.to(ACC), 0)
        b_shift = tl.where(n > 0, b_shift, tl.sum(b_out, 0) / more)
        b_mean, b_m2 = add_block(n, b_shift, b_mean, b_m2, b_out, m_y, more)
        n += more

    store_moments(p_moments, o_c, C, n, b_shift, b_mean, b_m2, BLOCK_C, ACC)


@_jit
def parameter_gradients_kernel(
    p_image, p_dy, p_more_dy, p_partials,
    B, H, W, stride_ib, stride_in, stride_ih, stride_iw,
    stride, rows, columns, programs, more_stride, more_rows, more_columns, more_programs,
    N: tl.constexpr, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """This program's partial sums of dweight and dbias.

    Grid: programs of the one map, of the other; blocks of channels * blocks of entries, the last fastest.
    p_dy (B, rows, columns, C), contiguous
    p_partials (programs + more_programs, 9 N C + C): dweight (C, 9 N), then dbias (C)
    """
    program = tl.program_id(0)
    if p_more_dy is not None:  # noqa: SIM102 - known when compiled, the next one is not
        if program >= programs:
            p_dy = p_more_dy
            stride, rows, columns = more_stride, more_rows, more_columns
            program, programs = program - programs, more_programs

    sizes, strides = (B, H, W), (stride_ib, stride_in, stride_ih, stride_iw)
    r_blocks: tl.constexpr = (9 * N + BLOCK_R - 1) // BLOCK_R
    o_c = tl.program_id(1) // r_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    o_r = tl.program_id(1) % r_blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    o_p = tl.arange(0, BLOCK_P)
    pixels = B.to(tl.int64) * rows * columns
    s_w, s_b = tl.zeros((BLOCK_R, BLOCK_C), ACC), tl.zeros((BLOCK_C,), ACC)

    for tile in range(program, tl.cdiv(pixels, BLOCK_P).to(tl.int32), programs):
        first = tile * tl.full((), BLOCK_P, tl.int64)
        b_x = _load_patches(p_image, _pixels_of(tile, rows, columns, BLOCK_P), o_r, sizes, strides, stride, N)
        b_dy = load_block(p_dy + first * C, o_p * C, o_c, o_p < pixels - first, o_c < C)  # [BLOCK_P, BLOCK_C]

        # A sum of blocks, each from zero, loses less than one chain of multiply-adds over all of the program's pixels.
        # fma(block, 1, sum): a plain sum the compiler makes the product's start.
        b_w = add_dot(tl.trans(b_x), b_dy, tl.zeros((BLOCK_R, BLOCK_C), ACC), PREC, ACC)
        s_w = tl.fma(b_w, tl.full((BLOCK_R, BLOCK_C), 1.0, ACC), s_w)
        s_b += tl.sum(b_dy.to(ACC), 0)

    p_partials += tl.program_id(0).to(tl.int64) * ((9 * N + 1) * C)
    m_w = (o_r < 9 * N)[:, None] & (o_c < C)[None, :]
    tl.store(p_partials + o_r[:, None] + (o_c * (9 * N))[None, :], s_w, mask=m_w)
    if tl.program_id(1) % r_blocks == 0:
        tl.store(p_partials + 9 * N * C + o_c, s_b, mask=o_c < C)


@_jit
def finish_kernel(
    p_partials, p_dw, p_dbias, p_more_dw, p_more_dbias,
    programs, more_programs,
    N: tl.constexpr, C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dweight (C, 9 N) and dbias (C), or None, from the partial sums. Grid: blocks of both, maps."""
    o, second = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    p_partials += (second * programs).to(tl.int64) * ((9 * N + 1) * C)
    partials = tl.where(second == 0, programs, more_programs)

    b_sum = sum_of_partials(p_partials, o, (9 * N + 1) * C, (9 * N + 1) * C, partials, BLOCK_S, ACC)  # [BLOCK]

    if p_more_dw is not None:  # noqa: SIM102 - known when compiled, the next one is not
        if second == 1:
            p_dw, p_dbias = p_more_dw, p_more_dbias
    store_gradient(p_dw, o, 0, 9 * N * C, b_sum)
    store_gradient(p_dbias, o, 9 * N * C, C, b_sum)


def launch_settings(part: str, N: int, C: int, input_precision: str) -> dict[str, int]:
    """Launch options of a part, "project" or "gradient". Found by compiling ahead of time: nobody has timed them."""
    entries = padded(9 * N)
    if entries > 32:  # several blocks; in the gradient each reads dy again
        entries = 16 if part == "project" else 32
    warps = 8 if part == "gradient" and input_precision == "tf32x3" else 4
    return dict(BLOCK_P=16, BLOCK_R=entries, BLOCK_C=min(padded(C), 128), **compile_options(num_warps=warps))


FINISH = dict(BLOCK_S=64, BLOCK=32, **compile_options(num_warps=4))

#: Programs of a part on a multiprocessor, all blocks of channels and of entries together.
RESIDENT = {"project": 4, "gradient": 2}


class _Launches:
    """The arguments that the kernels share, for one map of an image or for two."""

    def __init__(self, part: str, image: Tensor, C: int, strides: Sequence[int], precision: str) -> None:
        B, N, H, W = image.shape
        self.settings = launch_settings(part, N, C, precision)
        self.c_blocks, self.r_blocks = (
            triton.cdiv(size, self.settings[block]) for size, block in ((C, "BLOCK_C"), (9 * N, "BLOCK_R"))
        )
        self.sizes = [(-(-H // stride), -(-W // stride)) for stride in strides]
        tiles = [triton.cdiv(B * rows * columns, self.settings["BLOCK_P"]) for rows, columns in self.sizes]
        blocks = self.c_blocks * (self.r_blocks if part == "gradient" else 1)
        resident = RESIDENT[part] * multiprocessors_of(image.device) // blocks
        self.programs = [max(1, min(count, resident * count // max(sum(tiles), 1))) for count in tiles]

        stride_ib, stride_in, stride_ih, stride_iw = image.stride()
        self.shared: dict[str, Any] = dict(
            p_image=image, B=B, H=H, W=W, N=N, C=C, PREC=precision, ACC=accumulator(image.dtype),
            stride_ib=stride_ib, stride_in=stride_in, stride_ih=stride_ih, stride_iw=stride_iw,
        )  # fmt: skip
        for prefix, stride, (rows, columns), programs in zip(
            ("", "more_"), strides, self.sizes, self.programs, strict=False
        ):
            sizes = dict(stride=stride, rows=rows, columns=columns, programs=programs)
            self.shared |= {f"{prefix}{name}": size for name, size in sizes.items()}
        if len(strides) == 1:
            self.shared |= dict.fromkeys(("more_stride", "more_rows", "more_columns", "more_programs"), 0)


def overlap_embedding_forward(
    image: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    strides: Sequence[int],
    input_precision: str,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """One map or two, y (B, ceil(H / stride), ceil(W / stride), C), and mean and biased variance (maps, C) of all.

    Args:
        image: (B, N, H, W), any strides.
        weights, biases, strides: of each map, (C, N, 3, 3), (C) or ``None`` for none of them; one dtype.
        input_precision: of float32 products.
    """
    C, dtype = weights[0].shape[0], sum_dtype(image.dtype)
    call = _Launches("project", image, C, strides, input_precision)
    maps = [image.new_empty((image.shape[0], *size, C)) for size in call.sizes]
    moments = image.new_empty((sum(call.programs), 4, C), dtype=dtype)
    mean, var = (image.new_empty((len(maps), C), dtype=dtype) for _ in range(2))
    launch(
        project_kernel, (sum(call.programs), call.c_blocks), call.settings, call.shared,
        _two("weight", weights), _two("bias", biases), _two("y", maps), p_moments=moments,
    )  # fmt: skip
    merge_moments(moments, mean, var, sum(call.programs[1:]))
    return maps, mean, var


def overlap_embedding_backward(
    grads: Sequence[Tensor],
    image: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    strides: Sequence[int],
    input_precision: str,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Gradients of the weights (C, N, 3, 3) and of the biases (C), ``None`` for one that is not there.

    Args:
        grads: of each y; other strides than contiguous cost a copy.
        image, weights, biases, strides, input_precision: as they went into the forward.
    """
    C = weights[0].shape[0]
    call = _Launches("gradient", image, C, strides, input_precision)
    size = weights[0].numel() + C
    partials = image.new_empty((sum(call.programs), size), dtype=sum_dtype(image.dtype))
    d_weights = [weight.new_empty(weight.shape) for weight in weights]
    d_biases = [None if bias is None else bias.new_empty(C) for bias in biases]
    launch(
        parameter_gradients_kernel, (sum(call.programs), call.c_blocks * call.r_blocks), call.settings, call.shared,
        _two("dy", grads), p_partials=partials,
    )  # fmt: skip
    launch(
        finish_kernel, (triton.cdiv(size, FINISH["BLOCK"]), len(weights)), FINISH, call.shared,
        _two("dw", d_weights), _two("dbias", d_biases), p_partials=partials,
    )  # fmt: skip
    return d_weights, d_biases


def _two(name: str, tensors: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
    """The arguments p_<name> and p_more_<name>, contiguous; ``None`` for one that is not there."""
    found = [None if tensor is None else tensor.contiguous() for tensor in (*tensors, None)]
    return {f"p_{name}": found[0], f"p_more_{name}": found[1]}
