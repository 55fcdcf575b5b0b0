"""Efficient attention as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.ops.batch_norm import BatchNorm


class EfficientAttention(nn.Module):
    """Efficient attention on a feature map: linear in the number of pixels (Shen et al., WACV 2021).

    Args:
        in_channels: C.
        key_channels: Ck, default C; divisible by ``heads``.
        value_channels: Cv, default C; divisible by ``heads``.
        heads: number of heads.
        memory: ``"fast"`` or ``"lean"``, see :func:`msformer_fast.ops.efficient_attention`.
        backend: see :func:`msformer_fast.ops.efficient_attention`.

    Shape: (B, C, H, W) -> attention (B, C, H, W) and context (B, heads, Ck / heads, Cv / heads).

    Attributes:
        keys, queries, values, reprojection: 1x1 convolutions, named as in the published code.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        heads: int = 1,
        memory: str = "fast",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        key_channels = key_channels or in_channels
        value_channels = value_channels or in_channels
        self.heads = heads
        self.memory = memory
        self.backend = backend
        self.keys = nn.Conv2d(in_channels, key_channels, 1)
        self.queries = nn.Conv2d(in_channels, key_channels, 1)
        self.values = nn.Conv2d(in_channels, value_channels, 1)
        self.reprojection = nn.Conv2d(value_channels, in_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, context = self.tokens(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2), context

    def tokens(
        self,
        x: Tensor,
        norm: nn.LayerNorm | None = None,
        residual: bool = False,
        batch_norm: BatchNorm | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same on (B, H, W, C); with ``norm`` and ``residual`` it is ``x + attention(norm(x))``.

        ``batch_norm``: read ``x`` through it.
        """
        return attend(
            self,
            x,
            norm,
            heads=self.heads,
            residual=residual,
            batch_norm=batch_norm,
            memory=self.memory,
            backend=self.backend,
        )


def attend(part: Any, x: Tensor, norm: nn.LayerNorm | None, **options: Any) -> tuple[Tensor, Tensor]:
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
