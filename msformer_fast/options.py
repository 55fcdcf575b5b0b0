"""Options that several commands share, and what they mean to :func:`msformer_fast.segment`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msformer_fast.presets import DEFAULT, preset

# As an option's value, where ``None`` means that it was not given. No patience that is accepted.
NEVER = -(2**31)


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``segment`` that the options name."""
    names = "rule size seed seeds runs patience max_iterations min_labels learning_rate weights channels clusters depth"
    names += " device precision memory cross_scale backend capture"
    return {name: getattr(arguments, name) for name in names.split()}


def apply_preset(arguments: argparse.Namespace) -> None:
    """Fill in what the preset sets and no option did. Raises InputError for an unknown preset."""
    for name, value in preset(arguments.preset)._asdict().items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.patience == NEVER:
        arguments.patience = None


def run_one(source: Path, arguments: argparse.Namespace, title: str) -> Any:
    from msformer_fast.segmentation import segment

    with progress(arguments, title) as callback:
        return segment(source, callback=callback, **settings_of(arguments))


@contextmanager
def progress(arguments: argparse.Namespace, title: str) -> Iterator[Callable[[Any], None]]:
    """A progress bar with label count and loss, on a terminal only."""
    from tqdm import tqdm

    quiet = arguments.quiet or not sys.stderr.isatty()
    with tqdm(
        total=arguments.max_iterations * arguments.seeds, desc=title, unit="it", disable=quiet, leave=False
    ) as bar:

        def show(iteration: Any) -> None:
            bar.set_postfix(labels=iteration.label_count, loss=f"{iteration.total:.4f}", refresh=False)
            bar.update()

        yield show


def _patience(text: str) -> int:
    """A number of iterations; :data:`NEVER` of that word."""
    return NEVER if text == "never" else int(text)


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("-o", "--output", default=default, metavar="DIR", help="output folder (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs of an earlier run")


def add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rule", default="auto", help="foreground rule: lesion, lungs, lungs-xray, lungs-ct or auto (%(default)s)")
    add(
        "--preset",
        default=DEFAULT,
        help="quick: 129 pixels, at most 10 iterations, patience 3, precision high; paper: 257 pixels, 50 iterations, "
        "no patience, precision highest. Options given beside it count before it (%(default)s)",
    )
    add("--size", type=int, help="longest side that the network sees, in pixels (the preset's)")
    add("--seed", type=int, default=0, help="of the network's parameters (%(default)s)")
    add("--seeds", type=int, default=1, help="runs of the loop, from --seed on, weighed together (%(default)s)")
    add("--runs", metavar="DIR", help="keep each run's maps there, and find them again: other rules at once")
    add("--max-iterations", type=int, help="(the preset's)")
    add("--min-labels", type=int, default=3, help="stop at this many labels or fewer (%(default)s)")
    add(
        "--patience",
        type=_patience,
        metavar="N",
        help="stop when the labels have not become fewer for so many iterations, or never (the preset's)",
    )
    add("--learning-rate", type=float, default=0.1, help="(%(default)s)")
    add("--weights", type=float, nargs=3, metavar=("CLUSTERING", "CONSISTENCY", "STABILITY"), help="(1 1.5 1.3)")
    add("--channels", type=int, default=100, help="embedding width (%(default)s)")
    add("--clusters", type=int, default=100, help="(%(default)s)")
    add("--depth", type=int, default=2, help="blocks in each branch (%(default)s)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add(
        "--precision",
        help="of float32 products: highest, or high for tf32 on a GPU and two parts of bfloat16 on a CPU's matrix unit "
        "(the preset's)",
    )
    add("--memory", default="fast", help="fast, or lean: half the memory for some more time, on the CPU (%(default)s)")
    add("--cross-scale", default="none", help="window: both scales see each other; none: the paper's (%(default)s)")
    add("--threads", type=int, help="of the CPU (default: the cores that this process may use)")
    add("--backend", help="triton, torch or reference (default: the fastest that can run)")
    add("--capture", default="auto", help="replay steps as CUDA graphs: auto, always or never (%(default)s)")
    add("--quiet", action="store_true", help="no progress, results only")
