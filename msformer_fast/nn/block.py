"""The efficient transformer block of MS-Former."""

from __future__ import annotations

from torch import Tensor, nn

from msformer_fast.nn.efficient_attention import EfficientAttention
from msformer_fast.nn.mix_ffn import MixFFN
from msformer_fast.ops.batch_norm import BatchNorm


class EfficientTransformerBlock(nn.Module):
    """``t = x + attn(LN1(x))``, ``y = t + mlp(LN2(t))``.

    Args:
        channels: C.
        memory: ``"fast"`` or ``"lean"``, see :mod:`msformer_fast.ops`.
        backend: see :mod:`msformer_fast.ops`.

    Shape: (B, H, W, C) -> y (B, H, W, C) and the attention's context (B, C, C).
    """

    def __init__(self, channels: int, memory: str = "fast", backend: str | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = EfficientAttention(channels, memory=memory, backend=backend)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MixFFN(channels, memory=memory, backend=backend)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t, context = self.attn.tokens(x, norm=self.norm1, residual=True)
        return self.mlp(t, norm=self.norm2, residual=True), context[:, 0]

    def between_norms(self, x: Tensor, batch_norm: BatchNorm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same on a map read through a batch norm, and mean and variance (C) of ``y``, for the one behind it.

        Returns:
            y, the context, mean and biased variance.
        """
        t, context = self.attn.tokens(x, norm=self.norm1, residual=True, batch_norm=batch_norm)
        y, mean, var = self.mlp.with_statistics(t, norm=self.norm2, residual=True)
        return y, context[:, 0], mean, var
