"""Make the constants of :mod:`msformer_fast.foreground.calibration`, its plot and its figures, from evaluations.

    python -m msformer_fast.benchmarks.calibrate degrade IMAGES MASKS -o HARD
    msformer-fast evaluate HARD/images HARD/masks --rule lungs-ct -o hard
    python -m msformer_fast.benchmarks.calibrate fit --plot docs/calibration.svg easy hard ...

The folders are those that ``msformer-fast evaluate`` wrote, of images with either rule, whole or degraded. Images of odd
places by name are fitted, those of even places judged, as ``--split`` has it.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.evaluate import find_pairs
from msformer_fast.files import check_output_folder
from msformer_fast.foreground.calibration import DOUBTFUL, Raw, features
from msformer_fast.formats.plain import read_image, read_mask
from msformer_fast.images import write_png

# Under this Dice a mask should be marked, over that it should not.
BAD, GOOD = 0.8, 0.9
_BINS = 5


@dataclass(frozen=True)
class Judged:
    """A mask, what was known of it, and how good it is."""

    rule: str
    raw: Raw
    confidence: float
    doubtful: bool
    dice: float
    odd: bool


def read_folder(folder: Path) -> list[Judged]:
    """The masks of one evaluation whose rule made candidates."""
    with open(folder / "evaluation.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    judged = []
    for place, row in enumerate(sorted(rows, key=lambda row: row["image"])):
        record = json.loads((folder / f"{Path(row['image']).stem}.json").read_text(encoding="utf-8"))["foreground"]
        if not record["candidates"]:
            continue
        raw = Raw(record["agreement"], sum(record["terms"].values()), record["likeness"])
        odd = place % 2 == 0
        judged.append(Judged(row["rule"], raw, record["confidence"], record["doubtful"], float(row["blind_dice"]), odd))
    return judged


def degrade(image: NDArray[np.float32], mask: NDArray[np.bool_], number: int) -> tuple[Any, Any]:
    """An image (H, W, C) that is hard to segment, and its mask: in turn noise, blur, a crop, and little contrast."""
    from scipy import ndimage

    rng = np.random.default_rng(number)
    side = min(image.shape[:2])
    if number % 4 == 0:
        image = image + rng.normal(0, rng.uniform(0.1, 0.3), image.shape[:2])[..., None]
    elif number % 4 == 1:
        sigma = rng.uniform(0.02, 0.05) * side
        image = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    elif number % 4 == 2:
        part = int(rng.uniform(0.45, 0.65) * side)
        row, column = (int(rng.integers(0, length - part + 1)) for length in image.shape[:2])
        inside = mask[row : row + part, column : column + part]
        if inside.mean() > 0.02:
            image, mask = image[row : row + part, column : column + part], inside
    else:
        image = 0.5 + (image - 0.5) * rng.uniform(0.05, 0.15) + rng.normal(0, 0.02, image.shape[:2])[..., None]
    return np.clip(image, 0, 1), mask


def write_degraded(images: str, masks: str, output: str) -> None:
    """A degraded copy of every pair of two folders, in ``images`` and ``masks`` of another."""
    folders = [check_output_folder(Path(output) / name) for name in ("images", "masks")]
    for number, (image, mask) in enumerate(find_pairs(images, masks)):
        pixels = read_image(image)
        made = degrade(pixels, read_mask(mask, pixels.shape[:2]), number)
        write_png(folders[0] / f"{image.stem}.png", np.rint(made[0] * 255).astype(np.uint8))
        write_png(folders[1] / f"{image.stem}.png", made[1])
