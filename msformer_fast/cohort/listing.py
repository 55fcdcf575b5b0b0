"""Which images a run is about, and what the outputs of each are called."""

from __future__ import annotations

import csv
import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msformer_fast.errors import InputError
from msformer_fast.files import reason, show
from msformer_fast.formats import is_image_file, stem

# Names of a column of paths in a list.
_COLUMNS = ("path", "image", "file", "filename")
# Bytes that a file system's name may have, less the longest ending that an output gets.
_LONGEST = 255 - 32


@dataclass(frozen=True)
class Found:
    """An image to segment.

    Attributes:
        path: absolute, its links not followed.
        relative: path below the folder, pattern or list that it was found by; where its outputs lie.
    """

    path: str
    relative: str


@dataclass(frozen=True)
class Listing:
    """What was found, each file once, in the order of the arguments and the names; and how many files are no images."""

    found: tuple[Found, ...]
    ignored: int


def find_images(inputs: Sequence[str], *, recursive: bool = False, leave_out: Path | None = None) -> Listing:
    """List the images of folders, patterns, lists and files; nothing is decoded.

    Args:
        inputs: each a file, a folder, a pattern (``*``, ``?``, ``[]``, ``**``), or a ``.csv`` list: paths in the
            column called path, image, file or filename, else in the first, relative to the list.
        recursive: look into the folders below a folder, links followed, each real folder once.
        leave_out: a folder not to look into: where the outputs go.

    Raises:
        InputError: an input does not exist, a folder cannot be listed, a list cannot be read, or no image is there.
    """
    walk = _Walk(recursive, leave_out)
    for each in inputs:
        walk.add(each)
    if not walk.found:
        below = "" if recursive else "; folders below need --recursive"
        raise InputError(f"inputs: no image in {', '.join(show(each) for each in inputs)}{below}")
    return Listing(tuple(walk.found.values()), walk.ignored)


class _Walk:
    def __init__(self, recursive: bool, leave_out: Path | None) -> None:
        self.recursive = recursive
        self.found: dict[str, Found] = {}
        self.ignored = 0
        self._left_out = None if leave_out is None else os.path.realpath(leave_out)

    def add(self, text: str) -> None:
        path = os.path.abspath(text)
        if os.path.isdir(path) and os.path.realpath(path) == self._left_out:
            raise InputError(f"output: {show(text)} is the folder of the images too; name another for the outputs")
        if os.path.isdir(path):
            self._folder(path, path, set())
        elif os.path.lexists(path):
            if path.lower().endswith(".csv"):
                self._list(path)
            else:
                self._file(path, os.path.basename(path))
        elif glob.has_magic(text):
            self._pattern(text)
        else:
            raise InputError(f"inputs: {show(text)}: no such file or folder; give images, folders, patterns or a .csv")

    def _file(self, path: str, relative: str) -> None:
        self.found.setdefault(path, Found(path, relative))

    def _folder(self, folder: str, base: str, seen: set[str]) -> None:
        real = os.path.realpath(folder)
        if real in seen or real == self._left_out:  # a link back, or our own outputs
            return
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                listed = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise InputError(f"{show(folder)}: cannot be listed ({reason(error)}); check its permissions") from error
        for entry in listed:
            if _is_folder(entry):
                if self.recursive:
                    self._folder(entry.path, base, seen)
            elif is_image_file(Path(entry.path)):
                # A link to nothing too: it is told as a failure, where a silent gap would not be seen.
                self._file(entry.path, os.path.relpath(entry.path, base))
            else:
                self.ignored += 1

    def _pattern(self, text: str) -> None:
        fixed: list[str] = []
        for part in Path(text).parts[:-1]:
            if glob.has_magic(part):
                break
            fixed.append(part)
        base = os.path.abspath(os.path.join(*fixed)) if fixed else os.getcwd()
        for match in sorted(glob.iglob(text, recursive=True)):
            path = os.path.abspath(match)
            if os.path.isdir(path) or os.path.realpath(path).startswith(f"{self._left_out}{os.sep}"):
                continue
            if is_image_file(Path(path)):
                self._file(path, os.path.relpath(path, base))
            else:
                self.ignored += 1

    def _list(self, path: str) -> None:
        folder = os.path.dirname(path)
        for text in _listed(path):
            target = os.path.normpath(os.path.join(folder, text))
            relative = os.path.relpath(target, folder)
            inside = relative.split(os.sep)[0] != os.pardir
            self._file(target, relative if inside else os.path.basename(target))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _listed(path: str) -> Iterator[str]:
    """The paths in a list, which may have a header."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, csv.Error) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{show(path)}: cannot be read as a list of paths ({why}); give one path a line") from error
    heads = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((heads.index(name) for name in _COLUMNS if name in heads), None)
    for number, row in enumerate(rows if column is None else rows[1:], 1 if column is None else 2):
        text = row[column or 0] if len(row) > (column or 0) else ""
        if not text.strip() or "\0" in text:
            raise InputError(f"{show(path)}: row {number} has no path; give one in every row")
        yield text


def output_names(found: Sequence[Found], kept: Mapping[str, str], reserved: Sequence[str] = ()) -> list[str]:
    """What the outputs of each image are called: its relative path without the suffix, no two alike.

    Where two images of a folder have one stem, the suffix stays in the names of both; a number follows where even
    that is taken. Letters' case does not tell names apart, since some file systems do not.

    Args:
        kept: name by path, of images that have theirs already.
        reserved: names that no image may have.
    """
    plain = [_shortened(os.path.join(os.path.dirname(each.relative), stem(each.relative))) for each in found]
    count = Counter(name.casefold() for name in plain)
    taken = {name.casefold() for name in (*kept.values(), *reserved)}
    names = []
    for each, name in zip(found, plain, strict=True):
        if each.path in kept:
            names.append(kept[each.path])
            continue
        if count[name.casefold()] > 1 or name.casefold() in taken:
            name = _shortened(each.relative)
        number, wanted = 1, name
        while name.casefold() in taken:
            number += 1
            name = f"{wanted}~{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _shortened(name: str) -> str:
    """A name whose outputs' names the file system can hold: cut, with a digest of the whole."""
    folder, last = os.path.split(name)
    if len(os.fsencode(last)) <= _LONGEST:
        return name
    digest = hashlib.sha256(os.fsencode(last)).hexdigest()[:12]
    kept = os.fsencode(last)[: _LONGEST - 16].decode("utf-8", "ignore")
    return os.path.join(folder, f"{kept}~{digest}")
