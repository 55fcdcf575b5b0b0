"""The two-scale head as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.nn.hooks import Fused


class ScoreMap(Fused):
    """Cluster scores of every pixel from a coarse and a fine map; see :func:`msformer_fast.ops.score_map`.

    Args:
        channels: C of both maps.
        clusters: K.
        backend: see :func:`msformer_fast.ops.score_map`.
        device, dtype: of the parameters, see :class:`torch.nn.Linear`.

    Shape: feature maps, channels last, coarse (B, ceil(H / 2), ceil(W / 2), C) and fine (B, H, W, C) -> logits,
    clusters first, (B, K, H, W), as losses take them; channels-last in memory.
    """

    def __init__(
        self,
        channels: int,
        clusters: int,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.backend = backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.linear_up = nn.Linear(channels, 4 * channels, bias=False, **factory)
        self.linear_down = nn.Linear(2 * channels, clusters, bias=False, **factory)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        if self._may_bypass():
            scores = ops.score_map(coarse, fine, self.linear_up.weight, self.linear_down.weight, backend=self.backend)
        else:
            scores = compose_scores(coarse, fine, self.linear_up, self.linear_down)
        return scores.permute(0, 3, 1, 2)


def compose_scores(coarse: Tensor, fine: Tensor, linear_up: nn.Module, linear_down: nn.Module) -> Tensor:
    """The op with both linear layers called: (B, H, W, K)."""
    up = linear_up(coarse).unflatten(-1, (2, 2, -1))  # [B, Hc, Wc, 2, 2, C]
    up = up.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [B, 2 Hc, 2 Wc, C]

    both = torch.cat((up[:, : fine.shape[1], : fine.shape[2]], fine), -1)
    scores: Tensor = linear_down(both)
    return scores
