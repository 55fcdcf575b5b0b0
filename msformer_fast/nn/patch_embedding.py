"""The patch embedding of the stability loss as a module."""

from __future__ import annotations

from torch import Tensor, nn

from msformer_fast import ops


class PatchEmbedding(nn.Module):
    """Queries and keys of two windows of the score map, one diagonal step apart.

    See :func:`msformer_fast.ops.patch_embedding`.

    Args:
        clusters: K, channels of the score map.
        channels: C, width of a query and a key.
        patch: side of a patch in pixels.
        backend: see :func:`msformer_fast.ops.patch_embedding`.

    Shape: logits (B, K, H, W) -> queries and keys (B, T, C).
    """

    def __init__(self, clusters: int, channels: int, patch: int = 32, backend: str | None = None) -> None:
        super().__init__()
        self.patch = patch
        self.backend = backend
        self.norm = nn.BatchNorm2d(clusters)
        self.proj = nn.Linear(patch * patch * clusters, channels)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return embed_patches(logits, self.norm, self.proj, self.patch, self.backend)


def embed_patches(
    logits: Tensor, norm: nn.BatchNorm2d, proj: nn.Linear, patch: int, backend: str | None
) -> tuple[Tensor, Tensor]:
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
