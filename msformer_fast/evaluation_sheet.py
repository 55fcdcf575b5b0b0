"""The picture of an evaluation: the images that went worst, with the outlines of truth and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.contact_sheet import Tile, contact_sheet
from msformer_fast.evaluate import worst_first
from msformer_fast.formats.plain import read_image, read_mask
from msformer_fast.outputs import output_paths

# A sheet of more is no longer looked at.
_SHEET_TILES = 100


def evaluation_sheet(
    rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[Path, Path]], folder: Path, names: Mapping[Path, str]
) -> NDArray[np.uint8]:
    """A picture of the images with the truth's outline and ours, (H, W, 3): the worst first, at most 100.

    Args:
        rows: from :func:`msformer_fast.evaluate.evaluate`.
        pairs: image and mask paths of these rows.
        folder: where :func:`msformer_fast.outputs.save_segmentation` wrote.
        names: what it called the outputs of each image.
    """
    paths = {image.name: (image, mask) for image, mask in pairs}
    tiles = []
    for row in worst_first(rows)[:_SHEET_TILES]:
        image, truth = paths[row["image"]]
        pixels = read_image(image)
        ours = read_mask(output_paths(folder, names[image])[0], pixels.shape[:2])
        flag = ", doubtful" if row["doubtful"] else ""
        captions = (
            f"Dice {row['blind_dice']:.3f}, oracle {row['oracle_dice']:.3f}",
            f"confidence {row['confidence']:.2f}{flag}",
        )
        tiles.append(Tile(names[image], pixels, ours, read_mask(truth, pixels.shape[:2]), captions))
    return contact_sheet(tiles)
