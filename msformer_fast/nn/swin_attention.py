"""What drop-ins for Swin share: the attention of a whole map between its two projections in one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.nn.drop_in import DropIn
from msformer_fast.nn.swin_structure import sides
from msformer_fast.ops.backend import why_not_native
from msformer_fast.windows import product


class WindowDropIn(DropIn):
    """Base of a drop-in that calls :func:`attend_windows`."""

    def __init__(self, module: nn.Module, *, backend: str | None = None) -> None:
        super().__init__(module, backend=backend)
        self.was_called = False

    def gains_on_cpu(self, x: Tensor) -> bool:
        return False  # 0.75 to 0.97 times as fast in windows of 7 x 7

    def where_it_gains(self) -> str:
        return "not on the CPU"

    def extra_repr(self) -> str:
        return f"window_size={sides(self.window_size)}, shift_size={sides(self.shift_size)}, backend={self.backend!r}"


#: Pairs of tokens that see each other, of all windows, below which a call costs more than the attention: 0.74 times of
#: one window of 2 x 7 x 7.
LEAST_SCORES = 30_000

#: What :func:`gains_on_volumes` says, for reports.
WHERE_VOLUMES_GAIN = "on the CPU in float32, on volumes that are no shorter than the window"


def gains_on_volumes(x: Tensor, window: Sequence[int], shift: Sequence[int], whole: Sequence[int], flash: bool) -> bool:
    """Whether the op is faster on the CPU than a library's attention of volumes ``x`` (B, D, H, W, C).

    Args:
        window, shift: of this volume; ``whole``: the window where the volume is long enough.
        flash: whether the library would call PyTorch's fused attention.
    """
    infers = not torch.is_grad_enabled()
    if why_not_native("cross_scale_attention", x):
        # Through PyTorch's fused attention, of 343 tokens: 1.6 to 2.9 times as fast as plain code; 0.8 in training.
        return infers and not flash
    if flash and product(window) <= 64 and not any(shift):
        return False  # 0.92 to 0.96 times of 4 x 4 x 4
    windows = product([-(-size // side) for size, side in zip(x.shape[1:-1], window, strict=True)])
    if x.shape[0] * windows * product(window) ** 2 < LEAST_SCORES:
        return False
    # With a bias of its own for every pair of tokens: 0.7 to 0.98 times in few windows.
    return tuple(window[1:]) == tuple(whole[1:]) or windows >= 16


def attend_windows(
    projections: Sequence[Any],
    x: Tensor,
    window: Sequence[int],
    shift: Sequence[int],
    *,
    heads: int,
    scale: float,
    bias: Tensor,
    order: str,
    seam: float,
    backend: str | None,
) -> Tensor:
    """Attention of the normed map ``x`` (B, [D,] H, W, C), in its shape, before the last projection.

    Args:
        projections: to queries, keys and values at once, or one to each.
        window, shift, scale, bias, order, seam, backend: see :func:`msformer_fast.ops.cross_scale_attention`. Where the
            window does not divide the map, tokens of zeros take part, whose keys and values are the projections' bias.
    """
    maps: list[Tensor] = [project(x) for project in projections]
    # One map of all three is read where it lies.
    q: Any
    q, k, v = (maps[0].unflatten(-1, (3, heads, -1)), None, None) if len(maps) == 1 else _by_heads(maps, heads)

    whole = all(size % side == 0 for size, side in zip(x.shape[1:-1], window, strict=True))
    tokens = [None] if whole else [_of_zeros(project, x, maps[0]) for project in projections]
    _, pad_k, pad_v = _by_heads(tokens, heads)

    y = ops.cross_scale_attention(
        q,
        k,
        v,
        window,
        shift=shift,
        scale=scale,
        bias=bias,
        outside="pad",
        order=order,
        pad_k=pad_k,
        pad_v=pad_v,
        seam=seam,
        backend=backend,
    )
    return y.flatten(-2)


def _by_heads(rows: Sequence[Tensor | None], heads: int) -> Sequence[Tensor | None]:
    """Queries, keys and values (..., heads, d) out of what one projection gave, (..., 3 C), or three, (..., C) each."""
    if len(rows) > 1:
        return [None if row is None else row.unflatten(-1, (heads, -1)) for row in rows]
    (row,) = rows
    return (None, None, None) if row is None else row.unflatten(-1, (3, heads, -1)).unbind(-3)


def _of_zeros(linear: Any, x: Tensor, like: Tensor) -> Tensor | None:
    """What a projection makes of a token of zeros, in the dtype of ``like``: its bias, if it is a mere linear map."""
    token: Tensor | None
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        token = linear(x.new_zeros((1,) * (x.ndim - 1) + x.shape[-1:])).flatten()
    else:
        token = linear.bias
    return None if token is None else token.to(like.dtype)
