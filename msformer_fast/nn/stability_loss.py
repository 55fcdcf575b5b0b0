"""The spatial stability loss as a module."""

from __future__ import annotations

from torch import Tensor, nn

from msformer_fast import ops


class StabilityLoss(nn.Module):
    r"""Mean absolute difference between the attention of two shifted patch grids and the identity.

    .. math:: L = \frac{1}{T^2} \sum_{ij} | A_{ij} - \delta_{ij} |, \quad A = \mathrm{softmax}(Q K^T / s)

    Args:
        scale: s, 8 in the authors' code whatever C is.
        backend: see :func:`msformer_fast.ops.stability_loss`.

    Shape: queries and keys (B, T, C) -> scalar.
    """

    def __init__(self, *, scale: float = 8.0, backend: str | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.backend = backend

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        return ops.stability_loss(queries, keys, scale=self.scale, backend=self.backend)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"
