"""`segment` of one image: what would take more memory than it may is told before anything is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msformer_fast.cli import main

from .cohort_samples import OPTIONS, write_images


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: Any, **__: Any) -> None:
        pytest.fail("it was decoded")

    for name in ("plain.PlainImage", "nifti.NiftiFile", "dicom.DicomFile"):
        pytest.importorskip({"nifti": "nibabel", "dicom": "pydicom"}.get(name.split(".")[0], "numpy"))
        monkeypatch.setattr(f"msformer_fast.formats.{name}.read", decoded)


def refused(capsys: pytest.CaptureFixture[str], path: Path, out: Path, *words: str) -> str:
    assert main(["segment", str(path), "-o", str(out), *OPTIONS, *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not out.exists()
    return err


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.usefixtures("undecoded")
def test_pictures(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"large{suffix}"
    Image.fromarray(np.zeros((2000, 3000, 3), np.uint8)).save(path)
    err = refused(capsys, path, tmp_path / "out", "--max-memory", "0.2")
    assert f"{path}: 2000 x 3000 pixels would take" in err and "0.2 GB are there" in err


@pytest.mark.usefixtures("undecoded")
def test_volumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nibabel = pytest.importorskip("nibabel")
    for name in ("volume.nii", "volume.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.zeros((200, 200, 300), np.uint8), np.eye(4)), tmp_path / name)
        err = refused(capsys, tmp_path / name, tmp_path / "out", "--max-memory", "0.1")
        assert f"{tmp_path / name}: 300 x 200 x 200 pixels would take" in err


def test_a_smaller_size_is_named_and_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = write_images(tmp_path, 1, height=300, width=400)
    words = ["--size", "257", "--channels", "100", "--clusters", "100", "--max-memory", "0.3"]
    err = refused(capsys, path, tmp_path / "out", *words)
    assert "size 257 would take" in err and "fits" in err


@pytest.mark.parametrize("amount", ["0", "-1", "nan", "inf"])
@pytest.mark.parametrize("many", [False, True])
def test_amounts_that_are_none(amount: str, many: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = write_images(tmp_path / "in", 1)
    err = refused(capsys, path.parent if many else path, tmp_path / "out", "--max-memory", amount)
    assert f"max_memory: got {amount}; accepted are gigabytes above 0" in err
