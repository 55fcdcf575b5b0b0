"""A run over many images: what is there, what is done, what is left; it survives whatever happens to it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from msformer_fast.cohort.index import Entry, index_page
from msformer_fast.cohort.journal import DONE, FAILED, SETTINGS, Journal, Line, locked
from msformer_fast.cohort.listing import Found, find_images, output_names
from msformer_fast.cohort.moved import moved_lines, place, same_contents
from msformer_fast.cohort.plan import Plan
from msformer_fast.cohort.ray_engine import RayEngine
from msformer_fast.cohort.results import PARTIAL, record_path, recorded_line, thumbnail_path
from msformer_fast.cohort.seen import Seen
from msformer_fast.cohort.summary import CohortSummary, tell_beginning
from msformer_fast.cohort.task import FREE, Options, Task, prompt_of, stamp
from msformer_fast.cohort.workers import LocalEngine
from msformer_fast.errors import BackendError, DivergenceError, InputError, OutputError
from msformer_fast.files import check_output_folder, plain, show, write_text
from msformer_fast.own_outputs import ENDINGS
from msformer_fast.presets import DEFAULT, PRESETS
from msformer_fast.version import __version__

INDEX = "index.html"
ENGINES = ("local", "ray")
# No image's outputs may be called as the run's own files are.
_RESERVED = (SETTINGS.removesuffix(".json"),)


class Engine(Protocol):
    """What does the tasks."""

    def run(self, tasks: Any, stop: threading.Event) -> Iterator[Line]: ...

    def kill(self) -> None: ...


def run_cohort(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    options: Options | None = None,
    recursive: bool = False,
    resume: bool = True,
    retry_failed: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    report: Callable[[Line, int, int], object] | None = None,
    notice: Callable[[str], object] | None = None,
) -> CohortSummary:
    """What :func:`msformer_fast.segment_cohort` does, with settings and options in two bundles.

    Args:
        inputs: folders, patterns, ``.csv`` lists and files; see :func:`find_images`.
        output: folder; a run that is there is gone on with.
        settings: keyword arguments of :func:`msformer_fast.segment` other than ``callback`` and ``dtype``.
        options: of reading and writing.
        recursive: look into folders below folders.
        resume: refuse a folder with a run instead, where ``False``.
        retry_failed: do the images again that failed before.
        overwrite: begin anew over a run, or over files of other origin.
        jobs: processes at once; ``None`` for 1, or with GPUs as many as their memory and the cores allow.
        threads: of each; ``None`` to divide the cores.
        max_memory: bytes for all processes together; ``None`` for 90 % of what is free.
        engine: ``"local"`` or ``"ray"``. ray_address: of a cluster; ``None`` to start one here.
        report: called with each line, how many images are through, and of how many.
        notice: called with a sentence for people.

    Raises:
        InputError: arguments that cannot be used; another run holds the folder, or a run of other settings is there.
        OutputError: an output cannot be written; all that was done before is kept.
        BackendError: see :func:`msformer_fast.segment`.
    """
    started = time.perf_counter()
    wanted = {"size": PRESETS[DEFAULT].size, **(settings or {})}
    options = options or Options()
    options.check()
    tell = notice or (lambda sentence: None)
    if engine not in ENGINES:
        raise InputError(f"engine: got {engine!r}; accepted is one of {', '.join(ENGINES)}")
    for name, value in (("jobs", jobs), ("threads", threads), ("max_memory", max_memory)):
        if value is not None and value < 1:
            raise InputError(f"{name}: got {value}; accepted is 1 or more")
    listing = find_images([os.fspath(each) for each in inputs], recursive=recursive, leave_out=Path(output))
    # Absolute, as all that goes to other processes and machines: their working folders are others.
    folder = check_output_folder(output).absolute()
    if wanted.get("runs") is not None:
        wanted["runs"] = str(check_output_folder(wanted["runs"]).absolute())
    with locked(folder):
        named = {key: value for key, value in wanted.items() if key not in FREE}
        made_by = {"version": __version__, **named, **vars(options)}
        _refuse_foreign(folder, listing.found, overwrite)
        journal = Journal(folder, made_by, resume=resume, overwrite=overwrite)
        summary = CohortSummary(ignored=listing.ignored, outputs=listing.outputs, index=Path(output) / INDEX)
        run = hashlib.sha256(json.dumps(plain(made_by), sort_keys=True).encode()).hexdigest()[:32]
        tasks = _tasks(listing.found, journal, folder, run, retry_failed, summary, wanted)
        plan = Plan(wanted, jobs, threads, max_memory, len(tasks))
        if engine == "ray":
            machine: Engine = RayEngine(ray_address, jobs, threads)
        else:
            machine = LocalEngine(plan.jobs, plan.threads, plan.budget, plan.with_gpus if jobs is None else None)
        ready = [
            Task(each.path, name, str(folder), {**wanted, **each.prompts}, options, plan.budget, run)
            for each, name in tasks
        ]
        tell_beginning(tell, summary, journal, len(listing.found), len(ready))
        stop = threading.Event()
        try:
            with _on_interrupt(stop, machine, tell):
                seen = Seen(folder)
                for told in machine.run(ready, stop):
                    line = seen.checked(told)
                    journal.add(line)
                    summary.made += line["status"] == DONE
                    summary.failed_now += line["status"] == FAILED
                    if report is not None:
                        report(line, summary.made + summary.failed_now, len(ready))
        except (InputError, BackendError, DivergenceError) as error:
            if not (journal.resumed or journal.lines or isinstance(error, OutputError)):
                journal.discard()  # settings that nothing can be done with are none to go on with
            raise
        finally:
            order = [each.path for each in listing.found]
            summary.lines = [journal.lines[path] for path in order if path in journal.lines]
            summary.left = len(order) - len(summary.lines)
            summary.interrupted = stop.is_set()
            # After a full disk, what can still be written is.
            with contextlib.suppress(OSError):  # if it is empty
                (folder / PARTIAL).rmdir()
            if journal.lines:
                with contextlib.suppress(InputError):
                    journal.compact(order)
                    write_text(summary.index, _page(folder, summary.lines, made_by))
    summary.seconds = time.perf_counter() - started
    return summary


def _tasks(
    found: Sequence[Found],
    journal: Journal,
    folder: Path,
    run: str,
    retry_failed: bool,
    summary: CohortSummary,
    settings: Mapping[str, Any],
) -> list[tuple[Found, str]]:
    """Every image to do and its name; results that a killed process left without a line get it."""
    moved = moved_lines(found, journal.lines)
    for path, line in moved.items():
        journal.move(path, line)
    summary.moved = len(moved)
    kept = {path: line["output"] for path, line in journal.lines.items()}
    names = output_names(found, kept, _RESERVED)
    tasks = []
    for each, name in zip(found, names, strict=True):
        known = journal.lines.get(each.path)
        now = stamp(each.path)
        pointed = prompt_of({**settings, **each.prompts})
        meant = known is None or known.get("prompt", {}) == pointed
        if known is not None and known["status"] == DONE:
            same = _same(known, now) and meant
            gone = now["bytes"] is None and meant  # a missing image's result stays
            if gone or (same and record_path(folder, name).exists()):
                continue
            summary.changed += 1
        elif known is not None and not retry_failed and meant:
            summary.kept_failures += 1
            continue
        if journal.resumed and known is None:
            recorded = recorded_line(folder, name, run)
            if recorded is not None and recorded.get("prompt", {}) == pointed and _is_of(recorded, each):
                journal.add(recorded | {"source": each.path, **now})
                continue
        tasks.append((each, name))
    return tasks


def _same(line: Line, now: Mapping[str, Any]) -> bool:
    """Whether an image is what it was: its size and its time."""
    return all(line.get(key) == value for key, value in now.items())


def _is_of(line: Line, image: Found) -> bool:
    if line["source"] == image.path:
        return _same(line, stamp(image.path))
    return place(line) == image.relative and same_contents(line, image.path)


def _refuse_foreign(folder: Path, found: Sequence[Found], overwrite: bool) -> None:
    """Raises InputError where a new run would write over files that are no run's."""
    if overwrite or (folder / SETTINGS).exists():
        return
    there: dict[str, set[str]] = {}
    for name in output_names(found, {}, _RESERVED):
        base, last = os.path.split(os.path.join(folder, name))
        if base not in there:
            there[base] = set(os.listdir(base)) if os.path.isdir(base) else set()
        for ending in ENDINGS:
            if last + ending in there[base]:
                taken = os.path.join(base, last + ending)
                raise InputError(f"{show(taken)}: exists already; pass --overwrite or another output folder")


def _page(folder: Path, lines: Sequence[Line], settings: Mapping[str, Any]) -> str:
    return index_page([_entry(folder, line) for line in lines], title=folder.resolve().name, settings=settings)


def _entry(folder: Path, line: Line) -> Entry:
    name = line["output"]
    shown = os.path.join(os.path.dirname(name), os.path.basename(line["source"]))
    if line["status"] == FAILED:
        return Entry(shown, FAILED, line["reason"])
    thumbnail = None
    with contextlib.suppress(OSError):
        thumbnail = thumbnail_path(folder, name).read_bytes()
    kinds = ("overlay", "_overlay.png"), ("mask", "_mask.png"), ("mask", "_mask.nii.gz"), ("mask", "_mask")
    links = [(label, name + ending) for label, ending in kinds if (folder / (name + ending)).exists()]
    links.append(("record", f"{name}.json"))
    reason = line["reason"] + (f" ({line['resized']})" if line.get("resized") else "")
    return Entry(
        shown, DONE, reason, line["confidence"], bool(line["doubtful"]), line["seconds"], thumbnail, tuple(links)
    )


@contextmanager
def _on_interrupt(stop: threading.Event, engine: Engine, tell: Callable[[str], object]) -> Iterator[None]:
    """Ctrl-C once: finish the images that are begun. Again, or SIGTERM: end at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(signum: int, frame: Any) -> None:
        if stop.is_set() or signum != signal.SIGINT:
            engine.kill()
        else:
            tell("interrupted: the images that are begun are finished; again to end at once")
        stop.set()

    before = {each: signal.signal(each, first) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
