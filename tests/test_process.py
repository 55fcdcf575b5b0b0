"""Settings of the process: allocator and threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from msformer_fast import InputError
from msformer_fast.process import _quota, keep_freed_memory, set_threads, usable_cores

#: Page faults of a round of large tensors, once the heap has grown to hold one.
FAULTS = """
import resource, sys
import torch
from msformer_fast.process import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**24) for _ in range(3)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """No new pages in the last round, where by default there are 16384 (or one for each huge page) a tensor."""
    counts = {}
    for mode in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        counts[mode] = int(done.stdout)
    assert counts["leave"] > 50
    assert counts["keep"] < counts["leave"] / 10


def test_elsewhere_it_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_importing_changes_no_setting() -> None:
    code = (
        "import ctypes, torch; before = torch.get_num_threads(); import msformer_fast, msformer_fast.process\n"
        "msformer_fast.MSFormer; assert torch.get_num_threads() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_threads(1) == torch.get_num_threads() == 1
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        set_threads(0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    torch.set_num_threads(7)
    assert set_threads() == min(7, usable_cores())
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    assert set_threads() == 3


def test_a_number_that_is_right_is_not_said_again(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL, told a number, no longer takes fewer threads where that is faster."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail(f"told {number}"))
    assert set_threads(torch.get_num_threads()) == torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert set_threads() == torch.get_num_threads()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _quota(tmp_path) == cores


def test_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr("msformer_fast.process._quota", lambda: 0.5)
    assert usable_cores() == 1


#: A process that ends itself, with something to do at exit, in a buffer, and maybe in another thread.
LEAVING = """
import atexit, sys, threading, time
from msformer_fast.process import leave
atexit.register(lambda: print("at exit"))
def late():
    time.sleep(0.3)
    print("late")
if sys.argv[1] == "thread":
    threading.Thread(target=late).start()
if sys.argv[1] == "closed":
    sys.stdout.close()
    sys.stdout = None
print("written", file=sys.stderr)
leave(3)
"""


@pytest.mark.parametrize(("how", "printed"), [("plain", "at exit\n"), ("thread", "late\nat exit\n"), ("closed", "")])
def test_a_process_leaves_when_all_is_done(how: str, printed: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", LEAVING, how], capture_output=True, text=True, env=environment)
    assert done.returncode == 3
    assert done.stdout == printed
    assert done.stderr == "written\n"


def test_nothing_is_collected_while_modules_are_imported() -> None:
    code = (
        "import gc; from msformer_fast.process import importing\n"
        "with importing():\n    assert not gc.isenabled(); import json\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 0; gc.disable()\n"
        "with importing():\n    pass\n"
        "assert not gc.isenabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
