"""Lists of images as spreadsheets and people write them: each is read, or refused in one sentence."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from msformer_fast.cohort.list_file import listed
from msformer_fast.cohort.listing import find_images
from msformer_fast.errors import InputError

A, B, ACCENT, COMMA, BARE = "s/a.png", "s/b.png", "s/lésion.png", "s/scan, left.png", "s/IM1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    for name in (A, B, ACCENT, COMMA, BARE, "s/IM2"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, content: str | bytes, name: str = "list.csv") -> list[str]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [os.path.relpath(each, folder) for each in listed(str(path))]


READ: dict[str, tuple[str | bytes, list[str]]] = {
    "semicolons and decimal commas": ("id;path;grade\n1;s/a.png;0,85\n2;s/b.png;0,9\n", [A, B]),
    "tabs": ("id\timage\n1\ts/a.png\n", [A]),
    "bars": ("id|path\n1|s/a.png\n", [A]),
    "a separator that is told": ("sep=;\nid;path\n1;s/a.png\n", [A]),
    "UTF-16": (
        codecs.BOM_UTF16_LE + f"id\timage\r\n1\t{ACCENT}\r\n".encode("utf-16-le"),
        [ACCENT],
    ),
    "UTF-16, big end first": (codecs.BOM_UTF16_BE + f"image\n{ACCENT}\n".encode("utf-16-be"), [ACCENT]),
    "UTF-16 without its mark": ("image\r\ns/a.png\r\n".encode("utf-16-le"), [A]),
    "UTF-8 with its mark": (codecs.BOM_UTF8 + f"image;x\n{ACCENT};1\n".encode(), [ACCENT]),
    "cp1252": (f"image;x\n{ACCENT};1\n".encode("cp1252"), [ACCENT]),
    "Mac Roman, lines ended by CR": (f"image\r{ACCENT}\r".encode("mac-roman"), [ACCENT]),
    "accents of their own": (unicodedata.normalize("NFD", f"image\n{ACCENT}\n"), [ACCENT]),
    "blanks and blank lines": (' path , x\n  s/a.png  ,1\n\n ,\n;;\n"s/b.png" ,2\n', [A, B]),
    "a quoted comma": (f'path,x\n"{COMMA}",1\n', [COMMA]),
    "a comma that is not quoted": (f"{COMMA}\n{A}\n", [COMMA, A]),
    "all quoted": ('"path","x"\n"s/a.png","1"\n', [A]),
    "quotes behind a blank": ('x, "path"\n1, "s/a.png"\n', [A]),
    "a heading with more words": ("Image File Name\ns/a.png\n", [A]),
    "a heading of another language": ("Patient;Dateiname;Grad\n1;s/a.png;0,85\n", [A]),
    "a heading that says nothing": ("Wibble;x\ns/a.png;s\ns/b.png;t\n", [A, B]),
    "the same without suffixes": ("Wibble\ns/IM1\ns/IM2\n", [BARE, "s/IM2"]),
    "no heading, no suffixes": ("s/IM1\ns/IM2\n", [BARE, "s/IM2"]),
    "no heading, paths in the second column": ("1;s/a.png\n2;s/b.png\n", [A, B]),
    "images and their masks": ("id,image_path,mask_path\n1,s/a.png,s/b.png\n", [A]),
    "masks before images": ("maske,bild\ns/b.png,s/a.png\n", [A]),
    "a title above the heading": ("My list of scans\n\nid;path\n1;s/a.png\n", [A]),
    "backslashes": ("path\ns\\a.png\n.\\s\\b.png\n", [A, B]),
    "files that are not there": ("Patient;Bild;Grad\n1;s/x.png;0,85\n2;s/y.png;0,9\n", ["s/x.png", "s/y.png"]),
    "one row": ("s/a.png;3\n", [A]),
    "a heading alone": ("path\n", []),
    "nothing": ("", []),
}


@pytest.mark.parametrize("kind", READ)
def test_lists_are_read(folder: Path, kind: str) -> None:
    content, expected = READ[kind]
    assert read(folder, content) == expected


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "two columns of paths": ("foo,bar\ns/a.png,s/b.png\n", "2 columns hold paths; call the one of the images path"),
    "no column of paths": ("id,grade\n1,2\n3,4\n", "no column holds paths of images"),
    "a workbook": (b"PK\x03\x04\x14\0rest", "workbook of a spreadsheet program: save it as CSV"),
    "a row without a path": ("id,path\n1,s/a.png\n2\n", "row 3 has no path"),
    "half a letter": (codecs.BOM_UTF16_LE + b"abc", "no whole UTF-16-LE text"),
    "zero bytes": (b"path\ns/a.png\0\n", "zero bytes"),
    "a field without end": ('path\n"' + "x" * 200_000, "field larger than"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_lists_are_refused_in_a_sentence(folder: Path, kind: str) -> None:
    content, said = REFUSED[kind]
    with pytest.raises(InputError, match=said) as caught:
        read(folder, content)
    assert "\n" not in str(caught.value) and "list.csv" in str(caught.value)


def test_names_that_are_no_utf8(folder: Path) -> None:
    raw = os.fsencode(folder) + b"/s/\xe9raw.png"
    try:
        os.close(os.open(raw, os.O_CREAT))
    except OSError:
        pytest.skip("this file system does not take such a name")
    assert read(folder, b"image\ns/\xe9raw.png\n") == [os.fsdecode(b"s/\xe9raw.png")]


def test_a_list_of_tabs_by_its_ending(folder: Path) -> None:
    read(folder, "id\timage\n1\ts/a.png\n", "list.tsv")
    assert [each.relative for each in find_images([str(folder / "list.tsv")]).found] == [A]


def test_a_locale_that_knows_ascii_alone(folder: Path) -> None:
    """Names are bytes there; those of the list find them all the same."""
    (folder / "list.csv").write_text(f"image\n{ACCENT}\n", encoding="utf-8")
    code = "import sys; from msformer_fast.cohort.list_file import listed; print(ascii(list(listed(sys.argv[1]))))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(folder / "list.csv")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "\\udcc3\\udca9" in out
