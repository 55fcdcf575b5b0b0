"""The files that a segmentation leaves: mask, label map, overlay and record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.files import show, write_json
from msformer_fast.images import write_png
from msformer_fast.inputs import as_image
from msformer_fast.overlay import label_palette, overlay
from msformer_fast.segmentation import Segmentation

#: What follows the image's stem in each output's name. The record is written last: where it is, all are.
SUFFIXES = ("_mask.png", "_labels.png", "_overlay.png", ".json")


def output_paths(folder: Path, stem: str) -> list[Path]:
    """The files that :func:`save_segmentation` will write."""
    return [folder / f"{stem}{suffix}" for suffix in SUFFIXES]


def refuse_existing(paths: list[Path]) -> None:
    """Raises InputError if one of ``paths`` exists, so that an earlier result is never lost unasked."""
    for path in paths:
        if path.exists():
            raise InputError(f"{show(path)}: exists already; pass --overwrite or another output folder")


def save_segmentation(
    result: Segmentation,
    source: str | Path,
    folder: Path,
    *,
    name: str | None = None,
    picture: NDArray[np.uint8] | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write the mask (0 / 255), the indexed label map, the overlay and the record (JSON) of one image.

    Args:
        result: of the image at ``source``, at that image's size.
        source: the image; its stem names the outputs.
        folder: exists and can be written to.
        name: names the outputs instead.
        picture: (H, W, 3), the overlay where it has been drawn already.
        more: for the record.

    Returns:
        The four paths, each written to a temporary name first, then renamed.
    """
    source = Path(source)
    mask, labels, drawn, record = paths = output_paths(folder, source.stem if name is None else name)
    write_png(mask, result.mask)
    write_labels(labels, result.labels)
    write_png(drawn, overlay(as_image(source), result.mask) if picture is None else picture)
    write_json(record, {"image": source.name, **result.as_dict(), **(more or {})})
    return paths


def write_labels(path: Path, labels: NDArray[np.unsignedinteger[Any]]) -> None:
    """Write a label map as PNG: indexed in the colours of the pictures where it is of 8 bits."""
    write_png(path, labels, palette=label_palette(256) if labels.dtype == "uint8" else None)
