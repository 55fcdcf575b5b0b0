"""Names that a terminal's encoding cannot hold are shown with escapes, by every command, whatever the locale."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from msformer_fast.cli import main

from .cohort_samples import OPTIONS, Inline, write_images

ACCENT = "l\u00e9sion \u65e5.png"
RAW = os.fsdecode(b"l\xe9sion.png")
OUT = os.fsdecode(b"r\xe9sultats")


class Terminal:
    """Streams of one encoding, strict about what it does not hold."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        self._monkeypatch, self._encoding = monkeypatch, encoding

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code and what the command wrote."""
        buffers = [io.BytesIO(), io.BytesIO()]
        streams = [io.TextIOWrapper(each, self._encoding, "strict", write_through=True) for each in buffers]
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            try:
                code = main([*words])
            except SystemExit as error:
                code = int(error.code or 0)
        out, err = (buffer.getvalue().decode("latin-1") for buffer in buffers)
        return code, out, err


@pytest.fixture(params=["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("latin-1", "utf-8"))])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
    return Terminal(monkeypatch, request.param)


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for path, name in zip(write_images(tmp_path, 2), (ACCENT, RAW), strict=True):
        try:
            path.rename(tmp_path / name)
        except (OSError, UnicodeError):
            pytest.skip("this file system does not take such a name")
    return tmp_path


@pytest.mark.parametrize("name", [ACCENT, RAW], ids=["accent", "raw"])
def test_one_image(scans: Path, terminal: Terminal, name: str) -> None:
    words = ["segment", name, "-o", OUT, *OPTIONS]
    code, out, err = terminal(*words)
    assert (code, len(out.splitlines())) == (0, 4), err
    assert (scans / OUT / f"{name[:-4]}_mask.png").exists()
    code, out, err = terminal(*words)
    assert code == 2 and "exists already" in err and err.count("\n") == 1


def test_many_images(scans: Path, terminal: Terminal) -> None:
    (scans / "bad \u65e5.png").write_bytes(b"no image")
    words = ["segment", ".", "-o", OUT, *OPTIONS]
    code, out, err = terminal(*words)
    assert code == 1 and "2 of 3 images done" in out and "index.html" in out and "failed: " in err
    code, _, err = terminal(*words, "--rule", "lungs")
    assert code == 2 and "holds a run with other settings" in err


def test_evaluate(scans: Path, terminal: Terminal) -> None:
    (scans / "masks").mkdir()
    for name in (ACCENT, RAW):
        (scans / "masks" / name).write_bytes((scans / name).read_bytes())
    words = ["evaluate", ".", "masks", "-o", OUT, "--methods", *OPTIONS]
    code, out, err = terminal(*words)
    assert code == 0 and "2 image(s)" in out, err
    with open(scans / OUT / "evaluation.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    code, _, err = terminal(*words)
    assert code == 2 and "exists already" in err


@pytest.mark.parametrize(
    "words",
    [
        ["segment", "\u65e5\udce9.png"],
        ["segment", "x.png", "\u65e5\udce9.png"],
        ["parity", "\u65e5\udce9.npz"],
        ["evaluate", "\u65e5\udce9", "\u65e5"],
        ["segment", "x.png", "--size", "\u65e5\udce9"],
        ["\u65e5\udce9"],
    ],
    ids=lambda words: ascii(" ".join(words)),
)
def test_refusals(tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = terminal(*words)
    assert (code, out) == (2, "") and "error: " in err


@pytest.mark.parametrize("name", [pytest.param(ACCENT, marks=pytest.mark.slow), RAW], ids=["accent", "raw"])
def test_a_locale_that_knows_ascii_alone(scans: Path, name: str) -> None:
    """There names are bytes to Python."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "msformer_fast", "segment", name, "-o", OUT, *OPTIONS]
    done = subprocess.run(command, cwd=scans, env=environment, capture_output=True, timeout=200)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert (scans / OUT / f"{name[:-4]}_mask.png").exists()
