"""The two-scale head as a module."""

from __future__ import annotations

from torch import Tensor, nn

from msformer_fast import ops


class ScoreMap(nn.Module):
    """Cluster scores of every pixel from a coarse and a fine map; see :func:`msformer_fast.ops.score_map`.

    Args:
        channels: C of both maps.
        clusters: K.
        backend: see :func:`msformer_fast.ops.score_map`.

    Shape: coarse (B, ceil(H / 2), ceil(W / 2), C), fine (B, H, W, C) -> (B, H, W, K).
    """

    def __init__(self, channels: int, clusters: int, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend
        self.linear_up = nn.Linear(channels, 4 * channels, bias=False)
        self.linear_down = nn.Linear(2 * channels, clusters, bias=False)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return ops.score_map(coarse, fine, self.linear_up.weight, self.linear_down.weight, backend=self.backend)
