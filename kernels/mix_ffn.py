"""Launchers of mix_ffn, and its launch table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.kernels.batch_statistics import merge_moments
from msformer_fast.kernels.launch import (
    accumulator,
    choose,
    compile_options,
    launch,
    multiprocessors_of,
    padded,
    product_kind,
    target_of,
)
from msformer_fast.kernels.mix_ffn_backward_kernels import (
    finish_gradients_kernel,
    hidden_gradient_kernel,
    product_gradient_kernel,
    token_gradient_kernel,
)
from msformer_fast.kernels.mix_ffn_kernels import contract_kernel, expand_kernel
from msformer_fast.limits import MIX_FFN_CHANNELS, MIX_FFN_HIDDEN, MIX_FFN_ROW

if TYPE_CHECKING:
    from msformer_fast.identities.mix_ffn import Options, Parameters

BUFFER_BYTES = 24 << 20  # of a row buffer, about
LEAST_ROWS = 16  # of a strip
HALO = 2  # rows that a row buffer holds beyond a strip
SCRATCH_BYTES = 32 << 20  # of all programs of a kernel, about: it should stay in the card's last cache
# Smallest eps that a kernel is given. Pixels of a tile beyond the image are 0 and have no variance: without eps their
# rstd is inf, 0 * inf is NaN, and a product over pixels spreads it. No variance above 1e-31 changes.
SMALLEST_EPS = torch.finfo(torch.float32).tiny

FINISH = dict(BLOCK_S=32, BLOCK=128, **compile_options(num_warps=8))

INTERPRETER = (16, 16, 512, 0, 4, 1)  # few and large blocks, for an operation costs the same whatever its size

# (kernel, kind of product): {(targets, largest padded C): (TILE_H, TILE_W, BLOCK_D, BLOCK_K, num_warps, num_stages)};
# "" is any target. BLOCK_K is read for "expand" and "hidden", where 0 is all channels.
# Rows before 3.8 stand where those of other versions would spill.
# Found by compiling ahead of time: no spill. Not timed on a card.
TABLE = {
    ("expand", "ieee"): {("", 256): (8, 8, 64, 16, 8, 1), ("sm_90", 256): (8, 8, 64, 32, 8, 1)},
    ("expand", "tf32"): {
        ("", 128): (8, 8, 32, 0, 4, 1),
        ("", 256): (8, 8, 32, 64, 4, 1),
        ("sm_80 sm_120", 256): (8, 8, 32, 0, 4, 1),
        ("sm_120", 64): (8, 8, 64, 64, 4, 1),
    },
    ("expand", "tf32x3"): {
        ("", 256): (8, 8, 32, 32, 8, 1),
        ("sm_90", 128): (8, 8, 32, 0, 4, 1),
        ("sm_90", 256): (8, 8, 32, 64, 4, 1),
    },
    ("expand", "half"): {
        ("", 128): (8, 8, 64, 0, 4, 1),
        ("", 256): (8, 8, 64, 0, 4, 1),
        ("sm_100 sm_120", 256): (8, 8, 32, 0, 4, 1),
        ("sm_80", 128): (8, 8, 64, 0, 8, 1),
    },
    ("contract", "ieee"): {
        ("", 64): (4, 4, 32, 0, 8, 1),
        ("", 128): (4, 8, 32, 0, 8, 1),
        ("", 256): (4, 4, 32, 0, 8, 1),
        ("sm_86 sm_89", 64): (8, 8, 16, 0, 8, 1),
        ("sm_90 gfx942", 128): (8, 8, 16, 0, 8, 1),
        ("sm_86 sm_89", 256): (4, 4, 16, 0, 8, 1),
        ("gfx942", 64): (4, 8, 32, 0, 8, 1),
        ("sm_100", 128): (2, 16, 32, 0, 8, 1),
        ("sm_90 before 3.8", 64): (8, 8, 16, 0, 8, 1),
        ("sm_90 before 3.8", 128): (4, 8, 32, 0, 8, 1),
        ("sm_90", 64): (8, 16, 16, 0, 8, 1),
        ("sm_100 sm_120", 64): (8, 8, 32, 0, 4, 1),
    },
    ("contract", "tf32"): {
        ("", 128): (8, 8, 32, 0, 8, 1),
        ("", 256): (4, 8, 32, 0, 8, 1),
        ("sm_100", 64): (8, 16, 16, 0, 8, 1),
    },
    ("contract", "tf32x3"): {
        ("", 128): (8, 8, 32, 0, 8, 1),
        ("", 256): (4, 8, 32, 0, 8, 1),
        ("sm_100", 128): (4, 8, 32, 0, 8, 1),
    },
    ("contract", "half"): {
        ("", 64): (8, 8, 64, 0, 8, 1),
        ("", 256): (8, 8, 32, 0, 8, 1),
        ("sm_80 sm_90 sm_120 gfx942", 64): (8, 8, 32, 0, 8, 1),
        ("sm_120", 128): (8, 8, 64, 0, 8, 1),
        ("sm_80", 128): (4, 8, 32, 0, 8, 1),
        ("sm_100", 64): (8, 8, 16, 0, 8, 1),
        ("sm_100 sm_120", 256): (4, 8, 32, 0, 4, 1),
        ("sm_90", 128): (8, 8, 32, 0, 4, 1),
        ("sm_90 before 3.8", 128): (8, 8, 32, 0, 8, 1),
        ("sm_86 sm_89 sm_100", 128): (8, 16, 16, 0, 8, 1),
    },
    ("hidden", "ieee"): {
        ("", 256): (8, 8, 32, 32, 8, 1),
        ("sm_80", 128): (8, 8, 32, 16, 8, 1),
        ("sm_90", 256): (4, 8, 32, 32, 4, 1),
        ("sm_90 before 3.8", 256): (8, 8, 32, 16, 8, 1),
        ("sm_90 sm_100", 64): (8, 8, 16, 0, 8, 1),
        ("sm_90", 128): (8, 8, 32, 32, 8, 1),
        ("sm_100", 128): (8, 8, 16, 32, 8, 1),
    },
    ("hidden", "tf32"): {
        ("", 256): (4, 8, 32, 32, 8, 1),
        ("sm_80", 64): (8, 8, 32, 32, 8, 1),
        ("sm_80", 128): (4, 8, 32, 32, 8, 1),
        ("sm_86 sm_89", 64): (8, 8, 32, 16, 8, 1),
        ("sm_120", 128): (8, 8, 32, 16, 8, 1),
        ("sm_80 sm_90 gfx942", 256): (8, 8, 32, 32, 8, 1),
        ("sm_90", 128): (8, 8, 16, 0, 4, 1),
    },
    ("hidden", "tf32x3"): {
        ("", 256): (4, 8, 32, 32, 8, 1),
        ("sm_90 before 3.8", 128): (8, 8, 32, 32, 8, 1),
        ("sm_90", 128): (8, 8, 16, 64, 4, 1),
        ("sm_80 sm_90", 256): (8, 8, 16, 32, 8, 1),
        ("sm_80", 128): (8, 8, 16, 32, 4, 1),
    },
    ("hidden", "half"): {
        ("", 256): (8, 8, 32, 32, 8, 1),
        ("sm_86 sm_89", 128): (8, 8, 32, 32, 8, 1),
        ("sm_86 sm_89 sm_120", 256): (4, 8, 32, 32, 8, 1),
        ("sm_100", 128): (4, 8, 32, 32, 8, 1),
        ("sm_80 sm_90", 128): (8, 8, 16, 0, 4, 1),
        ("sm_90 before 3.8", 128): (8, 8, 16, 0, 4, 1),
    },
    ("token", "ieee"): {
        ("", 256): (4, 8, 32, 0, 8, 1),
        ("sm_80 sm_100", 64): (8, 8, 16, 0, 8, 1),
        ("sm_80", 128): (4, 8, 32, 0, 4, 1),
        ("sm_86 sm_89 sm_90 sm_100 sm_120", 128): (8, 8, 16, 0, 8, 1),
        ("gfx942", 256): (4, 8, 32, 0, 4, 1),
        ("sm_120", 64): (4, 8, 32, 0, 4, 1),
        ("sm_90 before 3.8", 128): (4, 8, 16, 0, 8, 1),
    },
    ("token", "tf32"): {
        ("", 128): (8, 8, 32, 0, 8, 1),
        ("", 256): (4, 8, 32, 0, 8, 1),
        ("sm_90 sm_120 gfx942", 128): (8, 8, 16, 0, 8, 1),
        ("sm_120", 64): (8, 8, 32, 0, 8, 1),
    },
    ("token", "tf32x3"): {
        ("", 128): (8, 8, 32, 0, 8, 1),
        ("", 256): (4, 8, 32, 0, 8, 1),
        ("sm_90", 128): (8, 8, 16, 0, 8, 1),
        ("sm_100", 128): (4, 8, 32, 0, 8, 1),
    },
    ("token", "half"): {
        ("", 128): (8, 8, 32, 0, 8, 1),
        ("", 256): (4, 8, 32, 0, 8, 1),
        ("sm_120", 64): (4, 8, 32, 0, 8, 1),
        ("sm_86 sm_89", 128): (8, 8, 16, 0, 8, 1),
    },
    ("product", "ieee"): {
        ("", 128): (4, 8, 16, 0, 8, 1),
        ("", 256): (4, 4, 16, 0, 8, 1),
        ("sm_80", 256): (4, 8, 16, 0, 8, 1),
        ("sm_100", 256): (1, 16, 16, 0, 8, 1),
        ("sm_90", 128): (2, 8, 32, 0, 8, 1),
    },
    ("product", "tf32"): {
        ("", 128): (4, 8, 32, 0, 8, 1),
        ("", 256): (4, 8, 16, 0, 8, 1),
        ("sm_80 sm_90", 128): (2, 8, 64, 0, 8, 1),
        ("sm_100 gfx942", 64): (4, 8, 32, 0, 8, 1),
        ("gfx942", 128): (4, 8, 16, 0, 8, 1),
        ("sm_100 sm_120", 128): (4, 4, 32, 0, 8, 1),
        ("sm_100", 256): (4, 4, 32, 0, 8, 1),
    },
    ("product", "tf32x3"): {
        ("", 128): (2, 8, 32, 0, 8, 1),
        ("", 256): (4, 4, 16, 0, 8, 1),
        ("sm_90", 128): (4, 4, 64, 0, 8, 1),
    },
    ("product", "half"): {
        ("", 128): (4, 8, 32, 0, 8, 1),
        ("", 256): (4, 8, 16, 0, 8, 1),
        ("sm_80", 256): (4, 8, 32, 0, 8, 1),
        ("gfx942", 64): (4, 8, 32, 0, 8, 1),
        ("gfx942", 128): (4, 8, 16, 0, 8, 1),
        ("sm_100 sm_120", 128): (4, 4, 32, 0, 8, 1),
        ("sm_80 sm_90", 128): (2, 8, 64, 0, 8, 1),
        ("sm_86 sm_89", 256): (4, 4, 16, 0, 8, 1),
    },
}


# Above 1024 hidden channels the sums that "hidden" keeps in registers leave less room for a tile on these.
MANY_CHANNELS = {
    ("ieee", "sm_80"): (4, 8, 32, 16, 8, 1),
    ("ieee", "sm_90"): (8, 8, 32, 16, 8, 1),
    ("tf32", "sm_120"): (8, 8, 16, 32, 8, 1),
}


def launch_settings(
    kernel: str, C: int, D: int, dtype: torch.dtype, input_precision: str = "ieee", target: str | None = None
) -> dict[str, int]:
    """Launch options of a kernel: "expand", "contract", "hidden", "token", "product". A card that no row names gets
    those of "".

    Args:
        C, D: channels, hidden channels.
        dtype: of the operands of products.
        input_precision: of float32 products.
        target: name of the card; None is the interpreter.
    """
    if C > MIX_FFN_CHANNELS or D > MIX_FFN_HIDDEN:
        raise ValueError(f"mix_ffn: C = {C}, D = {D}; at most {MIX_FFN_CHANNELS} and {MIX_FFN_HIDDEN} are supported")
    kind = product_kind(dtype, input_precision)
    row = INTERPRETER if target is None else choose(TABLE[kernel, kind], padded(C), target)
    if kernel == "hidden" and padded(D) > 1024 and (kind, target) in MANY_CHANNELS:
        row = MANY_CHANNELS[kind, target or ""]
    height, width, block_d, block_k, warps, stages = row

    settings = dict(TILE_H=height, TILE_W=width, BLOCK_D=min(block_d, padded(D)), **compile_options(warps, stages))
    if kernel != "hidden":
        settings["BLOCK_C"] = padded(C)
    else:
        settings["BLOCKS"] = triton.next_power_of_2(triton.cdiv(D, settings["BLOCK_D"]))
    if kernel in ("expand", "hidden"):
        settings["BLOCK_K"] = min(block_k or padded(C), padded(C))
    return settings


def strip_rows(batch: int, height: int, width: int, hidden: int, itemsize: int) -> int:
    """Rows of a strip so that a row buffer holds about ``BUFFER_BYTES``; all of them where the map is small."""
    rows = max(BUFFER_BYTES // max(batch * width * hidden * itemsize, 1) // 8 * 8, LEAST_ROWS)  # whole tiles of 8 rows
    # With its halo a buffer would hold all rows anyway.
    return max(height, 1) if rows + HALO >= height else rows


def programs_of(kernel: str, tiles: int, blocks: int, multiprocessors: int, scratch: int) -> int:
    """Programs that share the tiles: 4 a multiprocessor, or fewer where each has much scratch memory, in bytes. For
    "product", whose partial sums are as large as both weights, 1, counting the programs of all blocks of channels."""
    if kernel == "product":
        return min(tiles, max(1, multiprocessors // blocks))
    fit = SCRATCH_BYTES // (scratch * multiprocessors) if scratch else 4
    return min(tiles, multiprocessors * min(max(fit, 1), 4))


def output_dtype(t: Tensor, p: Parameters, options: Options) -> torch.dtype:
    """That of y: of the products, or of the sum with t, which under autocast keeps its own."""
    product = p.fc1_weight.dtype
    return torch.promote_types(t.dtype, product) if options.residual else product


class _Call:
    """What the launches of a call share: sizes, strips of rows, parameters, and which programs leave partial sums.

    Args:
        strip: rows that are worked on at a time.
    """

    def __init__(self, t: Tensor, p: Parameters, options: Options, precision: str, strip: int) -> None:
        self.B, self.H, self.W, self.C = t.shape
        self.D, self.dtype, self.device = p.fc1_weight.shape[0], p.fc1_weight.dtype, t.device
        if self.W * self.D > MIX_FFN_ROW:
            raise ValueError(f"mix_ffn: W = {self.W}, D = {self.D}; at most W D = {MIX_FFN_ROW} is supported")
        self.strip, self.precision = min(strip, max(self.H, 1)), precision
        self.rows = self.H if self.strip == self.H else min(self.strip + HALO, self.H)  # of a row buffer
        self.sums, self.target = sum_dtype(t.dtype), target_of(t.device)
        self.multiprocessors = multiprocessors_of(t.device)
        flags = {name.upper(): flag for name, flag in options._asdict().items() if name != "eps"}
        self.shared = dict(
            **flags, eps=max(options.eps, SMALLEST_EPS), pixels=self.B * self.H * self.W, H=self.H, W=self.W,
            R=None if self.rows == self.H else self.rows, c_end=self.C,
            C=self.C, D=self.D, PAD_D=padded(self.D), PREC=precision, ACC=accumulator(t.dtype),
            p_gamma=p.norm_weight, p_beta=p.norm_bias, p_w1=p.fc1_weight, p_bias1=p.fc1_bias,
            p_conv=p.depthwise_weight, p_bias_conv=p.depthwise_bias, p_inner_gamma=p.inner_norm_weight,
            p_inner_beta=p.inner_norm_bias, p_w2=p.fc2_weight, p_bias2=p.fc2_bias,
        )  # fmt: skip

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.sums, device=self.device)

    def row_buffer(self) -> Tensor:
        return torch.empty((self.B, self.rows, self.W, self.D), dtype=self.dtype, device=self.device)

    def strips(self, ahead: int) -> Iterator[tuple[int, int]]:
        """Rows [begin, end) of every strip, ``ahead`` rows further down; the first begins at 0, the last ends at H."""
        for begin in range(0, self.H, self.strip):
            yield min(begin + ahead, self.H) if begin else 0, min(begin + self.strip + ahead, self.H)

    def settings(self, kernel: str) -> dict[str, int]:
        return launch_settings(kernel, self.C, self.D, self.dtype, self.precision, self.target)

    def tiles(self, kernel: str, rows: tuple[int, int]) -> tuple[int, int, int]:
        """Tiles of these rows of all images, down an image, and across."""
        settings = self.settings(kernel)
        down, across = triton.cdiv(rows[1] - rows[0], settings["TILE_H"]), triton.cdiv(self.W, settings["TILE_W"])
        return self.B * down * across, down, across

    def programs(self, kernel: str, ahead: int = 0) -> int:
        """Programs of a kernel that leave partial sums: those that share the tiles of the largest strip."""
        most = max((self.tiles(kernel, rows)[0] for rows in self.strips(ahead)), default=0)
        return programs_of(kernel, most, self.blocks(kernel), self.multiprocessors, self.scratch_bytes(kernel))

    def scratch_bytes(self, kernel: str) -> int:
        """Of a program: a tile's v or n, where there is the inner norm."""
        if kernel not in ("contract", "hidden") or not self.shared["INNER_NORM"]:
            return 0
        settings = self.settings(kernel)
        pixels = settings["TILE_H"] * settings["TILE_W"]
        return pixels * self.blocks(kernel) * settings["BLOCK_D"] * self.dtype.itemsize

    def scratch(self, kernel: str, programs: int) -> Tensor | None:
        size = programs * self.scratch_bytes(kernel) // self.dtype.itemsize
        return torch.empty(size, dtype=self.dtype, device=self.device) if size else None

    def blocks(self, kernel: str) -> int:
        """Blocks of hidden channels."""
        return triton.cdiv(self.D, self.settings(kernel)["BLOCK_D"])

    def __call__(
        self, name: str, kernel: Any, rows: tuple[int, int], programs: int | None, **tensors: Tensor | None
    ) -> None:
        """Run a kernel on some rows. programs: that share the tiles, or None for one a tile."""
        tiles, down, across = self.tiles(name, rows)
        if not tiles:
            return
        share = tiles if programs is None else programs
        grid = (self.blocks(name), share) if name == "product" else (share,)
        of_rows = dict(
            row_begin=rows[0], row_end=rows[1], tiles_y=down, tiles_x=across, tiles=tiles,
            is_first_strip=int(rows[0] == 0),
        )  # fmt: skip
        launch(kernel, grid, self.settings(name), self.shared, of_rows, **tensors)


def _contiguous(p: Parameters) -> Parameters:
    return type(p)._make(None if value is None else value.contiguous() for value in p)


def mix_ffn_forward(
    t: Tensor,
    p: Parameters,
    options: Options,
    input_precision: str = "ieee",
    keep: bool = False,
    statistics: bool = False,
    strip: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y; the hidden activations u if kept; the inner norm's mean and rstd; the hidden channels' vectors (12, padded D),
    see ``mix_ffn_kernels.store_vectors``; mean and biased variance of y.

    What is not there is an empty tensor (0).

    Args:
        t: (B, H, W, C), any strides; of the weights' dtype, or of another under autocast.
        p: of the op; weights and biases of products in one dtype, that u has too.
        options: of the op.
        input_precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        keep: the hidden activations (B, H, W, D), for the backward. Then there is one strip.
        statistics: gather mean and variance of every channel of y as it is stored, (2, C), float32 or better.
        strip: rows that share a row buffer of hidden activations; None for all.
    """
    t, p = t.contiguous(), _contiguous(p)
    call = _Call(t, p, options, input_precision, max(t.shape[1], 1) if keep or strip is None else strip)
    y = torch.empty(t.shape, dtype=output_dtype(t, p, options), device=t.device)
    u = call.row_buffer()
    inner = call.new(2, call.B, call.H, call.W) if options.inner_norm else None
    vectors, programs = call.new(12, padded(call.D)), call.programs("contract")
    scratch = call.scratch("contract", programs)
    moments = call.new(programs, 4, call.C) if statistics else None

    # contract reads u one row above and one below its own: expand runs 1 row ahead, a buffer holds strip + 2 rows.
    for expanded, rows in zip(call.strips(1), call.strips(0), strict=True):
        call("expand", expand_kernel, expanded, None, p_t=t, p_u=u, p_vectors=None if expanded[0] else vectors)
        call(
            "contract", contract_kernel, rows, programs,
            p_t=t, p_u=u, p_vectors=vectors, p_y=y, p_inner=inner, p_scratch=scratch, p_moments=moments,
        )  # fmt: skip

    mean_var = call.new(0)
    if moments is not None:
        mean_var = call.new(2, call.C)
        merge_moments(moments, *mean_var)
    return y, (u if keep else u.new_empty(0)), (call.new(0) if inner is None else inner), vectors, mean_var


def mix_ffn_backward(
    dy: Tensor,
    t: Tensor,
    p: Parameters,
    options: Options,
    u: Tensor,
    inner: Tensor,
    vectors: Tensor,
    input_precision: str = "ieee",
    strip: int | None = None,
) -> tuple[Tensor, Parameters]:
    """Gradients of t and of every parameter, in their dtypes, contiguous.

    Args:
        dy: (B, H, W, C), of y's dtype, any strides.
        t, p, options, input_precision: as they went into the forward.
        u, inner, vectors: as they came out of it; an empty u is recomputed, in row buffers for strips.
        strip: rows that share a row buffer of u and one of its gradient; None for all.
    """
    t, dy, p = t.contiguous(), dy.contiguous(), _contiguous(p)
    kept = u.numel() > 0
    call = _Call(t, p, options, input_precision, max(t.shape[1], 1) if kept or strip is None else strip)
    u, dt = u if kept else call.row_buffer(), torch.empty_like(t)
    dv, a = call.row_buffer(), call.row_buffer()
    inner_stats = inner if options.inner_norm else None
    tokens = call.new(2, call.B, call.H, call.W) if options.norm else None

    # Partial sums of each kernel, where there is a parameter that wants them.
    programs = {kernel: call.programs(kernel, ahead) for kernel, ahead in (("product", 0), ("hidden", 1), ("token", 0))}
    scratch = call.scratch("hidden", programs["hidden"])
    product_sums = call.new(programs["product"], 2 * call.D * call.C + 11 * call.D)
    norm1, norm2 = (p.norm_weight, p.norm_bias), (p.inner_norm_weight, p.inner_norm_bias)
    hidden_sums = call.new(programs["hidden"], 2 * call.D) if any(v is not None for v in norm2) else None
    token_sums = call.new(programs["token"], 3 * call.C) if any(v is not None for v in (*norm1, p.fc2_bias)) else None

    # token and product read dv, and hidden reads u, one row above and below: dv runs 1 row ahead, u runs 2, and a
    # buffer holds strip + 2 rows.
    for expanded, widened, rows in zip(call.strips(2), call.strips(1), call.strips(0), strict=True):
        if not kept:
            call("expand", expand_kernel, expanded, None, p_t=t, p_u=u, p_vectors=None)
        call(
            "hidden", hidden_gradient_kernel, widened, programs["hidden"],
            p_dy=dy, p_u=u, p_vectors=vectors, p_inner=inner_stats, p_dv=dv, p_a=a, p_scratch=scratch,
            p_partials=hidden_sums,
        )  # fmt: skip
        call(
            "token", token_gradient_kernel, rows, programs["token"],
            p_dy=dy, p_t=t, p_dv=dv, p_vectors=vectors, p_dt=dt, p_tokens=tokens, p_partials=token_sums,
        )  # fmt: skip
        call(
            "product", product_gradient_kernel, rows, programs["product"],
            p_dy=dy, p_t=t, p_u=u, p_dv=dv, p_a=a, p_vectors=vectors, p_tokens=tokens, p_partials=product_sums,
        )  # fmt: skip

    gradients = type(p)._make(None if v is None else torch.empty_like(v) for v in p)
    sums = [part for part in (product_sums, hidden_sums, token_sums) if part is not None]
    launch(
        finish_gradients_kernel, (sum(triton.cdiv(part.shape[1], FINISH["BLOCK"]) for part in sums),), FINISH,
        p_product_partials=product_sums, p_hidden_partials=hidden_sums, p_token_partials=token_sums,
        p_dw1=gradients.fc1_weight, p_dbias1=gradients.fc1_bias,
        p_dw2=gradients.fc2_weight, p_dbias2=gradients.fc2_bias,
        p_dconv=gradients.depthwise_weight, p_dbias_conv=gradients.depthwise_bias,
        p_dgamma=gradients.norm_weight, p_dbeta=gradients.norm_bias,
        p_dinner_gamma=gradients.inner_norm_weight, p_dinner_beta=gradients.inner_norm_bias,
        **{f"{name}_programs": count for name, count in programs.items()},
        C=call.C, D=call.D, ACC=accumulator(t.dtype),
    )  # fmt: skip
    return dt, gradients
