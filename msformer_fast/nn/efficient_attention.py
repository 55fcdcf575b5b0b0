"""Efficient attention as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.nn.hooks import Fused
from msformer_fast.ops import Attended, BatchNorm


class EfficientAttention(Fused):
    """Efficient attention on a feature map: linear in the number of pixels (Shen et al., WACV 2021).

    Args:
        channels: C.
        key_channels: Ck, default C; divisible by ``num_heads``.
        value_channels: Cv, default C; divisible by ``num_heads``.
        num_heads: number of heads.
        memory: ``"fast"`` or ``"lean"``, see :func:`msformer_fast.ops.efficient_attention`.
        backend: see :func:`msformer_fast.ops.efficient_attention`.
        device, dtype: of the parameters, see :class:`torch.nn.Linear`.

    Shape: a feature map, channels last, (B, H, W, C) -> :class:`msformer_fast.Attended`: attention ``y`` (B, H, W, C)
    and ``context`` (B, num_heads, Ck / num_heads, Cv / num_heads).

    Attributes:
        keys, queries, values, reprojection: 1x1 convolutions, named as in the published code.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        *,
        num_heads: int = 1,
        memory: str = "fast",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        key_channels = key_channels or channels
        value_channels = value_channels or channels
        self.num_heads = num_heads
        self.memory = memory
        self.backend = backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.keys = nn.Conv2d(channels, key_channels, 1, **factory)
        self.queries = nn.Conv2d(channels, key_channels, 1, **factory)
        self.values = nn.Conv2d(channels, value_channels, 1, **factory)
        self.reprojection = nn.Conv2d(value_channels, channels, 1, **factory)

    def forward(self, x: Tensor) -> Attended:
        return self.fused(x) if self._may_bypass() else self._composed(x)

    def fused(
        self,
        x: Tensor,
        norm: nn.LayerNorm | None = None,
        residual: bool = False,
        batch_norm: BatchNorm | None = None,
    ) -> Attended:
        """The op alone, whatever hooks there are; with ``norm`` and ``residual`` it is ``x + attention(norm(x))``.

        ``batch_norm``: read ``x`` through it.
        """
        return attend(
            self,
            x,
            norm,
            heads=self.num_heads,
            residual=residual,
            batch_norm=batch_norm,
            memory=self.memory,
            backend=self.backend,
        )

    def _composed(self, x: Tensor) -> Attended:
        """Part after part, each called."""
        planes = x.permute(0, 3, 1, 2)
        keys, queries, values = (
            part(planes).flatten(2).unflatten(1, (self.num_heads, -1))  # [B, heads, C / heads, H * W]
            for part in (self.keys, self.queries, self.values)
        )

        context = keys.softmax(-1) @ values.transpose(-1, -2)
        attended = context.transpose(-1, -2) @ queries.softmax(-2)

        y = self.reprojection(attended.flatten(1, 2).unflatten(2, x.shape[1:3]))  # [B, C, H, W]
        return Attended(y.permute(0, 2, 3, 1), context)


def attend(part: Any, x: Tensor, norm: nn.LayerNorm | None, **options: Any) -> Attended:
    """The op on (B, H, W, C) with a module's convolutions ``keys``, ``queries``, ``values`` and ``reprojection``.

    Args:
        norm: in front of it, or ``None``.
        options: of :func:`msformer_fast.ops.efficient_attention`, but for ``norm`` and ``eps``.
    """
    return ops.efficient_attention(
        x,
        part.keys.weight.flatten(1),
        part.keys.bias,
        part.queries.weight.flatten(1),
        part.queries.bias,
        part.values.weight.flatten(1),
        part.values.bias,
        part.reprojection.weight.flatten(1),
        part.reprojection.bias,
        None if norm is None else norm.weight,
        None if norm is None else norm.bias,
        norm=norm is not None,
        eps=1e-5 if norm is None else norm.eps,
        **options,
    )
