"""The record of a run: whole lines only, the same settings only, one run at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from msformer_fast.cohort.journal import RESULTS, SETTINGS, Journal, locked, remove_temporaries
from msformer_fast.errors import InputError, OutputError

SETTINGS_OF_RUN = {"size": 129, "rule": "lesion", "weights": None}


def line(name: str, status: str = "done", **more: Any) -> dict[str, Any]:
    return {"source": f"/data/{name}", "output": name, "status": status, **more}


def opened(folder: Path, **how: Any) -> Journal:
    given = {"settings": SETTINGS_OF_RUN, "resume": True, "overwrite": False} | how
    return Journal(folder, given.pop("settings"), **given)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (folder / RESULTS).read_text().splitlines()]


def test_lines_are_found_again(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert not journal.resumed
    journal.add(line("a", confidence=float("nan")))
    journal.add(line("b\nc\udcff", "failed", reason="why"))
    again = opened(tmp_path)
    assert again.resumed
    assert list(again.lines) == ["/data/a", "/data/b\nc\udcff"]
    assert again.lines["/data/a"]["confidence"] is None
    again.add(line("b\nc\udcff"))
    again.compact(["/data/b\nc\udcff", "/data/a", "/data/never"])
    assert [row["output"] for row in rows(tmp_path)] == ["b\nc\udcff", "a"]
    assert {row["status"] for row in rows(tmp_path)} == {"done"}


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_half_line_is_taken_off(tmp_path: Path, cut: int) -> None:
    journal = opened(tmp_path)
    journal.add(line("a"))
    journal.add(line("b"))
    path = tmp_path / RESULTS
    path.write_bytes(path.read_bytes()[:-cut])
    again = opened(tmp_path)
    assert list(again.lines) == ["/data/a"]
    again.add(line("c"))
    assert [row["output"] for row in rows(tmp_path)] == ["a", "c"]


def test_a_damaged_line_is_told(tmp_path: Path) -> None:
    opened(tmp_path).add(line("a"))
    (tmp_path / RESULTS).write_bytes(b"{broken\n" + (tmp_path / RESULTS).read_bytes())
    with pytest.raises(InputError, match="line 1 is no result"):
        opened(tmp_path)


def test_other_settings_are_refused_with_both_shown(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(InputError, match=r"size 129 there, 257 here; weights None there, \[1, 2, 3\] here"):
        opened(tmp_path, settings=SETTINGS_OF_RUN | {"size": 257, "weights": (1, 2, 3)})
    with pytest.raises(InputError, match="--no-resume"):
        opened(tmp_path, resume=False)
    assert opened(tmp_path, settings={"size": 257}, overwrite=True).lines == {}
    assert json.loads((tmp_path / SETTINGS).read_text()) == {"size": 257}


def test_overwriting_forgets_the_lines(tmp_path: Path) -> None:
    opened(tmp_path).add(line("a"))
    assert not opened(tmp_path, overwrite=True).resumed
    assert opened(tmp_path).lines == {}


def test_temporary_files_go_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "other run").mkdir()
    (tmp_path / "other run" / SETTINGS).touch()
    theirs = tmp_path / "other run" / ".0123456789abcdef.tmp"
    theirs.touch()
    gone, kept = [tmp_path / "below/.0123456789abcdef.tmp", tmp_path / ".fedcba9876543210.tmp"], tmp_path / "x.tmp"
    for path in (*gone, kept):
        path.touch()
    remove_temporaries(tmp_path)
    assert not any(path.exists() for path in gone)
    assert kept.exists()
    assert theirs.exists()


def test_a_line_that_does_not_fit_the_disk_leaves_the_others(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from msformer_fast.cohort.journal import Journal\n"
        "from msformer_fast.errors import OutputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "journal = Journal(Path(sys.argv[1]), {}, resume=True, overwrite=False)\n"
        "journal.add({'source': '/a', 'output': 'a', 'status': 'done'})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: journal.add({'source': '/b', 'output': 'b', 'status': 'done', 'reason': 'x' * 200})\n"
        "except OutputError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    assert "results.jsonl: cannot be written" in out
    assert [row["output"] for row in rows(tmp_path)] == ["a"]
    assert (tmp_path / RESULTS).read_bytes().endswith(b"\n")


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from msformer_fast.cohort.journal import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {other.pid} on "), locked(tmp_path):
            pass
        other.kill()
        other.wait()
        with locked(tmp_path):  # the lock of a killed process is gone
            pass


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises((InputError, OutputError)), locked(tmp_path):
        pass
