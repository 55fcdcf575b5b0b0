"""``msformer-fast segment``: one image, or many as a run that can be resumed."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msformer_fast.cohort.job import segment_file
from msformer_fast.cohort.journal import FAILED, Line
from msformer_fast.cohort.list_file import LISTS
from msformer_fast.cohort.plan import free_bytes
from msformer_fast.cohort.python import bytes_of, segment_cohort
from msformer_fast.cohort.summary import CohortSummary
from msformer_fast.cohort.task import Options, Task
from msformer_fast.files import show
from msformer_fast.formats import stem
from msformer_fast.options import progress, settings_of
from msformer_fast.own_outputs import ENDINGS
from msformer_fast.prompts.text import COLUMNS, parse
from msformer_fast.prompts.volume import given_prompt

# Seconds between two lines where no progress bar can be drawn.
_LINE_EVERY = 30.0
_FAILURES_SHOWN = 20
# Arguments of the command alone; all others are options of segment_cohort, by name.
_OF_THE_COMMAND = ("inputs", "output", "quiet", "run", "words", "preset", "point", "not_point", "box")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    window = None if arguments.window is None else (arguments.window[0], arguments.window[1])
    options = Options(
        arguments.axis, window, arguments.dicom_seg, arguments.keep_patient, too_large=arguments.too_large
    )
    options.check()
    prompts = _prompts(arguments)
    single = len(arguments.inputs) == 1 and not _is_many(arguments.inputs[0])
    return _one(arguments, options, prompts) if single else _many(arguments, prompts)


def _prompts(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``segment`` that points and boxes of the command line are; checked."""
    prompts: dict[str, Any] = {}
    for option in ("point", "not_point", "box"):
        name, length = COLUMNS[option]
        given = getattr(arguments, option)
        if given:
            prompts[name] = [list(parse(text, length, option.replace("_", "-"))) for text in given]
    given_prompt(**prompts)
    return prompts


def _is_many(text: str) -> bool:
    """Whether it is a folder, a list or a pattern. A missing file is none: as one image it is said to be missing."""
    from glob import has_magic

    return os.path.isdir(text) or text.lower().endswith(LISTS) or (has_magic(text) and not os.path.lexists(text))


def _one(arguments: argparse.Namespace, options: Options, prompts: dict[str, Any]) -> int:
    from msformer_fast.process import importing, keep_freed_memory, set_threads

    keep_freed_memory()
    with importing():
        set_threads(arguments.threads)
        from msformer_fast.outputs import refuse_existing

    source = Path(arguments.inputs[0])
    name = stem(source)
    folder = Path(arguments.output or ".")
    budget = bytes_of(arguments.max_memory)
    budget = free_bytes() if budget is None else budget
    task = Task(str(source), name, str(folder), settings_of(arguments) | prompts, options, budget)
    if not arguments.overwrite:
        refuse_existing([folder / (name + ending) for ending in ENDINGS])
    with progress(arguments, source.name) as callback:
        paths, line = segment_file(task, callback=callback)
    for path in paths:
        print(path)
    if not arguments.quiet:
        print(f"{line['reason']} ({line.get('stopped', 'done')}, {line['seconds']:.1f} s)", file=sys.stderr)
    return 0


def _many(arguments: argparse.Namespace, prompts: dict[str, Any]) -> int:
    options = {name: value for name, value in vars(arguments).items() if name not in _OF_THE_COMMAND} | prompts
    with _reporting(arguments) as (report, notice):
        summary = segment_cohort(
            arguments.inputs, arguments.output or "results", **options, report=report, notice=notice
        )
    return _conclude(summary, arguments)


def _conclude(summary: CohortSummary, arguments: argparse.Namespace) -> int:
    failures = summary.failures
    for line in failures[:_FAILURES_SHOWN]:
        print(f"failed: {show(line['source'])}: {line['reason']}", file=sys.stderr)
    if len(failures) > _FAILURES_SHOWN:
        print(f"failed: {len(failures) - _FAILURES_SHOWN} more, see the index", file=sys.stderr)
    total = len(summary.lines) + summary.left
    done = len(summary.lines) - len(failures)
    rate = f", {3600 * summary.made / summary.seconds:.0f} images an hour" if summary.made else ""
    print(
        f"{done} of {total} images done ({summary.made} now{rate}), {summary.doubtful} doubtful, "
        f"{len(failures)} failed, {summary.left} left"
    )
    if summary.index.exists():
        print(summary.index)
    if summary.interrupted:
        # What --overwrite began anew is to be gone on with, not begun once more.
        words = [word for word in arguments.words if word not in ("--overwrite", "--no-resume")]
        print(f"interrupted; to go on: msformer-fast {shlex.join(words)}", file=sys.stderr)
        return 130
    return 1 if failures else 0


@contextmanager
def _reporting(
    arguments: argparse.Namespace,
) -> Iterator[tuple[Callable[[Line, int, int], None], Callable[[str], None]]]:
    """A bar with rate and time left on a terminal; elsewhere a line now and then."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    bar: Any = tqdm(unit="image", disable=arguments.quiet or not terminal, smoothing=0.05)
    began = last = time.monotonic()
    failed = 0

    def report(line: Line, through: int, total: int) -> None:
        nonlocal last, failed
        failed += line["status"] == FAILED
        if arguments.quiet:
            return
        if terminal:
            bar.total = total
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            return
        now = time.monotonic()
        if now - last >= _LINE_EVERY or through == total:
            last = now
            each = (now - began) / through
            left = time.strftime("%H:%M:%S", time.gmtime(each * (total - through)))
            print(
                f"{through} of {total} images, {3600 / each:.0f} an hour, {failed} failed, {left} left",
                file=sys.stderr,
                flush=True,
            )

    def notice(sentence: str) -> None:
        if not arguments.quiet:
            tqdm.write(sentence, file=sys.stderr)

    try:
        yield report, notice
    finally:
        bar.close()
