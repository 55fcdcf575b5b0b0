"""What memory there is, by what the system and its control groups say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from msformer_fast.cohort.memory import available_bytes, process_bytes

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def machine(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    8000 kB"}
V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"


def group2(path: str, limit: object, used: int, inactive: int = 0) -> dict[str, object]:
    stat = f"anon 5\ninactive_file {inactive}\nactive_file 777"
    return {f"{V2}{path}memory.max": limit, f"{V2}{path}memory.current": used, f"{V2}{path}memory.stat": stat}


def group1(path: str, limit: object, used: int, inactive: int = 0) -> dict[str, object]:
    stat = f"inactive_file 3\ntotal_inactive_file {inactive}"
    names = "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"
    return {f"{V1}{path}{name}": value for name, value in zip(names, (limit, used, stat), strict=True)}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MEMINFO, 8000 * 1024),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b"} | group2("a/b/", 5000, 2000, 300), 3300),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b"} | group2("a/b/", "max", 1) | group2("a/", 900, 200), 700),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b"} | group2("a/b/", 600, 1) | group2("a/", 900, 200), 599),
        (MEMINFO | {"proc/self/cgroup": "0::/"} | group2("", 4000, 1000, 50), 3050),
        (MEMINFO | {"proc/self/cgroup": "3:cpu:/x\n4:memory:/a/b\n0::/"} | group1("a/b/", 500, 100, 20), 420),
        # In a container the path is the host's, and what is mounted is the group itself.
        (MEMINFO | {"proc/self/cgroup": "4:memory:/docker/1f"} | group1("", 500, 100), 400),
        (MEMINFO | {"proc/self/cgroup": "4:memory:/a"} | group1("a/", 2**63 - 4096, 100), 8000 * 1024),
        (MEMINFO | {"proc/self/cgroup": "0::/a"} | group2("a/", 100, 200), 0),
        (MEMINFO | {"proc/self/cgroup": "nonsense\n0:\n:::\n0::/../../x"}, 8000 * 1024),
        ({"proc/self/cgroup": "0::/a"} | group2("a/", 5000, 1000), 4000),
    ],
)
def test_what_is_available(tmp_path: Path, files: dict[str, object], expected: int) -> None:
    assert available_bytes(machine(tmp_path, files)) == expected


def test_elsewhere_something_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < available_bytes(tmp_path) < 2**62
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    assert available_bytes(tmp_path) == 4096 * 1000
    monkeypatch.delattr(os, "sysconf")
    assert available_bytes(tmp_path) == 2**62
    assert 0 < process_bytes() < 10**9


@linux
def test_here_less_is_available_than_there_is() -> None:
    assert 0 < available_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
