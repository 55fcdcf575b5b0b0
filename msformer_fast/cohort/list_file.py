"""Lists of images as people and spreadsheets write them: any separator, encoding and heading, read or refused."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from msformer_fast.errors import InputError
from msformer_fast.files import reason, show
from msformer_fast.formats import IMAGE_SUFFIXES
from msformer_fast.prompts.text import COLUMNS, parse_cell
from msformer_fast.prompts.volume import given_prompt

#: Endings of lists.
LISTS = (".csv", ".tsv")
# Names of a column of paths, the first that is there; and words in the heading of one, the likelier first.
_COLUMNS = ("path", "image", "file", "filename")
_WORDS = (
    (
        "image",
        "images",
        "img",
        "imagepath",
        "imagefile",
        "picture",
        "scan",
        "slice",
        "bild",
        "imagen",
        "immagine",
        "dicom",
        "nifti",
    ),
    ("path", "paths", "file", "files", "filename", "filepath", "filenames", "filepaths", "datei", "dateiname", "pfad"),
    ("fichier", "chemin", "archivo", "ruta", "percorso", "location", "source", "input", "name"),
)
# Words in the heading of a column of other files.
_OTHERS = (
    "mask",
    "masks",
    "label",
    "labels",
    "seg",
    "segmentation",
    "truth",
    "annotation",
    "maske",
    "output",
    "target",
)
_SEPARATORS = (",", ";", "\t", "|")
# Of a row without anything; programs fill up blank ones with separators.
_BLANK = " \t\r\n\xa0\ufeff,;|"
# Rows by which separator, heading and column are told.
_SAMPLE = 50
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Lines above the paths that may be titles and headings; what is no heading, but the name of a file without a suffix.
_TITLES = 5
_NAME = re.compile(r"[\d/\\]")
_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


# Rows of cells with the numbers of their lines, none of them blank.
_Table: TypeAlias = list[tuple[int, list[str]]]


def listed(path: str) -> Iterator[str]:
    """The paths of the files in a list, absolute, in its order.

    Args:
        path: of the list, absolute. Its paths are relative to it. UTF-8, UTF-16 or what Windows calls ANSI (cp1252);
            separated by comma, semicolon, tab or bar. The paths stand in the column called path, image, file or
            filename, else in the one whose heading has such a word and whose cells look like paths, else in the only
            one whose cells do. Without a heading it is the first whose cells do. Blank lines and blanks around a path
            do not count.

    Raises:
        InputError: it cannot be read as a list, no column or more than one can be the one of the paths, or a row has
            no path.
    """
    return (target for target, _ in listed_with_prompts(path))


def listed_with_prompts(path: str) -> Iterator[tuple[str, dict[str, list[list[float]]]]]:
    """As :func:`listed`, and with each path its points and boxes, arguments of :func:`msformer_fast.segment`.

    They stand in columns called point, not_point and box (or points, not_points, boxes), as ``X,Y`` and
    ``X0,Y0,X1,Y1``, in volumes with Z, several in a cell separated by semicolons.

    Raises:
        InputError: as :func:`listed`; or a cell holds no such numbers.
    """
    folder, name = os.path.dirname(path), show(path)
    table = _table(_text(path, name), folder, name)
    if not table:
        return
    column, headed = _column(table, folder, name)
    heads = [_heading(cell) for cell in table[headed - 1][1]] if headed else []
    for number, row in table[headed:]:
        text = row[column] if len(row) > column else ""
        if not text.strip() or "\0" in text:
            raise InputError(f"{name}: row {number} has no path; give one in every row")
        target = _resolved(text, folder) or os.path.normpath(os.path.join(folder, _native(text.strip())))
        yield target, _prompts(heads, row, f"{name}: row {number}")


def _prompts(heads: Sequence[str], row: Sequence[str], where: str) -> dict[str, list[list[float]]]:
    prompts: dict[str, list[list[float]]] = {}
    for head, cell in zip(heads, row, strict=False):
        if head in COLUMNS:
            name, length = COLUMNS[head]
            if found := parse_cell(cell, length, f"{where}, {head}"):
                prompts[name] = prompts.get(name, []) + found
    try:
        given_prompt(**prompts)
    except InputError as error:
        raise InputError(f"{where}, {error}") from None
    return prompts


def _text(path: str, name: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise _unreadable(name, reason(error)) from error
    if data.startswith(_SPREADSHEETS):
        raise _unreadable(name, "it is a workbook of a spreadsheet program: save it as CSV")
    encoding = next((each for mark, each in _MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:
        # Latin letters in UTF-16 without its mark: every other byte is zero.
        zeros = data[::2].count(0), data[1::2].count(0)
        if max(zeros) < len(data) // 4:
            raise _unreadable(name, "it holds zero bytes")
        encoding = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    try:
        if encoding is not None:
            return data.decode(encoding).removeprefix("\ufeff")
        return data.decode("utf-8", "surrogateescape")  # what is no UTF-8 is decided path by path
    except UnicodeDecodeError:
        raise _unreadable(name, f"it is no whole {encoding.upper()} text") from None  # type: ignore[union-attr]


def _unreadable(name: str, why: str) -> InputError:
    return InputError(f"{name}: cannot be read as a list of paths ({why}); give one path a line")


def _table(text: str, folder: str, name: str) -> _Table:
    """The rows by the separator under which most of them have a path."""
    said = re.match(r"\s*sep=(.)\r?\n", text, re.IGNORECASE)
    if said:  # a line by which spreadsheet programs tell each other
        return _rows(text[said.end() :], said[1], name)
    tables: list[_Table] = [[(n, [row]) for n, row in enumerate(text.splitlines(), 1) if row.strip()]]
    errors: list[InputError] = []
    for separator in _SEPARATORS:
        if separator not in text and separator != ",":
            continue
        try:
            tables.append(_rows(text, separator, name))
        except InputError as error:
            errors.append(error)
    if len(tables) == 1:
        raise errors[0]
    # Quoted or in columns before lines as they are, commas before others, where nothing else decides.
    return max(tables[1:] + tables[:1], key=lambda table: _rank(table, folder))


def _rows(text: str, separator: str, name: str) -> _Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator != "\t")
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip(_BLANK) for cell in row)]
    except csv.Error as error:
        raise _unreadable(name, str(error)) from error


def _rank(table: _Table, folder: str) -> tuple[int, int, int, int]:
    """How well a separator fits: files that are there, a heading that is known, paths, rows as long as the first."""
    rows = [row for _, row in table[:_SAMPLE]]
    there = sum(any(_resolved(cell, folder) for cell in row) for row in rows)
    heading = bool(rows) and any(_heading(cell) in _COLUMNS for cell in rows[0])
    paths = sum(any(_is_path(cell) for cell in row) for row in rows)
    alike = sum(len(row) == len(rows[0]) for row in rows) if rows and len(rows[0]) > 1 else 0
    return there, int(heading), paths, alike


def _column(table: _Table, folder: str, name: str) -> tuple[int, int]:
    """The column of the paths, and how many rows of heading are above them."""
    rows = [row for _, row in table[:_SAMPLE]]
    for above, row in enumerate(rows[:_TITLES]):
        heads = [_heading(cell) for cell in row]
        for known in _COLUMNS:
            if known in heads:
                return heads.index(known), above + 1
    found = (number for number, row in enumerate(rows) if any(_looks(cell, folder) for cell in row))
    first = next(found, 0)
    if first > _TITLES or (len(rows[0]) == 1 and _NAME.search(rows[0][0])):
        first = 0  # not a heading, but files that are not there
    heads, body = ([_heading(cell) for cell in rows[first - 1]] if first else []), rows[first:]
    width = max(len(row) for row in body)
    counts = [sum(len(row) > column and _looks(row[column], folder) for row in body) for column in range(width)]
    columns = [column for column, count in enumerate(counts) if 2 * count >= len(body)]
    if width == 1 and not columns:
        # Nothing tells; names without a suffix that are not there are told one by one.
        heads = [_heading(cell) for cell in rows[0]]
        return 0, int(len(rows) > 1 and bool(_matching([0], heads, _WORDS[0] + _WORDS[1])))
    if len(columns) > 1 and heads:
        columns = [each for each in columns if not set(_words(heads, each)) & set(_OTHERS)] or columns
        for words in _WORDS:
            matching = _matching(columns, heads, words)
            if matching:
                columns = matching
                break
    if len(columns) == 1 or (columns and not heads):
        return columns[0], first
    what = "no column holds paths of images" if not columns else f"{len(columns)} columns hold paths"
    raise InputError(f"{name}: {what}; call the one of the images path, image, file or filename")


def _heading(cell: str) -> str:
    return cell.strip(" \t\xa0\ufeff\"'").casefold()


def _words(heads: Sequence[str], column: int) -> list[str]:
    return re.findall(r"[^\W\d_]+", heads[column]) if column < len(heads) else []


def _matching(columns: Sequence[int], heads: Sequence[str], words: Sequence[str]) -> list[int]:
    return [column for column in columns if set(_words(heads, column)) & set(words)]


def _is_path(cell: str) -> bool:
    return cell.strip().lower().endswith(IMAGE_SUFFIXES)


def _looks(cell: str, folder: str) -> bool:
    return bool(cell.strip()) and (_is_path(cell) or _resolved(cell, folder) is not None)


def _resolved(text: str, folder: str) -> str | None:
    """The file that a cell names, however it was written; ``None`` where there is none."""
    for each in _readings(text):
        target = os.path.normpath(os.path.join(folder, each))
        if "\0" not in target and os.path.lexists(target) and not os.path.isdir(target):
            return target
    return None


def _readings(text: str) -> Iterator[str]:
    """What a cell may mean, the likeliest first."""
    stripped = text.strip(" \t\r\n\xa0\ufeff")
    if not stripped:
        return
    raw = [text, stripped, stripped.strip("\"'")]
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        # Not UTF-8: bytes as the file system has them, or Windows' own encoding.
        data = stripped.encode("utf-8", "surrogateescape")
        raw += [data.decode("cp1252", "replace"), data.decode("mac-roman")]
    if os.sep == "/":
        raw += [each.replace("\\", "/") for each in raw if "\\" in each]
    # Accented letters in one character or in two.
    raw += [unicodedata.normalize(form, each) for each in raw for form in ("NFC", "NFD")]
    if stripped.startswith("~/"):
        raw.append(os.path.expanduser(stripped))
    yield from (_native(each) for each in dict.fromkeys(raw))


def _native(text: str) -> str:
    """The text as a path of this system: UTF-8 in its bytes, whatever the locale calls its encoding."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return os.fsdecode(text.encode("utf-8", "surrogateescape" if _escaped(text) else "replace"))
    return text


def _escaped(text: str) -> bool:
    return all(not "\ud800" <= letter <= "\udfff" or "\udc80" <= letter <= "\udcff" for letter in text)
