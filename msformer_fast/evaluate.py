"""Scores of a folder of images against a folder of ground-truth masks: all protocols, and methods to compare with.

Masks are compared at the size of the image on disk.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.evaluate_prompts import PROMPTS, prompt_names, score_prompts
from msformer_fast.files import show
from msformer_fast.foreground import CHEST_RULES, foreground
from msformer_fast.foreground.evidence import darkness_channel
from msformer_fast.formats.plain import read_image, read_mask
from msformer_fast.margin import find_margin
from msformer_fast.metrics import score_blind, score_oracle
from msformer_fast.names import distinct_names
from msformer_fast.own_outputs import is_output
from msformer_fast.segmentation import Segmentation
from msformer_fast.simple_methods import METHODS as SIMPLE_METHODS
from msformer_fast.simple_methods import simple_mask
from msformer_fast.statistics import bootstrap_interval, paired_test

Row: TypeAlias = dict[str, Any]

PROTOCOLS = ("oracle", "blind")
SPLITS = ("all", "odd", "even")

#: The foreground's rule on the image's grey levels, without any network: what MS-Former adds is the difference.
RULE_ALONE = "rule alone"
#: Other methods, none of which sees the truth either.
METHODS = (*SIMPLE_METHODS, RULE_ALONE)
METRICS = ("dice", "iou", "hm", "xor", "hd95", "asd")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# No image's record may be called as the table is.
_TABLES = "evaluation"

#: What data sets put behind the image's stem in the name of its mask.
MASK_ENDINGS = ("", "_mask", "_segmentation", "_lesion")


def find_pairs(images: str | Path, masks: str | Path) -> list[tuple[Path, Path]]:
    """Image and mask paths, matched by stem, in the order of the names; every file is read once to check it.

    The mask of ``x.png`` is called ``x`` or ``x_mask`` and so on, or by the whole name, ``x.png_mask``; of two that
    could be meant the one with the image's own suffix. Outputs of this package among the images are left out.

    Raises:
        InputError: a folder is missing or holds no image, an image has no mask, two masks could be meant or two images
            would have one mask, a file cannot be read, or a mask has another size than its image.
    """
    masks_of: dict[str, list[Path]] = {}
    for path in _image_files(masks):
        masks_of.setdefault(path.stem, []).append(path)
    pairs: list[tuple[Path, Path]] = []
    image_of: dict[Path, Path] = {}
    found = [path for path in _image_files(images) if not is_output(str(path))]
    if not found:
        raise InputError(f"{show(images)}: no image in it but outputs of this package; give a folder of images")
    for image in found:
        mask = _mask_of(image, masks_of)
        if mask is None:
            raise InputError(f"{show(image)}: no mask of that name in {show(masks)}; name it {show(image.stem)}.png")
        other = image_of.setdefault(mask, image)
        if other != image:
            raise InputError(
                f"{show(mask)}: would be the mask of both {show(other)} and {show(image)}; name one for each, "
                f"{show(other.name)}_mask.png and {show(image.name)}_mask.png, or take one of the images away"
            )
        read_mask(mask, read_image(image).shape[:2])
        pairs.append((image, mask))
    return pairs


def _mask_of(image: Path, masks_of: Mapping[str, list[Path]]) -> Path | None:
    for name in (image.name, image.stem):
        for ending in MASK_ENDINGS:
            found = masks_of.get(name + ending, [])
            if len(found) > 1:
                found = [path for path in found if path.suffix.lower() == image.suffix.lower()] or found
            if len(found) > 1:
                raise InputError(f"{show(image)}: {' and '.join(map(show, found))} could be its mask; take one away")
            if found:
                return found[0]
    return None


def output_names(images: Sequence[Path]) -> list[str]:
    """What the outputs of each image of a folder are called: by its stem, or its whole name where two share one."""
    return distinct_names([path.stem for path in images], [path.name for path in images], taken=[_TABLES])


def count_outputs(folder: str | Path) -> int:
    """How many files of a folder of images are left out, since this package wrote them."""
    return sum(is_output(str(path)) for path in _image_files(folder))


def split_pairs(pairs: Sequence[tuple[Path, Path]], split: str) -> list[tuple[Path, Path]]:
    """Half of the pairs, to choose settings on one half and to report on the other; or all.

    ``"odd"``: the first, third, ... by name; ``"even"``: the second, fourth, ...; ``"all"``.

    Raises:
        InputError: another ``split``, or nothing is left.
    """
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}; accepted is one of {', '.join(SPLITS)}")
    kept = list(pairs[{"odd": slice(0, None, 2), "even": slice(1, None, 2), "all": slice(None)}[split]])
    if not kept:
        raise InputError(f"split: {split!r} of {len(pairs)} image(s) leaves none")
    return kept


def score_pair(
    result: Segmentation,
    image: str | Path,
    mask: str | Path,
    methods: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> Row:
    """One row of the table: the protocols' scores of one image, and those of other methods on the same image.

    ``methods``: names in :data:`METHODS`. ``prompts``: of :data:`msformer_fast.evaluate_prompts.PROMPTS`.
    """
    truth = read_mask(mask, result.mask.shape)
    scored = {"oracle": score_oracle(result.labels, truth), "blind": score_blind(result.mask, truth)}
    pixels = read_image(image) if methods or prompts else None
    for name in methods:
        assert pixels is not None
        scored[name] = score_blind(_other_mask(name, pixels, result.foreground.rule), truth)
    sure: Row = {}
    if pixels is not None:
        of_prompts, sure = score_prompts(result, pixels, truth, prompts, Path(image).name)
        scored |= of_prompts
    row: Row = {column(who, name): value for who, scores in scored.items() for name, value in scores.as_dict().items()}
    return (
        row
        | sure
        | {
            "confidence": round(result.foreground.confidence, 4),
            "doubtful": result.foreground.doubtful,
            "iterations": len(result.history),
            "label_count": int(np.unique(result.labels).size),
            "stopped": result.stopped,
            "rule": result.foreground.rule,
            "seconds": round(result.seconds, 3),
        }
    )


def column(method: str, metric: str) -> str:
    """The name of a column of the table."""
    return f"{method.replace(' ', '_')}_{metric}"


def _other_mask(name: str, image: NDArray[np.float32], rule: str) -> NDArray[np.bool_]:
    if name != RULE_ALONE:
        return simple_mask(image, name, "lungs" if rule in CHEST_RULES else rule)
    # As for the network, without a margin.
    margin = find_margin(image)
    inside = image if margin is None else image[margin.inside(image.shape)]
    # Grey levels in place of clusters: whatever the network adds to the rule is missing.
    levels = np.rint(darkness_channel(inside.astype(np.float64)) * 255).astype(np.uint8)
    mask = foreground(levels, inside, rule).mask
    return mask if margin is None else margin.pad(mask, False)


def evaluate(
    pairs: Sequence[tuple[Path, Path]],
    run: Callable[[Path], Segmentation],
    report: Callable[[Row], object] | None = None,
    methods: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> list[Row]:
    """Segment every image with ``run`` and score it; ``report`` sees each row as it comes.

    ``methods``: others to score on the same images, names in :data:`METHODS`. ``prompts``: likewise, what is taken from
    the truth for the prompted protocol, of :data:`msformer_fast.evaluate_prompts.PROMPTS`.
    """
    rows = []
    for image, mask in pairs:
        rows.append({"image": image.name, **score_pair(run(image), image, mask, methods, prompts)})
        if report is not None:
            report(rows[-1])
    return rows


def summarise(
    rows: Sequence[Row], methods: Sequence[str] = (), prompts: Sequence[str] = (), *, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """For each protocol and method: the mean of every metric with its bootstrap interval, and how it compares.

    Returns:
        By name: the mean of every metric under the metric's name, ``intervals`` (low, high) of these means,
        ``dice_median``, ``dice_min``, ``share_under_half`` (of Dice under 0.5) with ``share_under_half_interval``; and
        but for ``blind`` itself, ``blind_minus_this``: mean difference in Dice, its interval, the p-value of
        Wilcoxon's signed-rank test (``None`` with fewer than two images). Methods with a prompt are compared with the
        same prompt's own protocol, as ``point_minus_this`` and ``box_minus_this``.
    """
    summary: dict[str, dict[str, Any]] = {}
    for who in (*PROTOCOLS, *methods, *prompt_names(prompts)):
        values = {name: np.array([row[column(who, name)] for row in rows], dtype=float) for name in METRICS}
        intervals = {name: bootstrap_interval(each, level=level) for name, each in values.items()}
        missed = bootstrap_interval((values["dice"] < 0.5).astype(float), level=level)
        entry: dict[str, Any] = {name: interval.value for name, interval in intervals.items()}
        entry |= {
            "intervals": {name: [interval.low, interval.high] for name, interval in intervals.items()},
            "dice_median": float(np.median(values["dice"])),
            "dice_min": float(values["dice"].min()),
            "share_under_half": missed.value,
            "share_under_half_interval": [missed.low, missed.high],
        }
        against = next((prompt for prompt in prompts if who.startswith(prompt)), "blind")
        if who != against:
            entry[f"{against}_minus_this"] = None
            if len(rows) > 1:
                ours = np.array([row[column(against, "dice")] for row in rows], dtype=float)
                test = paired_test(ours, values["dice"], level=level)
                low_high = [test.difference.low, test.difference.high]
                entry[f"{against}_minus_this"] = {
                    "dice": test.difference.value,
                    "interval": low_high,
                    "p_value": test.p_value,
                }
        summary[who] = entry
    return summary


def summary_table(summary: dict[str, dict[str, Any]], count: int) -> str:
    """The summary as text for a terminal. Hausdorff and surface distances are in pixels."""
    notes = {
        "blind": "MS-Former, blind (no truth)",
        "oracle": "MS-Former, oracle (sees the truth)",
        RULE_ALONE: "rule alone, no network",
        "point": "MS-Former, one point",
        "clicks": "MS-Former, a click in each part",
        "box": "MS-Former, a box",
    }
    prompted = [name for name in summary if name.partition(" ")[0] in PROMPTS]
    order = ["blind", *(name for name in summary if name not in (*PROTOCOLS, *prompted)), "oracle", *prompted]
    width = max(len(notes.get(name, name)) for name in order)
    heads = ("median", "<0.5", "hm", "xor", "hd95")
    lines = [f"{'':<{width}}  {'dice [95 %]':<20}" + "".join(f"{head:>8}" for head in heads) + "   paired difference"]
    for name in order:
        entry = summary[name]
        low, high = entry["intervals"]["dice"]
        text = f"{notes.get(name, name):<{width}}  {entry['dice']:.3f} [{low:.3f} {high:.3f}] "
        columns = ("dice_median", "share_under_half", "hm", "xor", "hd95")
        text += "".join(f"{entry[each]:8.3f}" for each in columns)
        found = [(key, value) for key, value in entry.items() if key.endswith("_minus_this") and value]
        for key, against in found:
            low, high = against["interval"]
            text += f"   {key.partition('_')[0]} minus this {against['dice']:+.3f} [{low:+.3f} {high:+.3f}]"
            text += f" p={against['p_value']:.2g}"
        lines.append(text)
    lines.append(
        f"{count} image(s); means with the bootstrap's 95 % interval, paired differences of Dice, Wilcoxon's p. The "
        "oracle chooses and crops with the truth."
    )
    return "\n".join(lines)


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """The rows by blind Dice, lowest first."""
    return sorted(rows, key=lambda row: float(row[column("blind", "dice")]))


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV text with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _image_files(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{show(folder)}: no such folder; give a folder of images")
    found = sorted(path for path in _listing(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"{show(folder)}: no image in it; accepted are {', '.join(IMAGE_SUFFIXES)}")
    return found


def _listing(folder: Path) -> Iterable[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{show(folder)}: cannot be listed ({error.strerror}); check its permissions") from error
