"""Dice against seconds an image, over sizes and patiences.

``python -m msformer_fast.benchmarks.frontier IMAGES MASKS``

A run with a long patience holds all shorter ones, since it takes the same steps: the loop runs once an image and size,
and what each patience would have left is kept in ``--runs``. Called again, nothing is run that is there; so another
rule, or a rule that was changed, is scored at once.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from msformer_fast import segmentation
from msformer_fast.errors import InputError
from msformer_fast.evaluate import PROTOCOLS, column, find_pairs, score_pair, split_pairs
from msformer_fast.evaluate_prompts import PROMPTS, prompt_names
from msformer_fast.files import check_output_folder, write_text
from msformer_fast.presets import PRESETS
from msformer_fast.process import set_threads
from msformer_fast.runs import KEPT_SCORES, Run, label_dtype, loop_settings, network_and_image, run_path, save_run
from msformer_fast.self_guiding import Iteration, StopRule, _largest, self_guide
from msformer_fast.statistics import bootstrap_interval

#: What the choice of a preset was made among.
SIZES, PATIENCES = (65, 97, 129, 193, 257), (2, 3, 4, 5, 6, 7, 8)
# Iterations at most, so that patience alone ends the loop.
_MOST = PRESETS["paper"].max_iterations


def stop(history: Sequence[Iteration], patience: int, min_labels: int) -> tuple[int, str]:
    """The iteration behind which a loop of this patience stops, and why: as :func:`msformer_fast.self_guide` does."""
    rule = StopRule(min_labels, patience)
    for each in history:
        reason = rule(each.index, each.label_count)
        if reason is not None:
            return each.index, reason
    return history[-1].index, "max_iterations"


class Prefixes:
    """Stands for :func:`msformer_fast.runs.guide_image`: runs the loop once and keeps what each patience leaves.

    Args:
        folder: of the runs.
        patiences: the longest is that of the settings.
    """

    def __init__(self, folder: Path, patiences: Sequence[int]) -> None:
        self._folder, self._patiences = folder, patiences

    def __call__(
        self,
        seen: NDArray[np.float32],
        settings: dict[str, Any],
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        callback: object,
    ) -> Run:
        model, x = network_and_image(seen, settings, seed, device, dtype)
        unsigned = label_dtype(settings["clusters"])
        maps: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []

        def keep(module: object, given: object, scores: Any) -> None:
            labels = scores.logits.detach().argmax(1)
            kept = _largest(scores.logits.detach(), labels, KEPT_SCORES)
            maps.append((labels[0].cpu().numpy().astype(unsigned), *(each[0].cpu().numpy() for each in kept)))

        model.register_forward_hook(keep)
        guided = self_guide(model, x, **(loop_settings(settings) | {"capture": "never"}))  # hooks are not captured
        longest: Run | None = None
        for patience in sorted({*self._patiences, settings["patience"]}):
            if patience > settings["patience"]:  # this run is too short to tell
                break
            last, why = stop(guided.history, patience, settings["min_labels"])
            history = guided.history[: last + 1]
            # The closing forward costs about a third of an iteration.
            seconds = history[-1].seconds * (1 + 1 / (3 * len(history)))
            longest = Run(*maps[last + 1], history, why, seconds)
            save_run(run_path(self._folder, seen, {**settings, "patience": patience}, seed), longest)
        assert longest is not None
        return longest


def measure(
    pairs: Sequence[tuple[Path, Path]],
    *,
    rule: str,
    sizes: Sequence[int],
    patiences: Sequence[int],
    runs: Path,
    prompts: Sequence[str],
) -> list[dict[str, Any]]:
    """One row an image, size and patience: the Dice of every protocol, iterations, and seconds of loop and choice."""
    rows = []
    for size in sizes:
        for image, mask in pairs:
            # The longest first: it fills in what is missing of the others.
            for patience in sorted(patiences, reverse=True):
                with mock.patch.object(segmentation, "guide_image", Prefixes(runs, patiences)):
                    result = segmentation.segment(
                        image, size=size, patience=patience, max_iterations=_MOST, rule=rule, runs=runs
                    )
                scored = score_pair(result, image, mask, (), prompts)
                row = {"image": image.name, "size": size, "patience": patience, "iterations": scored["iterations"]}
                row |= {name: scored[column(name, "dice")] for name in (*PROTOCOLS, *prompts)}
                rows.append(row | {"seconds": result.runs[0].seconds})
            print(f"{size} {image.name}", file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]], protocols: Sequence[str]) -> str:
    """Mean Dice with its interval, iterations and seconds by size and patience, as Markdown."""
    lines = ["| size | patience | iterations | seconds of the loop | " + " | ".join(protocols) + " |"]
    lines.append("| --- " * (4 + len(protocols)) + "|")
    for size, patience in dict.fromkeys((row["size"], row["patience"]) for row in rows):
        group = [row for row in rows if (row["size"], row["patience"]) == (size, patience)]
        cells = [str(size), str(patience)]
        cells += [f"{np.mean([row[name] for row in group]):.1f}" for name in ("iterations", "seconds")]
        for protocol in protocols:
            each = bootstrap_interval([row[protocol] for row in group])
            cells.append(f"{each.value:.3f} [{each.low:.3f}, {each.high:.3f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m msformer_fast.benchmarks.frontier", description=__doc__)
    add = parser.add_argument
    add("images", metavar="IMAGES", help="folder of images")
    add("masks", metavar="MASKS", help="folder of masks of the same names")
    add("--rule", default="auto", help="(%(default)s)")
    add("--split", default="all", help="odd: to choose on, even: to report on (%(default)s)")
    add("--first", type=int, help="of the split, so many images alone")
    add("--sizes", type=int, nargs="+", default=list(SIZES))
    add("--patience", type=int, nargs="+", default=list(PATIENCES))
    add("--prompts", nargs="*", default=[], help="point, box: the prompted protocol too")
    add("--threads", type=int, help="of the CPU")
    add("--runs", default="frontier/runs", help="folder of the runs (%(default)s)")
    add("-o", "--output", default="frontier", metavar="DIR", help="folder of frontier.csv (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        set_threads(arguments.threads)
        prompt_names(arguments.prompts)
        pairs = split_pairs(find_pairs(arguments.images, arguments.masks), arguments.split)[: arguments.first]
        rows = measure(
            pairs,
            rule=arguments.rule,
            sizes=arguments.sizes,
            patiences=arguments.patience,
            runs=check_output_folder(arguments.runs),
            prompts=arguments.prompts,
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(check_output_folder(arguments.output) / "frontier.csv", text.getvalue())
    except InputError as error:
        print(f"frontier: error: {error}", file=sys.stderr)
        return 2
    order = (*(name for name in reversed(PROTOCOLS)), *(name for name in PROMPTS if name in arguments.prompts))
    print(table(rows, order))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
