"""Files of any format: found in folders, opened by one call, and refused in one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from msformer_fast.formats import IMAGE_SUFFIXES, is_image_file, open_image, stem
from msformer_fast.formats.plain import read_image

from . import medical_samples as samples
from .image_samples import refused, save


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(open_image, tmp_path / "none.dcm", match=r"none\.dcm: cannot be read \(No such file")
    refused(open_image, tmp_path, match="a folder")
    refused(open_image, "a\0.nii", match="cannot be read")
    (tmp_path / "empty.dcm").touch()
    refused(open_image, tmp_path / "empty.dcm", match="the file is empty")
    file = open_image(samples.write(tmp_path / "a.dcm", samples.ct()))
    file.path.unlink()
    refused(file.read, 0, match=r"a\.dcm: cannot be read \(No such file")
    path = samples.write(tmp_path / "b.dcm", samples.ct())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(open_image, path, match=r"b\.dcm: reading DICOM needs pydicom; install msformer-fast\[dicom\]")


def test_plain_files(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", samples.RGB)
    file = open_image(path)
    assert (file.kind, file.is_volume, file.frames, file.shape, file.path) == ("plain", False, 1, (40, 44), path)
    np.testing.assert_array_equal(file.read(0), read_image(path))
    refused(file.read, 1, match="has no frame 1")
    refused(open_image(path, max_pixels=10).read, 0, match="more than 10 pixels")
    refused(open_image(save(tmp_path / "c.png", np.zeros((40, 40), np.uint8))).read, 0, match="all pixels are equal")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.hdr", "one half of an Analyze or NIfTI pair"),
        ("a.img", "one half of an Analyze or NIfTI pair"),
        ("A.IMG.GZ", "one half of an Analyze or NIfTI pair"),
        ("a.mgz", "a volume of FreeSurfer"),
        ("a.mgh", "a volume of FreeSurfer"),
        ("a.nrrd", "an NRRD volume"),
        ("a.mha", "a MetaImage volume"),
    ],
)
def test_volumes_of_other_formats(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_bytes((b"\x1f\x8b" if name.lower().endswith(("z", "gz")) else b"") + bytes(400))
    refused(
        open_image, tmp_path / name, match=rf"is {what}, which is not read; accepted are .* convert it to \.nii\.gz"
    )
    save(tmp_path / "a.png", samples.RGB).rename(tmp_path / name)
    assert open_image(tmp_path / name).kind == "plain", "the content tells"


def test_compressed_files(tmp_path: Path) -> None:
    for name in ("a.dcm.gz", "a.dcm", "a.png.gz", "b"):
        (tmp_path / name).write_bytes(b"\x1f\x8b" + bytes(400))
        refused(open_image, tmp_path / name, match="is compressed with gzip; unpack it")


def test_which_files_of_a_folder_are_images(tmp_path: Path) -> None:
    for suffix in IMAGE_SUFFIXES:
        assert is_image_file(tmp_path / f"none{suffix}") and is_image_file(tmp_path / f"none{suffix.upper()}")
    for name in ("1.2.840.113", "IM0001", "a.img"):
        assert not is_image_file(tmp_path / name)
        path = samples.write(tmp_path / name, samples.ct())
        assert is_image_file(path) and open_image(path).kind == "dicom"
    (tmp_path / "notes.txt").write_text("DICM" * 100)
    assert is_image_file(tmp_path / "notes.txt")  # by its bytes 128 to 132
    (tmp_path / "notes.txt").write_text("DICOM" * 100)
    assert not is_image_file(tmp_path / "notes.txt") and not is_image_file(tmp_path)
    assert not is_image_file(Path("a\0b"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert not is_image_file(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a"),
        ("x/b.NII.GZ", "b"),
        ("b.nii", "b"),
        ("c.tar.gz", "c.tar"),
        ("1.2.840.113", "1.2.840.113"),
        ("1.2.840.113.dcm", "1.2.840.113"),
        ("IM0001", "IM0001"),
        (".nii.gz", ".nii.gz"),
    ],
)
def test_stem(name: str, expected: str) -> None:
    assert stem(name) == stem(Path(name)) == expected
