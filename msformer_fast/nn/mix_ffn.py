"""Mix-FFN as a module."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.nn.hooks import Fused
from msformer_fast.ops import WithStatistics


class _Depthwise(nn.Module):
    """Holds the depthwise convolution under the name that published checkpoints use (``dwconv.dwconv``)."""

    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, **factory)

    def forward(self, u: Tensor) -> Tensor:
        convolved: Tensor = self.dwconv(u.permute(0, 3, 1, 2))
        return convolved.permute(0, 2, 3, 1)


class MixFFN(Fused):
    """``fc2(GELU(LayerNorm(dwconv3x3(u) + u)))``, ``u = fc1(t)``.

    Args:
        channels: C.
        hidden_channels: D, default 4C.
        inner_skip: add ``u`` to the convolution's result, and norm the sum. ``False`` is SegFormer's Mix-FFN.
        memory: ``"fast"`` or ``"lean"``, see :func:`msformer_fast.ops.mix_ffn`.
        backend: see :func:`msformer_fast.ops.mix_ffn`.
        device, dtype: of the parameters, see :class:`torch.nn.Linear`.

    Shape: a feature map, channels last, (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int | None = None,
        *,
        inner_skip: bool = True,
        memory: str = "fast",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_channels = hidden_channels or 4 * channels
        self.inner_skip = inner_skip
        self.memory = memory
        self.backend = backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(channels, hidden_channels, **factory)
        self.dwconv = _Depthwise(hidden_channels, **factory)
        self.fc2 = nn.Linear(hidden_channels, channels, **factory)
        # The published name; the op's inner_norm. The op's norm is the one in front, a block's norm2.
        self.norm1 = nn.LayerNorm(hidden_channels, **factory) if inner_skip else None

    def forward(self, t: Tensor) -> Tensor:
        return self.fused(t) if self._may_bypass() else self._composed(t)

    def fused(self, t: Tensor, norm: nn.LayerNorm | None = None, residual: bool = False) -> Tensor:
        """The op alone, whatever hooks there are; with ``norm`` and ``residual`` it is ``t + ffn(norm(t))``."""
        parameters, options = self._arguments(norm, residual)
        return ops.mix_ffn(t, *parameters, **options)

    def with_statistics(self, t: Tensor, norm: nn.LayerNorm | None = None, residual: bool = False) -> WithStatistics:
        """The same, and mean and biased variance (C) of the result, for the batch norm behind it."""
        parameters, options = self._arguments(norm, residual)
        return ops.mix_ffn_with_statistics(t, *parameters, **options)

    def _composed(self, t: Tensor) -> Tensor:
        """Part after part, each called."""
        u = self.fc1(t)  # [B, H, W, D]
        v = self.dwconv(u)
        if self.norm1 is not None:
            v = self.norm1(v + u)
        y: Tensor = self.fc2(F.gelu(v))
        return y

    def _arguments(self, norm: nn.LayerNorm | None, residual: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the op takes behind ``t``."""
        parameters, options = arguments_of(self.fc1, self.dwconv.dwconv, self.fc2, norm, self.norm1)
        options |= {"inner_skip": self.inner_skip, "residual": residual}
        return parameters, options | {"memory": self.memory, "backend": self.backend}


def arguments_of(
    fc1: Any, depthwise: Any, fc2: Any, norm: nn.LayerNorm | None, inner: nn.LayerNorm | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What :func:`msformer_fast.ops.mix_ffn` takes behind ``t`` of these modules: parameters, and which norms there
    are. ``fc1`` and ``fc2`` are linear maps or 1x1 convolutions; two norms must have one eps."""
    parameters = (
        fc1.weight.flatten(1),
        fc1.bias,
        depthwise.weight,
        depthwise.bias,
        fc2.weight.flatten(1),
        fc2.bias,
        None if norm is None else norm.weight,
        None if norm is None else norm.bias,
        None if inner is None else inner.weight,
        None if inner is None else inner.bias,
    )
    eps = next((each.eps for each in (norm, inner) if each is not None), 1e-5)
    return parameters, {"norm": norm is not None, "inner_norm": inner is not None, "eps": eps}
