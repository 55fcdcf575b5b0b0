"""What drop-ins for Swin share: the attention of a whole map between its two projections in one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.nn.drop_in import DropIn
from msformer_fast.nn.swin_structure import sides


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


def attend_windows(
    attn: Any,
    x: Tensor,
    window: Sequence[int],
    shift: Sequence[int],
    *,
    scale: float,
    bias: Tensor,
    order: str,
    seam: float,
    backend: str | None,
) -> Tensor:
    """Attention (B, H, W, C) of the normed map ``x`` (B, H, W, C), before the projection ``attn.proj``.

    Args:
        attn: has ``qkv`` and ``num_heads``.
        window, shift, scale, bias, order, seam, backend: see :func:`msformer_fast.ops.cross_scale_attention`. Where the
            window does not divide the map, tokens of zeros take part, whose keys and values are the bias of ``qkv``.
    """
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1))
    whole = all(size % side == 0 for size, side in zip(x.shape[1:3], window, strict=True))
    pad_k, pad_v = (None, None) if whole else _padded_token(attn, x, qkv)
    y = ops.cross_scale_attention(
        qkv,
        None,
        None,
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
    return y.flatten(3)


def _padded_token(attn: Any, x: Tensor, qkv: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Key and value (heads, d) of a token of zeros."""
    linear = attn.qkv
    token: Tensor | None
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        token = linear(x.new_zeros(1, 1, 1, x.shape[-1]))
    else:
        token = linear.bias
    if token is None:
        return None, None
    _, k, v = token.to(qkv.dtype).view(qkv.shape[3:])
    return k, v
