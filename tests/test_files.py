"""Writing that leaves nothing half done."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from msformer_fast.files import check_output_folder, write_json, write_text
from msformer_fast.images import write_png

from .image_samples import RGB8, refused


def test_write_text_and_json(tmp_path):
    write_text(tmp_path / "a.txt", "Größe\n")
    assert (tmp_path / "a.txt").read_bytes() == "Größe\n".encode()
    record = {
        "nan": float("nan"),
        "inf": np.float32(np.inf),
        "half": np.float16(0.5),
        "count": np.int64(3),
        "yes": np.bool_(True),
        "list": (1, np.float64("nan"), [np.array([1.5, np.nan])]),
        7: None,
        "name": "ü",
    }
    write_json(tmp_path / "a.json", record)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "nan": null,\n')
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "nan": None,
        "inf": None,
        "half": 0.5,
        "count": 3,
        "yes": True,
        "list": [1, None, [[1.5, None]]],
        "7": None,
        "name": "ü",
    }
    with pytest.raises(TypeError):
        write_json(tmp_path / "b.json", {"a": object()})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # the new content is already on its way
        raise error

    monkeypatch.setattr(os, step, fail)
    if isinstance(error, OSError):
        refused(write_text, path, "new", match=r"a\.txt: cannot be written \(No space left on device\)")
    else:
        with pytest.raises(type(error)):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_file_mode_follows_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "")
        write_png(tmp_path / "a.png", RGB8)
    finally:
        os.umask(previous)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_unwritable_targets(tmp_path):
    (tmp_path / "file").touch()
    refused(write_text, tmp_path / "file" / "a.txt", "", match=r"a\.txt: cannot be written")
    refused(write_text, tmp_path / "none" / "a.txt", "", match="check the folder")
    (tmp_path / "folder").mkdir()
    refused(write_text, tmp_path / "folder", "", match="cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_check_output_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    assert check_output_folder(folder) == folder
    assert check_output_folder(str(folder)) == folder
    assert folder.is_dir()
    assert not list(folder.iterdir())
    monkeypatch.chdir(folder)
    assert check_output_folder("c/d") == Path("c/d")
    (tmp_path / "file").touch()
    refused(check_output_folder, tmp_path / "file", match="file: cannot be used as the output folder")
    refused(check_output_folder, tmp_path / "file" / "sub", match="cannot be used.*; name a folder")
    refused(check_output_folder, "a\0b", match="cannot be used")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_check_output_folder_on_a_read_only_file_system():
    refused(check_output_folder, "/proc/none/here", match="cannot be used")
    refused(check_output_folder, "/proc/self", match="cannot be used")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not stop root")
def test_check_output_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        refused(check_output_folder, tmp_path, match="Permission denied")
        refused(check_output_folder, tmp_path / "sub", match="Permission denied")
    finally:
        tmp_path.chmod(0o700)
