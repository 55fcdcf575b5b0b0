"""Launchers of the CPU kernels of windowed cross-scale attention: those of maps, and those of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msformer_fast.kernels.native.library import run
from msformer_fast.kernels.native.strides import contiguous
from msformer_fast.windows import ONE_ROW, Axis, Roll, Windows

#: A seam that no row lies past.
_NOWHERE = 2**62


def cross_scale_attention_forward(
    maps: Sequence[Tensor],
    windows: Windows,
    scale: float,
    seam: float,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The result (B, H, W, heads, d) of q, k and v, packed or not; other strides than contiguous cost a copy.

    Of volumes also, for the backward, (2, B, heads, D, H, W): each query's largest score, times log2(e), and 1 / the
    sum of its powers of 2; of maps, whose backward finds them again, an empty tensor.
    """
    q = maps[0] if maps[0].ndim == 3 + len(windows.axes) else maps[0].select(-3, 0)
    y = q.new_empty(q.shape)
    shared = _shared(maps, windows, scale, seam, bias, pad_k, pad_v)
    if len(windows.axes) == 2:
        run("cross_scale_attention_forward", **shared, y=y)
        return y, y.new_empty(0)
    sums = q.new_empty(2, q.shape[0], q.shape[-2], *q.shape[1:-2])
    run("volume_attention_forward", **shared, y=y, sums=sums)
    return y, sums


def cross_scale_attention_backward(
    grad_y: Tensor,
    maps: Sequence[Tensor],
    windows: Windows,
    scale: float,
    seam: float,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    y: Tensor,
    sums: Tensor,
) -> list[Tensor | None]:
    """Gradients of the maps, as they are packed, and of bias, pad_k and pad_v; contiguous."""
    # Gradients of keys that several windows see are added to what is there.
    new = torch.zeros if any(axis.halo for axis in windows.axes) else torch.empty
    d_maps = [new(value.shape, dtype=value.dtype) for value in maps]
    d_q, d_k, d_v = _pointers(d_maps)
    d_bias, d_pad_k, d_pad_v = (None if t is None else t.new_empty(t.shape) for t in (bias, pad_k, pad_v))
    is_map = len(windows.axes) == 2
    run(
        "cross_scale_attention_backward" if is_map else "volume_attention_backward",
        **_shared(maps, windows, scale, seam, bias, pad_k, pad_v), grad_y=grad_y.contiguous(),
        **({} if is_map else {"y": y, "sums": sums}),
        d_q=d_q, d_k=d_k, d_v=d_v, d_bias=d_bias, d_pad_k=d_pad_k, d_pad_v=d_pad_v,
    )  # fmt: skip
    return [*d_maps, d_bias, d_pad_k, d_pad_v]


def _pointers(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors that hold queries, keys and values."""
    return maps[0], maps[min(1, len(maps) - 1)], maps[-1]


def _places(maps: Sequence[Tensor]) -> list[int]:
    """Of q, k and v in contiguous maps: where the first number lies, and from a token to the next."""
    heads, width = maps[0].shape[-2:]
    numbers = heads * width
    packed = 4 - len(maps)  # maps in the last tensor
    rest = [value for i in range(packed) for value in (i * numbers, packed * numbers)]
    return [0, numbers] * (3 - packed) + rest


def _roll(roll: Roll) -> list[int]:
    return [roll.size, roll.cycle, roll.shift, _NOWHERE if roll.seam is None else roll.seam]


def _axis(windows: Windows, axis: Axis) -> list[int]:
    """As ``native.h`` lists it."""
    own = [axis.count, axis.window, axis.core, axis.halo, axis.p, axis.q]
    return own + _roll(windows.roll(axis)) + _roll(windows.roll(axis, of_keys=True))


def _shared(
    maps: Sequence[Tensor],
    windows: Windows,
    scale: float,
    seam: float,
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
) -> dict[str, Any]:
    """Arguments that both kernels take."""
    q, k, v = _pointers([value.contiguous() for value in maps])
    batch, (heads, width) = q.shape[0], q.shape[-2:]
    return {
        **{"q": q, "k": k, "v": v},
        **{"bias": contiguous(bias), "pad_k": contiguous(pad_k), "pad_v": contiguous(pad_v)},
        **{"places": torch.tensor(_places(maps)), "batch": batch, "heads": heads, "width": width},
        "geometry": torch.tensor([_axis(windows, axis) for axis in (ONE_ROW, *windows.axes)[-3:]]),
        **{"table": bias is not None and bias.ndim == 2, "pad": windows.pads, "scale": scale, "seam": seam},
    }
