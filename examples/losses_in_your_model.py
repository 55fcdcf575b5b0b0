"""The losses of MS-Former in a network of one's own: a few convolutions that learn from one image, without labels.

    python examples/losses_in_your_model.py [FOLDER]

writes ``own_network.png``, image, clusters and mask side by side, into FOLDER (``looked``).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import msformer_fast as mf
from msformer_fast.images import write_png
from msformer_fast.overlay import panel

CLUSTERS = 16


class Own(nn.Module):
    """Any network that ends in scores of clusters, (B, K, H, W)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.GELU(),
            nn.Conv2d(channels, CLUSTERS, 1), nn.BatchNorm2d(CLUSTERS),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.body(image)


def main(folder: str = "looked") -> list[float]:
    """The losses of all steps."""
    torch.manual_seed(0)
    drawn = mf.phantom.lesion((97, 97), seed=1)
    image = torch.from_numpy(drawn.image).permute(2, 0, 1)[None]  # (1, 3, 97, 97)

    network = Own()
    # Patches of two windows, one diagonal step apart: what a cluster is must not depend on where the window lies.
    patches = mf.nn.PatchEmbedding(CLUSTERS, 32, patch=16)
    sharp, stable = mf.nn.ClusteringLoss(), mf.nn.StabilityLoss()
    parameters = [*network.parameters(), *patches.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    losses = []
    for step in range(30):
        logits = network(image)  # (1, K, 97, 97)
        clustering = sharp(logits)  # loss, labels (1, 97, 97), label_count (1)
        queries, keys = patches(logits)  # (1, T, 32) each
        loss = clustering.loss + 1.3 * stable(queries, keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}, {int(clustering.label_count[0])} clusters")

    labels = clustering.labels[0].numpy()  # (97, 97)
    found = mf.foreground.foreground(labels, drawn.image, "lesion")
    print(f"Dice {mf.metrics.dice(found.mask, drawn.mask):.3f}: {found.reason}")
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_png(out / "own_network.png", panel(drawn.image, labels, found.mask))
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
