"""Images of a run that lie elsewhere now: moved, mounted under another name, reached through a link, copied."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from msformer_fast.cohort.journal import Line
from msformer_fast.cohort.listing import Found
from msformer_fast.cohort.task import digest, stamp

# Units in nanoseconds to which file systems and archives round a file's time.
_UNITS = (100, 10**3, 10**6, 10**9, 2 * 10**9)


def place(line: Mapping[str, Any]) -> str:
    """Where the image of a line lay below the folder, pattern or list that was named."""
    return os.path.join(os.path.dirname(line["output"]), os.path.basename(line["source"]))


def moved_lines(found: Sequence[Found], lines: Mapping[str, Line]) -> dict[str, Line]:
    """The lines of images that lie elsewhere now, as they are to be, by the path that each line has.

    An image is the one of a line if it is the same file under the same name, or has the same place below what was
    named and the same contents. Each line is of one image at most, and none whose own path was found counts.
    """
    here = {each.path for each in found}
    gone = {path: line for path, line in lines.items() if path not in here}
    files: dict[tuple[str, str], list[str]] = {}
    places: dict[str, list[str]] = {}
    for path, line in gone.items():
        files.setdefault(_file(path), []).append(path)
        places.setdefault(place(line), []).append(path)
    moved: dict[str, Line] = {}
    for each in found:
        if len(moved) == len(gone):
            break
        if each.path in lines:
            continue
        now: dict[str, Any] = {"source": each.path}
        before = next((path for path in files.get(_file(each.path), ()) if path not in moved), None)
        if before is None:
            candidates = (path for path in places.get(each.relative, ()) if path not in moved)
            before = next((path for path in candidates if same_contents(gone[path], each.path)), None)
            now |= stamp(each.path)  # a copy has another time
        if before is not None:
            moved[before] = gone[before] | now
    return moved


def same_contents(line: Mapping[str, Any], path: str) -> bool:
    """Whether a file that has the place of a line's image has its contents too.

    By size and digest; where the line has no digest, since its image failed, by size and time, if nothing is left under
    its path.
    """
    now = stamp(path)
    if now["bytes"] is None or line.get("bytes") != now["bytes"]:
        return False
    if line.get("sha256") is not None:
        return bool(line["sha256"] == digest(path))
    return not os.path.lexists(line["source"]) and _same_time(line.get("modified"), now["modified"])


def _same_time(one: int | None, other: int | None) -> bool:
    """Equal, or the one is the other as a coarser file system keeps it."""
    if one is None or other is None:
        return False
    apart = abs(one - other)
    return apart == 0 or any(apart < unit and 0 in (one % unit, other % unit) for unit in _UNITS)


def _file(path: str) -> tuple[str, str]:
    """What a path leads to, and by which name: links of a store lead several names to one file."""
    return os.path.realpath(path), os.path.basename(path)
