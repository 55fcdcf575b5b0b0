"""The patch embedding of the stability loss as a module."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.nn.hooks import Fused
from msformer_fast.ops import Patches


class PatchEmbedding(Fused):
    """Queries and keys of two windows of the score map, one diagonal step apart.

    See :func:`msformer_fast.ops.patch_embedding`.

    Args:
        clusters: K, channels of the score map.
        channels: C, width of a query and a key.
        patch: side of a patch in pixels.
        backend: see :func:`msformer_fast.ops.patch_embedding`.
        device, dtype: of the parameters, see :class:`torch.nn.Linear`.

    Shape: logits, clusters first, (B, K, H, W) -> :class:`msformer_fast.Patches`: ``queries`` and ``keys`` (B, T, C).
    """

    def __init__(
        self,
        clusters: int,
        channels: int,
        *,
        patch: int = 32,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.backend = backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = nn.BatchNorm2d(clusters, **factory)
        self.proj = nn.Linear(patch * patch * clusters, channels, **factory)

    def forward(self, logits: Tensor) -> Patches:
        if self._may_bypass():
            return embed_patches(logits, self.norm, self.proj, self.patch, self.backend)
        cut = "b k (h p1) (w p2) -> b (h w) (p1 p2 k)"
        windows = normed_windows(logits, self.norm, self.patch)
        return Patches(*(self.proj(rearrange(each, cut, p1=self.patch, p2=self.patch)) for each in windows))


def embed_patches(logits: Tensor, norm: nn.BatchNorm2d, proj: nn.Linear, patch: int, backend: str | None) -> Patches:
    """Call the op with a batch norm's and a linear layer's parameters, and count the batch as the norm would."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return ops.patch_embedding(
        logits,
        proj.weight,
        proj.bias,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        patch=patch,
        training=norm.training,
        momentum=0.1 if norm.momentum is None else norm.momentum,
        eps=norm.eps,
        backend=backend,
    )


def normed_windows(logits: Tensor, norm: nn.Module, patch: int) -> tuple[Tensor, Tensor]:
    """The windows of queries and of keys, (B, K, h, w) each, h and w whole patches; the batch norm is called."""
    # Contiguous: with a full backward hook the gradients of a channels-last batch norm are wrong on the CPU where what
    # reads it gives a gradient of another layout, as these windows do (PyTorch 2.13).
    normed = norm(logits.contiguous())
    rows, columns = (side - 1 - (side - 1) % patch for side in normed.shape[2:])
    return normed[:, :, 1 : 1 + rows, 1 : 1 + columns], normed[:, :, :rows, :columns]
