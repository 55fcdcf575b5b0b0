"""A rule of one's own: from clusters to a mask of what the built-in rules do not know, here bright spots.

    python examples/write_a_rule.py [FOLDER]

writes ``rule.png``, image, clusters and mask side by side, into FOLDER (``looked``).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

import msformer_fast as mf
from msformer_fast.images import write_png
from msformer_fast.overlay import panel


def drawn_spots(side: int = 97, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bright spots on dark tissue: image (H, W, 3) float32 in [0, 1] and mask (H, W) bool."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    mask = np.zeros((side, side), dtype=bool)
    for row, column, radius in ((0.35, 0.3, 0.12), (0.6, 0.68, 0.15), (0.25, 0.72, 0.09)):
        mask |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    grey = 0.25 + 0.05 * columns + 0.45 * ndimage.gaussian_filter(mask.astype(float), 1.0)
    grey += 0.04 * rng.standard_normal(grey.shape)
    return np.repeat(np.clip(grey, 0, 1)[..., None], 3, axis=2).astype(np.float32), mask


def bright_parts(labels: np.ndarray, image: np.ndarray, *, least: float = 0.005) -> np.ndarray:
    """The rule: clusters brighter than halfway from the dark ones to the bright ones, without tiny parts.

    Args:
        labels: (H, W) integers.
        image: (H, W, C) floats in [0, 1].
        least: share of the image that a connected part must have.

    Returns:
        (H, W) bool.
    """
    grey = image.mean(axis=2)
    clusters = np.unique(labels)
    brightness = ndimage.mean(grey, labels, clusters)  # one number a cluster
    bright = clusters[brightness > (brightness.min() + brightness.max()) / 2]
    parts, _ = ndimage.label(np.isin(labels, bright))
    sizes = np.bincount(parts.ravel())
    kept = sizes >= least * labels.size
    kept[0] = False  # what is in no part
    return ndimage.binary_fill_holes(kept[parts])


def main(folder: str = "looked") -> float:
    """The Dice of the mask."""
    image, truth = drawn_spots()
    result = mf.segment(image, size=65, patience=6, seed=0)  # its own mask is of a rule for other images
    mask = bright_parts(result.labels, image)
    dice = mf.metrics.dice(mask, truth)
    print(f"Dice {dice:.3f}; clusters in the mask: {mf.foreground.clusters_in(mask, result.labels)}")
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_png(out / "rule.png", panel(image, result.labels, mask))
    return dice


if __name__ == "__main__":
    main(*sys.argv[1:])
