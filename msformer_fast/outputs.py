"""The files that a segmentation leaves: mask, label map, overlay and record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.contact_sheet import Tile, contact_sheet
from msformer_fast.errors import InputError
from msformer_fast.evaluate import worst_first
from msformer_fast.files import write_json
from msformer_fast.images import as_image, read_image, read_mask, write_png
from msformer_fast.overlay import label_palette, overlay
from msformer_fast.segmentation import Segmentation

#: What follows the image's stem in each output's name. The record is written last: where it is, all are.
SUFFIXES = ("_mask.png", "_labels.png", "_overlay.png", ".json")

# A sheet of more is no longer looked at.
_SHEET_TILES = 100


def output_paths(folder: Path, stem: str) -> list[Path]:
    """The files that :func:`save_segmentation` will write."""
    return [folder / f"{stem}{suffix}" for suffix in SUFFIXES]


def refuse_existing(paths: list[Path]) -> None:
    """Raises InputError if one of ``paths`` exists, so that an earlier result is never lost unasked."""
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: exists already; pass --overwrite or another output folder")


def save_segmentation(result: Segmentation, source: str | Path, folder: Path) -> list[Path]:
    """Write the mask (0 / 255), the indexed label map, the overlay and the record (JSON) of one image.

    Args:
        result: of the image at ``source``, at that image's size.
        source: the image; its stem names the outputs.
        folder: exists and can be written to.

    Returns:
        The four paths, each written to a temporary name first, then renamed.
    """
    source = Path(source)
    mask, labels, picture, record = paths = output_paths(folder, source.stem)
    write_png(mask, result.mask)
    write_png(labels, result.labels, palette=label_palette(256) if result.labels.dtype == "uint8" else None)
    write_png(picture, overlay(as_image(source), result.mask))
    write_json(record, {"image": source.name, **result.as_dict()})
    return paths


def evaluation_sheet(
    rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[Path, Path]], folder: Path
) -> NDArray[np.uint8]:
    """A picture of the images with the truth's outline and ours, (H, W, 3): the worst first, at most 100.

    Args:
        rows: from :func:`msformer_fast.evaluate.evaluate`.
        pairs: image and mask paths of these rows.
        folder: where :func:`save_segmentation` wrote.
    """
    paths = {image.name: (image, mask) for image, mask in pairs}
    tiles = []
    for row in worst_first(rows)[:_SHEET_TILES]:
        image, truth = paths[row["image"]]
        pixels = read_image(image)
        ours = read_mask(output_paths(folder, image.stem)[0], pixels.shape[:2])
        flag = ", doubtful" if row["doubtful"] else ""
        captions = (
            f"Dice {row['blind_dice']:.3f}, oracle {row['oracle_dice']:.3f}",
            f"confidence {row['confidence']:.2f}{flag}",
        )
        tiles.append(Tile(image.stem, pixels, ours, read_mask(truth, pixels.shape[:2]), captions))
    return contact_sheet(tiles)
