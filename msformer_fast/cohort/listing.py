"""Which images a run is about, and what the outputs of each are called."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msformer_fast.cohort.list_file import LISTS, listed_with_prompts
from msformer_fast.errors import InputError
from msformer_fast.files import reason, show
from msformer_fast.formats import IMAGE_SUFFIXES, is_image_file, stem
from msformer_fast.formats.dicom_kind import holds_no_picture
from msformer_fast.names import distinct_names
from msformer_fast.own_outputs import is_output, is_run

# Files of these suffixes are not opened to be listed.
_NO_DICOM = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in (".dcm", ".dicom"))


@dataclass(frozen=True)
class Found:
    """An image to segment.

    Attributes:
        path: absolute, its links not followed.
        relative: path below the folder, pattern or list that it was found by; where its outputs lie.
        prompts: points and boxes that a list gives with it, arguments of :func:`msformer_fast.segment`.
    """

    path: str
    relative: str
    prompts: Mapping[str, list[list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What was found, each file once, in the order of the arguments and the names.

    Attributes:
        found: the images.
        ignored: how many files are no images: of other kinds, or DICOM objects without a picture.
        outputs: how many files were left out because this package wrote them.
    """

    found: tuple[Found, ...]
    ignored: int
    outputs: int = 0


def find_images(inputs: Sequence[str], *, recursive: bool = False, leave_out: Path | None = None) -> Listing:
    """List the images of folders, patterns, lists and files; nothing is decoded.

    Args:
        inputs: each a file, a folder, a pattern (``*``, ``?``, ``[]``, ``**``), or a ``.csv`` or ``.tsv`` list, see
            :func:`msformer_fast.cohort.list_file.listed`. Outputs of this package are left out of folders, patterns and
            several files, since a shell's pattern comes as those; a list is taken at its word. DICOM objects that hold
            no picture are left out of folders and patterns.
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
        ours = f"; {walk.outputs} that this package wrote left out" if walk.outputs else ""
        raise InputError(f"inputs: no image in {', '.join(show(each) for each in inputs)}{ours}{below}")
    return Listing(tuple(walk.found.values()), walk.ignored, walk.outputs)


class _Walk:
    def __init__(self, recursive: bool, leave_out: Path | None) -> None:
        self.recursive = recursive
        self.found: dict[str, Found] = {}
        self.ignored = 0
        self.outputs = 0
        self._left_out = None if leave_out is None else os.path.realpath(leave_out)

    def add(self, text: str) -> None:
        path = os.path.abspath(text)
        if os.path.isdir(path) and os.path.realpath(path) == self._left_out:
            raise InputError(f"output: {show(text)} is the folder of the images too; name another for the outputs")
        if os.path.isdir(path):
            self._folder(path, path, set())
        elif os.path.lexists(path):
            if path.lower().endswith(LISTS):
                self._list(path)
            elif is_output(path):
                self.outputs += 1
            else:
                self._keep(path, os.path.basename(path))
        elif glob.has_magic(text):
            self._pattern(text)
        else:
            raise InputError(f"inputs: {show(text)}: no such file or folder; give images, folders, patterns or a .csv")

    def _keep(self, path: str, relative: str, prompts: Mapping[str, list[list[float]]] | None = None) -> None:
        self.found.setdefault(path, Found(path, relative, prompts or {}))

    def _sort(self, path: str, relative: str) -> None:
        """What was come upon, not named: an image, an output, or another thing."""
        if not is_image_file(Path(path)) or _has_no_picture(path):
            self.ignored += 1
        elif is_output(path):
            self.outputs += 1
        else:
            # A link to nothing too: it is told as a failure, where a silent gap would not be seen.
            self._keep(path, relative)

    def _folder(self, folder: str, base: str, seen: set[str]) -> None:
        real = os.path.realpath(folder)
        if real in seen or real == self._left_out:  # a link back, or our own outputs
            return
        seen.add(real)
        for entry in _entries(folder):
            if not _is_folder(entry):
                self._sort(entry.path, os.path.relpath(entry.path, base))
            elif not self.recursive or os.path.realpath(entry.path) == self._left_out:
                continue
            elif is_run(entry.path) or is_output(entry.path):
                self.outputs += _count_images(entry.path)
            else:
                self._folder(entry.path, base, seen)

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
            if self._below_outputs(path, base):
                self.outputs += is_image_file(Path(path))
            else:
                self._sort(path, os.path.relpath(path, base))

    def _below_outputs(self, path: str, base: str) -> bool:
        """Whether a folder between ``base`` and the file is a run's, or of the frames of an output."""
        folder = os.path.dirname(path)
        while len(folder) > len(base):
            if is_run(folder) or is_output(folder):
                return True
            folder = os.path.dirname(folder)
        return False

    def _list(self, path: str) -> None:
        folder = os.path.dirname(path)
        for target, prompts in listed_with_prompts(path):
            relative = os.path.relpath(target, folder)
            inside = relative.split(os.sep)[0] != os.pardir
            before = self.found.get(target)
            if before is not None and prompts and before.prompts != prompts:
                raise InputError(
                    f"{show(path)}: {show(target)} is listed twice with different points or boxes; give all of an "
                    "image in one row, separated by semicolons"
                )
            self._keep(target, relative if inside else os.path.basename(target), prompts)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise InputError(f"{show(folder)}: cannot be listed ({reason(error)}); check its permissions") from error


def _has_no_picture(path: str) -> bool:
    return not path.lower().endswith(_NO_DICOM) and holds_no_picture(Path(path))


def _count_images(folder: str) -> int:
    """Files below a folder that would be taken for images, by their names."""
    return sum(
        name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        for base, folders, names in os.walk(folder)
        if not os.path.basename(base).startswith(".")
        for name in names
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def output_names(found: Sequence[Found], kept: Mapping[str, str], reserved: Sequence[str] = ()) -> list[str]:
    """What the outputs of each image are called: its relative path without the suffix, no two alike.

    Where two images of a folder have one stem, the suffix stays in the names of both; a number follows where even
    that is taken. Letters' case does not tell names apart, since some file systems do not.

    Args:
        kept: name by path, of images that have theirs already.
        reserved: names that no image may have.
    """
    short = [os.path.join(os.path.dirname(each.relative), stem(each.relative)) for each in found]
    here = [kept.get(each.path) for each in found]
    return distinct_names(short, [each.relative for each in found], here, (*kept.values(), *reserved))
