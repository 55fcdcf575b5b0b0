"""What a run has done so far, on disk: one line of JSON an image, so that it goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from msformer_fast.errors import InputError, OutputError
from msformer_fast.files import TEMPORARY, atomic, plain, reason, show, write_json
from msformer_fast.own_outputs import SETTINGS as SETTINGS

Line: TypeAlias = dict[str, Any]

#: In the output folder, beside the settings: the lines, the lock, and who holds it.
RESULTS, LOCK, HOLDER = "results.jsonl", ".lock", ".lock-holder"
DONE, FAILED = "done", "failed"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other runs; the lock goes with the process, however it ends.

    Raises:
        InputError: another run holds it; says which, where that is known.
    """
    from filelock import FileLock, Timeout

    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = "another run"
        with contextlib.suppress(OSError):
            who = holder.read_text(encoding="utf-8", errors="replace").strip() or who
        raise InputError(f"output: {show(folder)} is in use by {who}; wait, or name another folder") from None
    except (OSError, NotImplementedError) as error:
        raise InputError(
            f"output: {show(folder)} cannot be locked ({reason(error)}); name a folder that can be"
        ) from error
    try:
        with contextlib.suppress(OSError):  # for people only
            holder.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8", errors="replace")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


class Journal:
    """The lines of a run by the path of their images.

    Attributes:
        lines: the last line of every image.
        resumed: whether the folder held a run before.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Open the record of ``folder``, which is locked, or begin one.

        Args:
            settings: whatever changes the results, ready for JSON.
            resume: go on with a run of the same settings that is there.
            overwrite: begin anew over a run that is there.

        Raises:
            InputError: a run is there and is not to be resumed, has other settings (both are shown), or cannot be
                read.
            OutputError: the record cannot be written.
        """
        self._folder = folder
        self._path = folder / RESULTS
        self.resumed = (folder / SETTINGS).exists() and not overwrite
        self.lines: dict[str, Line] = {}
        given = plain(dict(settings))
        if self.resumed:
            if not resume:
                raise InputError(
                    f"output: {show(folder)} holds a run already; leave out --no-resume to go on with it, pass "
                    "--overwrite to begin anew, or name another folder"
                )
            _refuse_other_settings(folder, given)
            self.lines = _read(self._path)
        if (folder / SETTINGS).exists():
            remove_temporaries(folder)
        if not self.resumed:
            # The lines first: settings beside the lines of other settings would be a lie.
            self._path.unlink(missing_ok=True)
            write_json(folder / SETTINGS, given)
        self._heal()

    def add(self, line: Line) -> None:
        """Append a line, on disk when this returns. Raises OutputError; then the file ends with the line before."""
        data = _encoded(line)
        try:
            # Unbuffered: closing a file after a failure would write what is left in the buffer.
            with self._path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    while data:
                        data = data[file.write(data) :]
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(file.fileno(), end)
                    raise
        except OSError as error:
            raise OutputError(
                f"{show(self._path)}: cannot be written ({reason(error)}); check the free space"
            ) from error
        self.lines[line["source"]] = line

    def move(self, path: str, line: Line) -> None:
        """The image of ``path`` lies elsewhere now; on disk at the next :meth:`compact`."""
        del self.lines[path]
        self.lines[line["source"]] = line

    def discard(self) -> None:
        """Leave the folder as if no run had begun in it."""
        for name in (RESULTS, SETTINGS):
            (self._folder / name).unlink(missing_ok=True)

    def compact(self, order: Sequence[str]) -> None:
        """One line an image, in the order given, then whatever else was there."""
        listed = set(order)
        rest = [path for path in self.lines if path not in listed]
        kept = [self.lines[path] for path in (*order, *rest) if path in self.lines]
        with atomic(self._path) as file:
            file.writelines(map(_encoded, kept))

    def _heal(self) -> None:
        """Take off the half line that a killed process left, so that the next one does not join it."""
        if self._path.exists():
            data = self._path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self._path, whole)


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary files that killed processes left below the folder; other runs' folders are let be."""
    for base, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not os.path.exists(os.path.join(base, each, SETTINGS))]
        for name in names:
            if TEMPORARY.fullmatch(name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(base, name))


def _encoded(line: Line) -> bytes:
    return json.dumps(plain(line), allow_nan=False).encode() + b"\n"


def _read(path: Path) -> dict[str, Line]:
    """The last line of every image; a last line that is no whole one does not count."""
    if not path.exists():
        return {}
    lines: dict[str, Line] = {}
    rows = path.read_bytes().split(b"\n")
    for number, row in enumerate(rows[:-1], 1):
        try:
            line = json.loads(row)
            lines[line["source"]] = line | {"output": str(line["output"]), "status": str(line["status"])}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{show(path)}: line {number} is no result of a run; mend or delete that line, or pass --overwrite"
            ) from error
    return lines


def _refuse_other_settings(folder: Path, given: Mapping[str, Any]) -> None:
    path = folder / SETTINGS
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        names = [*there, *(name for name in given if name not in there)]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{show(path)}: cannot be read ({error}); pass --overwrite or another folder") from error
    differing = [
        f"{name.replace('_', '-')} {there.get(name)!r} there, {given.get(name)!r} here"
        for name in names
        if there.get(name) != given.get(name)
    ]
    if differing:
        raise InputError(
            f"output: {show(folder)} holds a run with other settings: {'; '.join(differing)}; use the same, pass "
            "--overwrite to begin anew, or name another folder"
        )
