"""The clustering loss of every pixel, with the label map and the label count of the same pass."""

from __future__ import annotations

from torch import Tensor

from msformer_fast.errors import InputError
from msformer_fast.ops.backend import choose, not_built
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.clustering_loss import clustering_loss as _reference

REDUCTIONS = ("mean", "sum", "none")
_WHY_NOT = {name: not_built("clustering_loss", name) for name in ("triton", "torch")}


def clustering_loss(
    logits: Tensor, *, cluster_dim: int = 1, reduction: str = "mean", backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of the scores against their own argmax: ``logsumexp(l) - max(l)`` for each pixel.

    Args:
        logits: (B, K, H, W) with ``cluster_dim=1`` or (B, H, W, K) with ``cluster_dim=-1``; any strides, K >= 2.
        cluster_dim: the axis of the clusters, 1 or -1.
        reduction: ``"mean"`` or ``"sum"`` over every pixel of the batch, or ``"none"``.
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        loss: scalar, or (B, H, W) for ``"none"``; float32 for half-precision logits, else the logits' dtype.
        labels: (B, H, W), the argmax (the first of equals), in the smallest integer dtype that holds K;
            no gradient goes through it.
        label_count: (B) int32, the number of distinct labels in each image, on the logits' device.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: MS-Former, clustering loss; Kim et al., IEEE TIP 2020, equation 1.
    """
    if cluster_dim not in (1, -1):
        raise InputError(f"clustering_loss: cluster_dim must be 1 or -1, got {cluster_dim}")
    if reduction not in REDUCTIONS:
        raise InputError(f"clustering_loss: reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    shapes = Shapes("clustering_loss")
    shapes("logits", logits, "B K H W" if cluster_dim == 1 else "B H W K")
    if shapes["K"] < 2:
        raise InputError(f"clustering_loss: logits must have at least 2 clusters, got {shapes['K']}")
    choose("clustering_loss", backend, _WHY_NOT)
    return _reference(logits, cluster_dim, reduction)
