"""Scores of a folder of images against a folder of ground-truth masks, under both protocols."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msformer_fast.errors import InputError
from msformer_fast.images import read_image, read_mask
from msformer_fast.metrics import score_blind, score_oracle
from msformer_fast.segmentation import Segmentation

PROTOCOLS = ("oracle", "blind")
METRICS = ("dice", "iou", "hm", "xor", "hd95", "asd")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

#: What data sets put behind the image's stem in the name of its mask.
MASK_ENDINGS = ("", "_mask", "_segmentation", "_lesion")


def find_pairs(images: str | Path, masks: str | Path) -> list[tuple[Path, Path]]:
    """Image and mask paths, matched by stem, in the order of the names; every file is read once to check it.

    Raises:
        InputError: a folder is missing or holds no image, an image has no mask, a file cannot be read, or a
            mask has another size than its image.
    """
    mask_of = {path.stem: path for path in _image_files(masks)}
    pairs = []
    for image in _image_files(images):
        mask = next((mask_of[image.stem + end] for end in MASK_ENDINGS if image.stem + end in mask_of), None)
        if mask is None:
            raise InputError(f"{image}: no mask of that name in {masks}; name it {image.stem}.png")
        read_mask(mask, read_image(image).shape[:2])
        pairs.append((image, mask))
    return pairs


def score_pair(result: Segmentation, mask: str | Path) -> dict[str, Any]:
    """One row of the table: both protocols' scores of one image."""
    truth = read_mask(mask, result.mask.shape)
    row: dict[str, Any] = {}
    for protocol, scores in (
        ("oracle", score_oracle(result.labels, truth)),
        ("blind", score_blind(result.mask, truth)),
    ):
        row |= {f"{protocol}_{name}": value for name, value in scores.as_dict().items()}
    return row | {
        "iterations": len(result.history),
        "label_count": int(np.unique(result.labels).size),
        "stopped": result.stopped,
        "rule": result.foreground.rule,
        "seconds": round(result.seconds, 3),
    }


def evaluate(
    pairs: Sequence[tuple[Path, Path]],
    run: Callable[[Path], Segmentation],
    report: Callable[[dict[str, Any]], object] | None = None,
) -> list[dict[str, Any]]:
    """Segment every image with ``run`` and score it; ``report`` sees each row as it comes."""
    rows = []
    for image, mask in pairs:
        rows.append({"image": image.name, **score_pair(run(image), mask)})
        if report is not None:
            report(rows[-1])
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each protocol the mean of every metric, the median and least Dice, and the share of Dice under 0.5."""
    summary = {}
    for protocol in PROTOCOLS:
        columns = {name: np.array([row[f"{protocol}_{name}"] for row in rows], dtype=float) for name in METRICS}
        summary[protocol] = {name: float(values.mean()) for name, values in columns.items()} | {
            "dice_median": float(np.median(columns["dice"])),
            "dice_min": float(columns["dice"].min()),
            "share_under_half": float((columns["dice"] < 0.5).mean()),
        }
    return summary


def summary_table(summary: dict[str, dict[str, float]], count: int) -> str:
    """The summary as text for a terminal. Hausdorff and surface distances are in pixels."""
    columns = ("dice", "dice_median", "dice_min", "share_under_half", "iou", "hm", "xor", "hd95", "asd")
    heads = ("dice", "median", "min", "<0.5", "iou", "hm", "xor", "hd95", "asd")
    lines = [f"{count} image(s), mean unless said  " + "".join(f"{head:>8}" for head in heads)]
    notes = {"oracle": "oracle (sees the truth)", "blind": "blind (no truth)"}
    for protocol in PROTOCOLS:
        values = "".join(f"{summary[protocol][column]:8.3f}" for column in columns)
        lines.append(f"{notes[protocol]:<{len(lines[0]) - 8 * len(heads)}}{values}")
    return "\n".join(lines)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV text with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _image_files(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of images")
    found = sorted(path for path in _listing(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"{folder}: no image in it; accepted are {', '.join(IMAGE_SUFFIXES)}")
    return found


def _listing(folder: Path) -> Iterable[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
