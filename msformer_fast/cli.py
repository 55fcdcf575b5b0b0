"""The command line: ``msformer-fast segment | evaluate | demo | bench | doctor | parity``."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msformer_fast.benchmarks.options import add_arguments
from msformer_fast.cohort.options import add_cohort_arguments
from msformer_fast.errors import BackendError, DivergenceError, InputError, out_of_memory
from msformer_fast.options import add_output, add_settings, apply_preset, run_one, settings_of
from msformer_fast.presets import preset_name
from msformer_fast.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    0: done. 1: the work failed (a parity beyond its bound, a loss that diverged, some images of a folder). 2: the input
    cannot be used. 130: interrupted.
    """
    _show_every_name()
    arguments = _parser().parse_args(argv)
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    try:
        if hasattr(arguments, "preset"):
            apply_preset(arguments)
        _prepare_process(arguments)
        code: int = arguments.run(arguments)
        return code
    except (InputError, BackendError) as error:
        return _fail(error, 2)
    except DivergenceError as error:
        return _fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _fail("not enough memory for this size; try a smaller --size or --channels", 2)
    except OSError as error:
        if error.errno == errno.EPIPE:
            # The reader of a pipe has left; Python must not complain about it once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}; nothing was written in part", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written in part", 130)


def _show_every_name() -> None:
    """Names of files may hold what a terminal's encoding does not: then they are shown with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _prepare_process(arguments: argparse.Namespace) -> None:
    """Allocator and threads, before the first tensor: this process is ours."""
    from msformer_fast.process import keep_freed_memory, set_threads

    if arguments.run is _bench:  # before torch is imported: its profiler warns of memory that is older than itself
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if hasattr(arguments, "threads") and arguments.run is not _segment:  # it sees to that itself, in its workers too
        if getattr(arguments, "allocator", "keep") == "keep":
            keep_freed_memory()
        set_threads(arguments.threads)


def _fail(message: object, code: int) -> int:
    print(f"msformer-fast: error: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def _segment(arguments: argparse.Namespace) -> int:
    from msformer_fast.cohort.command import run

    return run(arguments)


def _evaluate(arguments: argparse.Namespace) -> int:
    from msformer_fast.evaluate import (
        METHODS,
        column,
        count_outputs,
        evaluate,
        find_pairs,
        output_names,
        split_pairs,
        summarise,
        summary_table,
        to_csv,
    )
    from msformer_fast.evaluate_prompts import prompt_names
    from msformer_fast.evaluation_sheet import evaluation_sheet
    from msformer_fast.files import check_output_folder, write_json, write_text
    from msformer_fast.images import write_png
    from msformer_fast.outputs import output_paths, refuse_existing, save_segmentation
    from msformer_fast.simple_methods import missing_requirement

    every = find_pairs(arguments.images, arguments.masks)
    # By all of the images, so that both halves may go into one folder.
    names = dict(zip((image for image, _ in every), output_names([image for image, _ in every]), strict=True))
    pairs = split_pairs(every, arguments.split)
    prompts = tuple(arguments.prompts)
    prompt_names(prompts)
    wanted = METHODS if arguments.methods is None else tuple(arguments.methods)
    for name in wanted:
        if name not in METHODS:
            raise InputError(f"methods: got {name!r}; accepted are {', '.join(METHODS)}")
    missing = {name: why for name in wanted if (why := missing_requirement(name)) is not None}
    if missing and arguments.methods is not None:
        raise InputError(next(iter(missing.values())))
    methods = tuple(name for name in wanted if name not in missing)
    folder = check_output_folder(arguments.output)
    if arguments.runs is None:
        arguments.runs = str(folder / "runs")
    tables = [folder / "evaluation.csv", folder / "evaluation.json", folder / "contact_sheet.png"]
    if not arguments.overwrite:
        refuse_existing(tables + [path for image, _ in pairs for path in output_paths(folder, names[image])])

    def run(image: Path) -> Any:
        result = run_one(image, arguments, image.name)
        save_segmentation(result, image, folder, name=names[image])
        return result

    def report(row: dict[str, Any]) -> None:
        if not arguments.quiet:
            others = "".join(f", {name} {row[column(name, 'dice')]:.3f}" for name in (*methods, *prompts))
            print(
                f"{row['image']:<24} dice: oracle {row['oracle_dice']:.3f}, blind {row['blind_dice']:.3f}{others}   "
                f"{row['iterations']} iterations, {row['label_count']} labels, {row['seconds']:.1f} s",
                flush=True,
            )

    rows = evaluate(pairs, run, report, methods, prompts)
    summary = summarise(rows, methods, prompts)
    write_text(tables[0], to_csv(rows))
    settings = {**settings_of(arguments), "split": arguments.split}
    settings["preset"] = preset_name(settings)
    write_json(tables[1], {"summary": summary, "images": len(rows), "settings": settings})
    write_png(tables[2], evaluation_sheet(rows, pairs, folder, names))
    print(summary_table(summary, len(rows)))
    print(f"preset: {settings['preset']}")
    for why in missing.values():
        print(f"left out: {why}")
    if ours := count_outputs(arguments.images):
        print(f"left out: {ours} files that this package wrote")
    print(tables[0], tables[2], sep="\n")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from msformer_fast import phantom
    from msformer_fast.files import check_output_folder
    from msformer_fast.formats.plain import read_image
    from msformer_fast.images import write_png
    from msformer_fast.metrics import score_blind, score_oracle
    from msformer_fast.outputs import save_segmentation
    from msformer_fast.overlay import panel

    folder = check_output_folder(arguments.output)
    size = arguments.size
    image, truth = phantom.make(arguments.kind, (size, size), arguments.seed)
    source = folder / f"phantom_{arguments.kind}.png"
    write_png(source, (image * 255 + 0.5).astype("uint8"))
    write_png(folder / f"phantom_{arguments.kind}_truth.png", truth)
    result = run_one(source, arguments, source.name)
    save_segmentation(result, source, folder)
    picture = folder / f"phantom_{arguments.kind}_panel.png"
    write_png(picture, panel(read_image(source), result.labels, result.mask))
    print(f"image, clusters and mask side by side: {picture}")
    print(
        f"Dice of the mask (no ground truth used): {score_blind(result.mask, truth).dice:.3f}; "
        f"of the best cluster, cropped (authors' protocol, sees the truth): "
        f"{score_oracle(result.labels, truth).dice:.3f}"
    )
    print(f"{len(result.history)} iterations, {result.seconds:.1f} s at {size} x {size} pixels")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from msformer_fast.benchmarks.command import run

    return run(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from msformer_fast.doctor import report

    print(report())
    return 0


def _parity(arguments: argparse.Namespace) -> int:
    import torch

    from msformer_fast.parity import compare

    rows = compare(
        arguments.file, backend=arguments.backend, dtype=getattr(torch, arguments.dtype), device=arguments.device
    )
    for row in rows:
        bound = "not judged" if row.bound is None else f"bound {row.bound:.0e}"
        verdict = "ok" if row.passed else "BEYOND"
        print(f"{row.name:<48} {row.error:9.2e}   {bound:<12} {verdict}")
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows)} quantities, {failed} beyond the bound")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="msformer-fast", description="Segment medical images without labels, with MS-Former (MIDL 2023)."
    )
    parser.add_argument("--version", action="version", version=f"msformer-fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command("segment", _segment, "Segment images: mask, label map, overlay and a JSON record of each.")
    add_cohort_arguments(sub)
    add_settings(sub)

    sub = command("evaluate", _evaluate, "Segment a folder of images and score it against ground-truth masks.")
    sub.add_argument("images", metavar="IMAGES", help="folder of images")
    sub.add_argument("masks", metavar="MASKS", help="folder of masks of the same names")
    add_output(sub, "evaluation")
    sub.add_argument(
        "--split", default="all", help="odd: the 1st, 3rd ... image by name, even: the others; to tune and report on"
    )
    sub.add_argument(
        "--methods",
        nargs="*",
        metavar="METHOD",
        help="to compare with: otsu, 2-means, 'gaussian mixture', slic, 'rule alone' (default: all; none: no names)",
    )
    sub.add_argument(
        "--prompts",
        nargs="*",
        default=(),
        metavar="PROMPT",
        help="what to take from the truth for the prompted protocol: point (its most inner pixel), clicks (that of "
        "each of its parts), box (default: none)",
    )
    add_settings(sub)

    sub = command("demo", _demo, "Draw a test image, segment it and say the Dice.")
    sub.add_argument("--kind", choices=("lesion", "chest", "ct"), default="lesion", help="what to draw (%(default)s)")
    sub.add_argument("-o", "--output", default="msformer-fast-demo", metavar="DIR", help="folder (%(default)s)")
    add_settings(sub)

    sub = command("bench", _bench, "Measure every op, the step and an image on this machine, against its rivals.")
    add_arguments(sub)

    command("doctor", _doctor, "Versions, devices, and the backend that each op would run and why.")

    sub = command("parity", _parity, "Compare the network with a recorded run of the authors' code.")
    sub.add_argument("file", metavar="FILE.npz", help="the recorded run")
    sub.add_argument("--backend", help="triton, torch or reference (default: the fastest that can run)")
    sub.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="(%(default)s)")
    sub.add_argument("--device", default="cpu", help="(%(default)s)")
    return parser
