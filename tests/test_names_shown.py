"""Names that a terminal's encoding cannot hold are shown with escapes, by every command, whatever the locale."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .cohort_samples import OPTIONS, write_images

ACCENT = "l\u00e9sion \u65e5.png"
RAW = os.fsdecode(b"l\xe9sion.png")
LOCALES = {
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
    "Latin 1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def run(folder: Path, locale: str, *words: str) -> tuple[int, str, str]:
    """Exit code and both streams of the command, as bytes that need be no UTF-8."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"}
    environment |= {"OMP_NUM_THREADS": "1", **LOCALES[locale]}
    done = subprocess.run(
        [sys.executable, "-m", "msformer_fast", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=200,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for path, name in zip(write_images(tmp_path, 2), (ACCENT, RAW), strict=True):
        try:
            path.rename(tmp_path / name)
        except (OSError, UnicodeError):
            pytest.skip("this file system does not take such a name")
    return tmp_path


@pytest.mark.parametrize("locale", ["ASCII", "UTF-8", "C"])
@pytest.mark.parametrize("name", [ACCENT, RAW], ids=["accent", "raw"])
def test_one_image(scans: Path, name: str, locale: str) -> None:
    code, out, err = run(scans, locale, "segment", name, "-o", "r" + name[1:-4], *OPTIONS)
    assert (code, "Traceback" in err, len(out.splitlines())) == (0, False, 4), err
    assert (scans / ("r" + name[1:-4]) / f"{name[:-4]}_mask.png").exists()


@pytest.mark.parametrize("locale", ["strict", "Latin 1", "C"])
def test_many_images(scans: Path, locale: str) -> None:
    (scans / "bad \u65e5.png").write_bytes(b"no image")
    words = ["segment", ".", "-o", os.fsdecode(b"r\xe9sultats"), "--threads", "1", *OPTIONS]
    code, out, err = run(scans, locale, *words)
    assert code == 1 and "2 of 3 images done" in out and "Traceback" not in err, err
    assert "failed: " in err
    code, _, err = run(scans, locale, *words, "--rule", "lungs")  # refused, the folder named
    assert code == 2 and "Traceback" not in err


def test_evaluate(scans: Path) -> None:
    masks = scans / "masks"
    masks.mkdir()
    for name in (ACCENT, RAW):
        (masks / name).write_bytes((scans / name).read_bytes())
    out_folder = os.fsdecode(b"r\xe9sultats")
    code, out, err = run(scans, "ASCII", "evaluate", ".", "masks", "-o", out_folder, "--methods", *OPTIONS)
    assert code == 0 and "2 image(s)" in out and "Traceback" not in err, err
    with open(scans / out_folder / "evaluation.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    code, _, err = run(scans, "strict", "evaluate", ".", "masks", "-o", out_folder, "--methods", *OPTIONS)
    assert code == 2 and "exists already" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["segment", "\u65e5\udce9.png"],
        ["segment", "x.png", "\u65e5\udce9.png"],
        ["parity", "\u65e5\udce9.npz"],
        ["evaluate", "\u65e5\udce9", "\u65e5"],
        ["segment", "\udce9.png", "--rule", "\u65e5"],
        ["\u65e5\udce9"],
        ["doctor"],
    ],
    ids=lambda words: ascii(" ".join(words)),
)
@pytest.mark.parametrize("locale", ["strict", "C"])
def test_refusals(tmp_path: Path, words: list[str], locale: str) -> None:
    code, _, err = run(tmp_path, locale, *words)
    assert code == (0 if words == ["doctor"] else 2) and "Traceback" not in err, err
