"""Make the constants of :mod:`msformer_fast.foreground.calibration`, its plot and its figures, from evaluations.

    python -m msformer_fast.benchmarks.calibrate degrade IMAGES MASKS -o HARD
    msformer-fast evaluate HARD/images HARD/masks --rule lungs-ct -o hard
    python -m msformer_fast.benchmarks.calibrate fit --plot docs/calibration.svg easy hard ...

The folders are those that ``msformer-fast evaluate`` wrote, of images with either rule, whole or degraded; with
``--prompts point clicks box`` the curves of prompts are fitted as well. Images of odd places by name are fitted, those
of even places judged, as ``--split`` has it.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.evaluate import find_pairs
from msformer_fast.files import check_output_folder
from msformer_fast.foreground.calibration import (
    DOUBTFUL,
    Raw,
    calibrated,
    curve_of,
    expected_dice,
    features,
)
from msformer_fast.foreground.doubt import LEFT
from msformer_fast.formats.plain import read_image, read_mask
from msformer_fast.images import MIN_SIDE, write_png
from msformer_fast.look import GREY, PALETTE

# Under this Dice a mask should be marked, over that it should not.
BAD, GOOD = 0.8, 0.9
_BINS = 5
# Prompts with a curve for each kind of image, whatever rule had a say.
_BY_KIND = ("box", "clicks")
# Share of good masks that may be marked.
_MARKED = 0.1
# Weight of the penalty on large weights.
_SHRINK = 0.01
# Colour and shape of each rule's points.
_LOOKS = {
    "lesion": (PALETTE["vermilion"], "s"),
    "lungs-xray": (PALETTE["blue"], "o"),
    "lungs-ct": (PALETTE["bluish green"], "^"),
}


@dataclass(frozen=True)
class Judged:
    """A mask, what was known of it, and how good it is."""

    rule: str
    raw: Raw
    confidence: float
    doubtful: bool
    dice: float
    odd: bool
    misfit: bool


def read_folder(folder: Path) -> list[Judged]:
    """The masks of one evaluation whose rule made candidates."""
    with open(folder / "evaluation.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    judged = []
    for place, row in enumerate(sorted(rows, key=lambda row: row["image"])):
        record = json.loads((folder / f"{Path(row['image']).stem}.json").read_text(encoding="utf-8"))["foreground"]
        if not record["candidates"]:
            continue
        raw = Raw(record["agreement"], sum(record["terms"].values()))
        strange = "(doubtful: " in record["reason"]
        # The confidence anew, so that new weights need no new run.
        confidence = calibrated(row["rule"], raw) * (LEFT if strange else 1.0)
        doubtful = strange or confidence < DOUBTFUL[row["rule"]] or "The only large dark part" in record["reason"]
        odd = place % 2 == 0
        judged.append(Judged(row["rule"], raw, confidence, doubtful, float(row["blind_dice"]), odd, strange))
        if row.get("point_rule"):
            judged.append(_of_prompt(row, "point", curve_of("prompt", row["point_rule"]), odd))
        for prompt in _BY_KIND:
            if float(row.get(f"{prompt}_agreement") or 0) > 0:
                judged.append(_of_prompt(row, prompt, curve_of(prompt, row["rule"]), odd))
    return judged


def _of_prompt(row: dict[str, str], prompt: str, name: str, odd: bool) -> Judged:
    """The mask of one click by a vote with a rule, of several clicks, or of a box."""
    raw = Raw(float(row[f"{prompt}_agreement"]), 0.0)
    confidence = calibrated(name, raw)
    return Judged(name, raw, confidence, confidence < DOUBTFUL[name], float(row[f"{prompt}_dice"]), odd, False)


def degrade(image: NDArray[Any], mask: NDArray[np.bool_], number: int) -> tuple[Any, Any]:
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
        part = max(MIN_SIDE, int(rng.uniform(0.45, 0.65) * side))
        row, column = (int(rng.integers(0, length - part + 1)) for length in image.shape[:2])
        inside = mask[row : row + part, column : column + part]
        if inside.mean() > 0.02:
            image, mask = image[row : row + part, column : column + part], inside
    else:
        image = 0.5 + (image - 0.5) * rng.uniform(0.05, 0.15) + rng.normal(0, 0.02, image.shape[:2])[..., None]
    return np.clip(image, 0, 1), mask


def write_degraded(images: str, masks: str, output: str, turn: int = 0) -> None:
    """A degraded copy of every pair of two folders, in ``images`` and ``masks`` of another; ``turn`` ways further."""
    folders = [check_output_folder(Path(output) / name) for name in ("images", "masks")]
    for number, (image, mask) in enumerate(find_pairs(images, masks)):
        pixels = read_image(image)
        made = degrade(pixels, read_mask(mask, pixels.shape[:2]), number + turn)
        write_png(folders[0] / f"{image.stem}.png", np.rint(made[0] * 255).astype(np.uint8))
        write_png(folders[1] / f"{image.stem}.png", made[1])


def fit(judged: Sequence[Judged]) -> NDArray[np.float64]:
    """Weights (3,) of the logistic curve: least cross-entropy with Dice as the share of hits, and small weights."""
    from scipy.optimize import minimize

    x = np.stack([features(each.raw) for each in judged])  # [N, 3]
    dice = np.array([each.dice for each in judged])

    def loss(weights: NDArray[np.float64]) -> float:
        logits = x @ weights
        return float((np.logaddexp(0, logits) - dice * logits).sum() + _SHRINK * (weights[1:] ** 2).sum())

    bounds = [(None, None), (0, None), (0, None)]  # agreement and score never speak against a mask
    return np.asarray(minimize(loss, np.array([0.0, 1.0, 0.0]), bounds=bounds).x)


def figures(judged: Sequence[Judged]) -> dict[str, float]:
    """Expected calibration error, and how well the mark tells bad masks from good ones."""
    if not judged:
        return {"masks": 0}
    dice = np.array([each.dice for each in judged])
    expected = np.array([each.confidence for each in judged])
    doubtful = np.array([each.doubtful for each in judged])
    bins = np.minimum((expected * _BINS).astype(int), _BINS - 1)
    gaps = [(bins == each).mean() * abs((expected - dice)[bins == each].mean()) for each in np.unique(bins)]
    bad, good = dice < BAD, dice > GOOD
    return {
        "masks": len(dice),
        "calibration error": float(sum(gaps)),
        "bad": int(bad.sum()),
        "bad and marked": int((bad & doubtful).sum()),
        "good": int(good.sum()),
        "good and marked": int((good & doubtful).sum()),
    }


def plot(judged: Sequence[Judged], path: Path) -> None:
    """Expected Dice against Dice, a point a mask; an open marker is one marked doubtful."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axes.axhline(BAD, color=GREY, linewidth=0.6, linestyle=":")
    for rule, (colour, marker) in _LOOKS.items():
        for doubtful in (False, True):
            chosen = [each for each in judged if each.rule == rule and each.doubtful == doubtful]
            axes.scatter(
                [each.confidence for each in chosen],
                [each.dice for each in chosen],
                s=24,
                marker=marker,
                edgecolors=colour,
                facecolors="none" if doubtful else colour,
                linewidths=1,
                label=None if doubtful else rule,
            )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence: expected Dice", ylabel="Dice with the truth", aspect="equal")
    axes.legend(loc="lower right", title="open: marked doubtful")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    sub = commands.add_parser("degrade", help="write hard copies of images")
    sub.add_argument("images")
    sub.add_argument("masks")
    sub.add_argument("-o", "--output", required=True)
    sub.add_argument(
        "--turn",
        type=int,
        default=0,
        help="1: blur or lost contrast for images of odd places, whose turn is noise or a crop, and vice versa",
    )
    sub = commands.add_parser("fit", help="print weights and figures")
    sub.add_argument("folders", nargs="+", type=Path)
    sub.add_argument("--plot", type=Path, help="PNG or SVG to draw of the even half")
    arguments = parser.parse_args(argv)
    if arguments.command == "degrade":
        write_degraded(arguments.images, arguments.masks, arguments.output, arguments.turn)
        return
    judged = [each for folder in arguments.folders for each in read_folder(folder)]
    curves = [curve_of(prompt, rule) for prompt in ("prompt", "clicks", "box") for rule in _LOOKS]
    for rule in (*_LOOKS, *curves):
        of_rule = [each for each in judged if each.rule == rule]
        # What the rule says it was not made for is marked already, and no part of its curve.
        odd = [each for each in of_rule if each.odd and not each.misfit]
        if odd:
            weights = fit(odd)
            good = [expected_dice(each.raw, weights) for each in odd if each.dice > GOOD]
            limit = np.floor(100 * np.quantile(good, _MARKED)) / 100
            print(f'    "{rule}": ({", ".join(f"{weight:.3f}" for weight in weights)}),  # doubtful under {limit:.2f}')
        for name, half in (("odd", True), ("even", False)):
            print(f"    {rule}, {name}:", figures([each for each in of_rule if each.odd == half]))
    for name, half in (("odd", True), ("even", False)):
        print(f"    all, {name}:", figures([each for each in judged if each.odd == half and each.rule in _LOOKS]))
    if arguments.plot:
        plot([each for each in judged if not each.odd], arguments.plot)


if __name__ == "__main__":
    main()
