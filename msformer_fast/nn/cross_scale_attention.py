"""Windowed attention between two maps of different scale, as modules."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.errors import InputError
from msformer_fast.ops.shapes import Shapes
from msformer_fast.windows import ratio_of, windows_of

#: A number for both axes, or one each (height, width).
Size = int | tuple[int, int]


class CrossScaleAttention(nn.Module):
    r"""``x + proj(attention(q(LN(x)), kv(LN(context))))``: each window of ``x`` asks the same area of another map.

    What one window of 8 pixels of ``x`` asks at ratio 1/2: the same area (4 x 4 pixels), and with a halo of 1 those
    marked ``o`` too, where there are any::

        x, one sign for 2 x 2 pixels          context, one sign a pixel
          . . . . # # # # . . . .               . . . o # # # # o . . .
          . . . . # # # # . . . .               . . . o # # # # o . . .
          . . . . # # # # . . . .     asks      . . . o # # # # o . . .
          . . . . # # # # . . . .               . . . o # # # # o . . .
          . . . . . . . . . . . .               . . . o o o o o o . . .
          . . . . . . . . . . . .               . . . . . . . . . . . .

    The position bias is of Swin's kind (Liu et al., ICCV 2021), over two grids: one entry for each distance that a
    query and a key of a window can have. The output projection starts at zero, so that the module starts as the
    identity (as in ControlNet, Zhang et al., ICCV 2023): put into a network, trained or not, it changes nothing before
    the first step. The table is drawn as Swin's (truncated normal, 0.02), everything else as PyTorch does.

    Args:
        channels: C, of ``x``; divisible by ``num_heads``.
        context_channels: Cc, of the context; default C.
        window: side of a window in pixels of ``x``; its area must be a whole number of context pixels.
        num_heads: of C / num_heads channels each.
        ratio: pixels of the context a pixel of ``x``, per axis: a fraction or (p, q) for p / q.
        halo: pixels of the context that a window sees beyond its area, on each side.
        shift: of the windows, in pixels of ``x``, as Swin's; on an axis that one window covers there is none.
        bias: a relative position bias.
        qkv_bias: of the projections of queries, keys and values.
        backend: see :func:`msformer_fast.ops.cross_scale_attention`.
        device, dtype: of the parameters, see :class:`torch.nn.Linear`.

    ``window``, ``halo`` and ``shift`` are a number or a pair (height, width).

    Shape: feature maps, channels last, x (B, H, W, C), context (B, Hc, Wc, Cc) -> (B, H, W, C), in the dtype of ``x``.
    H and W are any; Hc and Wc stand to them in the ratio, the coarser of the two rounded up.

    Raises:
        InputError: ``num_heads`` that does not divide C, a window, halo, shift or ratio that does not fit; when called,
            maps of another ratio.

    Attributes:
        relative_position_bias_table: (entries, num_heads), or ``None``.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int | None = None,
        *,
        window: Size = 8,
        num_heads: int = 4,
        ratio: Fraction | int | tuple[int, int] = Fraction(1, 2),
        halo: Size = 0,
        shift: Size = 0,
        bias: bool = True,
        qkv_bias: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        context_channels = channels if context_channels is None else context_channels
        for argument, value in (
            ("channels", channels),
            ("context_channels", context_channels),
            ("num_heads", num_heads),
        ):
            if value < 1:
                raise InputError(f"{name}: {argument} must be at least 1, got {value}")
        if channels % num_heads:
            raise InputError(f"{name}: num_heads must divide the {channels} channels, got {num_heads}")
        self.channels, self.context_channels, self.num_heads = channels, context_channels, num_heads
        self.ratio = _fraction(name, ratio)
        # Maps large enough that their sizes have this ratio and no other.
        queries, keys = 64 * self.ratio.denominator, 64 * self.ratio.numerator
        windows = windows_of(name, (queries, queries), (keys, keys), window, halo, shift)
        self.window = windows.y.window, windows.x.window
        self.halo = windows.y.halo, windows.x.halo
        self.shift = windows.y.shift, windows.x.shift
        self.backend = backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(channels, **factory)
        self.norm_context = nn.LayerNorm(context_channels, **factory)
        self.q = nn.Linear(channels, channels, bias=qkv_bias, **factory)
        self.kv = nn.Linear(context_channels, 2 * channels, bias=qkv_bias, **factory)
        self.proj = nn.Linear(channels, channels, **factory)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        table = nn.Parameter(torch.empty(windows.table, num_heads, **factory)) if bias else None
        self.relative_position_bias_table = None if table is None else nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        shift = self._check(x, context)
        attended = ops.cross_scale_attention(
            self.q(self.norm(x)).unflatten(-1, (self.num_heads, -1)),
            # Packed, as the projection leaves them: their gradients come back packed too.
            self.kv(self.norm_context(context)).unflatten(-1, (2, self.num_heads, -1)),
            None,
            self.window,
            self.halo,
            shift,
            bias=self.relative_position_bias_table,
            backend=self.backend,
        )
        added: Tensor = self.proj(attended.flatten(-2))
        return x + added

    def _check(self, x: Tensor, context: Tensor) -> tuple[int, int]:
        """The shift of each axis, 0 where one window covers it."""
        name = type(self).__name__
        check = Shapes(name)
        check("x", x, f"B H W {self.channels}")
        check("context", context, f"B Hc Wc {self.context_channels}")
        for axis, queries, keys in zip(("height", "width"), x.shape[1:3], context.shape[1:3], strict=True):
            p, q = ratio_of(queries, keys)
            if (p, q) != (self.ratio.numerator, self.ratio.denominator):
                raise InputError(
                    f"{name}: context must have {self.ratio} times the {axis} of x, the coarser rounded up; got {keys} "
                    f"for {queries}, read as {Fraction(p, q)}"
                )
        height, width = (
            shift if size > window else 0
            for size, window, shift in zip(x.shape[1:3], self.window, self.shift, strict=True)
        )
        return height, width

    def extra_repr(self) -> str:
        return (
            f"window={self.window}, num_heads={self.num_heads}, ratio={self.ratio}, halo={self.halo}, "
            f"shift={self.shift}, bias={self.relative_position_bias_table is not None}, backend={self.backend!r}"
        )


class TwoMaps(NamedTuple):
    """A fine map (B, H, W, C) and a coarse one (B, ceil(H / 2), ceil(W / 2), Cc)."""

    fine: Tensor
    coarse: Tensor


class TwoWayCrossScaleAttention(nn.Module):
    """A fine and a coarse map of half its size ask each other, window by window, both as they come in.

    The windows of both directions cover the same areas: with a window of 8, one of 8 x 8 fine pixels and one of 4 x 4
    coarse pixels see each other.

    Args:
        channels: C, of the fine map; divisible by ``num_heads``.
        coarse_channels: Cc, of the coarse map; default C; divisible by ``num_heads``.
        window, shift: in fine pixels, even; the coarse map's are half of them.
        halo: in coarse pixels; the fine map's is twice that.
        num_heads, bias, qkv_bias, backend, device, dtype: of both directions, see :class:`CrossScaleAttention`.

    Shape: feature maps, channels last, fine (B, H, W, C), coarse (B, ceil(H / 2), ceil(W / 2), Cc) -> :class:`TwoMaps`,
    both again, in their shapes and dtypes.

    Raises:
        InputError: as :class:`CrossScaleAttention`.

    Attributes:
        fine: the module by which the fine map asks the coarse one; ``coarse``: the other direction.
    """

    def __init__(
        self,
        channels: int,
        coarse_channels: int | None = None,
        *,
        window: Size = 8,
        num_heads: int = 4,
        halo: Size = 0,
        shift: Size = 0,
        bias: bool = True,
        qkv_bias: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        coarse_channels = channels if coarse_channels is None else coarse_channels
        self.fine = CrossScaleAttention(
            channels,
            coarse_channels,
            window=window,
            num_heads=num_heads,
            ratio=Fraction(1, 2),
            halo=halo,
            shift=shift,
            bias=bias,
            qkv_bias=qkv_bias,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        # From the pairs that the first has checked: even windows and shifts.
        height, width = self.fine.window
        shift_y, shift_x = self.fine.shift
        halo_y, halo_x = self.fine.halo
        self.coarse = CrossScaleAttention(
            coarse_channels,
            channels,
            window=(height // 2, width // 2),
            num_heads=num_heads,
            ratio=Fraction(2),
            halo=(2 * halo_y, 2 * halo_x),
            shift=(shift_y // 2, shift_x // 2),
            bias=bias,
            qkv_bias=qkv_bias,
            backend=backend,
            device=device,
            dtype=dtype,
        )

    def forward(self, fine: Tensor, coarse: Tensor) -> TwoMaps:
        return TwoMaps(self.fine(fine, coarse), self.coarse(coarse, fine))


def _fraction(owner: str, ratio: Fraction | int | Sequence[int]) -> Fraction:
    try:
        fraction = Fraction(*ratio) if isinstance(ratio, Sequence) else Fraction(ratio)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        fraction = Fraction(0)
    if fraction <= 0:
        raise InputError(f"{owner}: ratio must be a positive fraction, or (p, q) for p / q; got {ratio!r}")
    return fraction
