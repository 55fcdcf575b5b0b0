"""The clustering loss as a module."""

from __future__ import annotations

from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.ops import Clustering


class ClusteringLoss(nn.Module):
    r"""Cross-entropy of a pixel's cluster scores against their own argmax.

    .. math:: L = \frac{1}{N} \sum_n \bigl( \log \sum_k e^{l_{nk}} - \max_k l_{nk} \bigr)

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        cluster_dim: axis of the clusters, 1 for (B, K, H, W) or -1 for (B, H, W, K).
        backend: see :func:`msformer_fast.ops.clustering_loss`.

    Shape: logits, clusters first, (B, K, H, W) or by ``cluster_dim`` -> :class:`msformer_fast.Clustering`: ``loss``,
    ``labels`` (B, H, W) and ``label_count`` (B).
    """

    def __init__(self, *, reduction: str = "mean", cluster_dim: int = 1, backend: str | None = None) -> None:
        super().__init__()
        self.reduction = reduction
        self.cluster_dim = cluster_dim
        self.backend = backend

    def forward(self, logits: Tensor) -> Clustering:
        return ops.clustering_loss(logits, cluster_dim=self.cluster_dim, reduction=self.reduction, backend=self.backend)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, cluster_dim={self.cluster_dim}"
