"""The efficient transformer block of MS-Former."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msformer_fast.nn.efficient_attention import EfficientAttention
from msformer_fast.nn.hooks import Fused
from msformer_fast.nn.mix_ffn import MixFFN
from msformer_fast.ops import Attended, BatchNorm


class BetweenNorms(NamedTuple):
    """What a block gives where the batch norms around it are read, not called.

    Attributes:
        y: (B, H, W, C), before the norm behind the block.
        context: (B, C, C).
        mean, var: (C), of ``y``, ``var`` biased.
    """

    y: Tensor
    context: Tensor
    mean: Tensor
    var: Tensor


class EfficientTransformerBlock(Fused):
    """``t = x + attn(LN1(x))``, ``y = t + mlp(LN2(t))``.

    Args:
        channels: C.
        memory: ``"fast"`` or ``"lean"``, see :mod:`msformer_fast.ops`.
        backend: see :mod:`msformer_fast.ops`.
        device, dtype: of the parameters, see :class:`torch.nn.Linear`.

    Shape: a feature map, channels last, (B, H, W, C) -> :class:`msformer_fast.Attended`: ``y`` (B, H, W, C) and the
    attention's ``context`` (B, C, C), in the dtype of the parameters.

    Raises:
        InputError, BackendError: from a call, as :func:`msformer_fast.ops.efficient_attention` and
            :func:`msformer_fast.ops.mix_ffn`.

    Source: Azad et al., "DAE-Former", 2022; MS-Former.
    """

    def __init__(
        self,
        channels: int,
        *,
        memory: str = "fast",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(channels, **factory)
        self.attn = EfficientAttention(channels, memory=memory, backend=backend, **factory)
        self.norm2 = nn.LayerNorm(channels, **factory)
        self.mlp = MixFFN(channels, memory=memory, backend=backend, **factory)

    def forward(self, x: Tensor) -> Attended:
        if self._may_bypass():
            t, context = self.attn.fused(x, norm=self.norm1, residual=True)
            y = self.mlp.fused(t, norm=self.norm2, residual=True)
        else:
            attended, context = self.attn(self.norm1(x))
            t = x + attended
            y = t + self.mlp(self.norm2(t))
        return Attended(y, context.squeeze(1))  # of one head: a view, and so is its gradient

    def between_norms(self, x: Tensor, batch_norm: BatchNorm) -> BetweenNorms:
        """The same on a map read through a batch norm, with the statistics for the one behind it; no part is called,
        whatever hooks there are."""
        t, context = self.attn.fused(x, norm=self.norm1, residual=True, batch_norm=batch_norm)
        y, mean, var = self.mlp.with_statistics(t, norm=self.norm2, residual=True)
        return BetweenNorms(y, context.squeeze(1), mean, var)
