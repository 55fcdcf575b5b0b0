"""What lies among images and is none: outputs of this package, and DICOM objects without a picture."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from msformer_fast.cli import main
from msformer_fast.cohort.listing import find_images
from msformer_fast.errors import InputError
from msformer_fast.own_outputs import is_output, is_run

from .cohort_samples import OPTIONS, Inline, write_images


def segment(*words: Path | str) -> int:
    return main(["segment", *map(str, words), "--threads", "1", "--quiet", *OPTIONS])


def names(*inputs: Path | str, **how: bool) -> list[str]:
    return [each.relative for each in find_images([str(each) for each in inputs], **how).found]


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images, the outputs of one alone beside it, and of a run below."""
    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
    (image, _) = write_images(tmp_path / "scans", 2)
    assert segment(tmp_path / "scans", "-o", tmp_path / "scans" / "first") == 0
    assert segment(image, "-o", image.parent) == 0
    return tmp_path / "scans"


def test_outputs_are_left_out_and_counted(
    scans: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ["image000.png", "image001.png"]
    assert names(scans) == names(scans, recursive=True) == images
    assert find_images([str(scans)]).outputs == 3
    assert find_images([str(scans)], recursive=True).outputs == 9
    assert names(f"{scans}/*.png") == names(f"{scans}/**/*.png") == images
    assert names(*sorted(scans.glob("*.png"))) == images  # as a shell gives them
    assert names(scans.parent, recursive=True) == [f"scans/{each}" for each in images]
    assert main(["segment", str(scans), "-o", str(scans / "second"), "--recursive", *OPTIONS]) == 0
    captured = capsys.readouterr()
    assert "2 of 2 images done" in captured.out
    assert "left out: 9 files that earlier runs wrote" in captured.err
    assert names(scans, recursive=True) == images


def test_a_run_in_the_folder_of_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
    images = write_images(tmp_path / "scans", 2)
    assert segment(*images, "-o", tmp_path / "scans") == 0
    assert names(tmp_path / "scans") == [each.name for each in images]


def test_outputs_named_by_a_list_are_taken_at_their_word(scans: Path) -> None:
    (scans / "list.csv").write_text("path\nimage000_mask.png\n")
    assert names(scans / "list.csv") == ["image000_mask.png"]


def test_folders_of_outputs_alone_are_told(scans: Path) -> None:
    with pytest.raises(InputError, match="6 that this package wrote left out"):
        find_images([f"{scans}/first/*.png"])


def test_files_of_others_are_images_whatever_they_are_called(tmp_path: Path) -> None:
    """A mask without a record of ours, a record that is another's, a file of a study that is called cohort.json."""
    write_images(tmp_path / "a", 1)[0].rename(tmp_path / "a" / "x_mask.png")
    (tmp_path / "a" / "y_mask.png").write_bytes((tmp_path / "a" / "x_mask.png").read_bytes())
    (tmp_path / "a" / "y.json").write_text('{"image": "y.png", "age": 60}')
    (tmp_path / "a" / "cohort.json").write_text('{"version": 1, "patients": 60}')
    (tmp_path / "a" / "x.json").write_text("[1, 2")
    assert not is_run(str(tmp_path / "a"))
    assert names(tmp_path, recursive=True) == ["a/x_mask.png", "a/y_mask.png"]


def test_other_outputs(tmp_path: Path) -> None:
    """Those of ``demo`` and ``evaluate``, and frames of a volume in folders of their own."""
    assert main(["demo", "-o", str(tmp_path / "demo"), *OPTIONS, "--quiet"]) == 0
    assert names(tmp_path, recursive=True) == ["demo/phantom_lesion.png"]
    folder = tmp_path / "volume"
    (folder / "v_mask").mkdir(parents=True)
    (folder / "v.json").write_text('{"image": "v.dcm", "confidence": 1, "slices": []}')
    (folder / "v_mask" / "0001.png").touch()
    (folder / "contact_sheet.png").touch()
    assert is_output(str(folder / "v_mask")) and not is_output(str(folder / "contact_sheet.png"))
    (folder / "evaluation.json").write_text('{"summary": {}, "images": 1, "settings": {}}')
    found = find_images([str(folder), str(tmp_path / "demo")], recursive=True)
    assert [each.relative for each in found.found] == ["phantom_lesion.png"]


# ---------------------------------------------------------------------------------------------------------------- DICOM
STORAGE = "1.2.840.10008.5.1.4.1.1."
WITHOUT = {
    "DICOMDIR": "1.2.840.10008.1.3.10",
    "SR": STORAGE + "88.11",
    "KO.dcm": STORAGE + "88.59",
    "PR": STORAGE + "11.1",
    "RTSTRUCT.dcm": STORAGE + "481.3",
    "RTPLAN": STORAGE + "481.5",
    "RTDOSE.dcm": STORAGE + "481.2",
    "SEG.dcm": STORAGE + "66.4",
    "REG": STORAGE + "66.1",
    "RAW": STORAGE + "66",
    "ECG": STORAGE + "9.1.1",
    "PDF.DCM": STORAGE + "104.1",
    "PRIVATE": "1.2.3.4.5",
}
WITH = {"CT": STORAGE + "2", "SC.dcm": STORAGE + "7", "RTIMAGE": STORAGE + "481.1", "OWN": "1.2.3.4.6"}


def _write(path: Path, sop_class: str, *, picture: bool, meta_class: bool = True) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, "1.2.3.4"
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    if path.name != "DICOMDIR":
        ds.SOPClassUID, ds.SOPInstanceUID = sop_class, "1.2.3.4"
    if picture:
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", 48, 48
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.PixelData = np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8).tobytes()
        ds["PixelData"].VR = "OB"
    if not meta_class:
        del meta.MediaStorageSOPClassUID
    ds.save_as(path, enforce_file_format=meta_class, implicit_vr=False, little_endian=True)


@pytest.mark.parametrize("meta_class", [True, False])
def test_dicom_objects_without_a_picture(tmp_path: Path, meta_class: bool) -> None:
    pytest.importorskip("pydicom")
    for name, sop_class in WITHOUT.items():
        if meta_class or name != "DICOMDIR":  # which has its class there alone
            _write(tmp_path / name, sop_class, picture=name == "SEG.dcm", meta_class=meta_class)
    for name, sop_class in WITH.items():
        _write(tmp_path / name, sop_class, picture=True, meta_class=meta_class)
    (tmp_path / "damaged.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + os.urandom(50))
    _write(tmp_path / "NOPIXELS.dcm", STORAGE + "2", picture=False)
    found = find_images([str(tmp_path)])
    # What should hold a picture and does not is told as a failure.
    assert [each.relative for each in found.found] == sorted([*WITH, "NOPIXELS.dcm", "damaged.dcm"])
    assert found.ignored == len(WITHOUT) - (not meta_class)
    assert names(f"{tmp_path}/*") == [each.relative for each in found.found]
    assert names(tmp_path / "SR", tmp_path / "CT") == ["SR", "CT"]  # named one by one: told as failures


def test_an_export_from_a_cd_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pydicom")
    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
    folder = tmp_path / "cd"
    (folder / "IMAGES").mkdir(parents=True)
    _write(folder / "DICOMDIR", WITHOUT["DICOMDIR"], picture=False)
    _write(folder / "IMAGES" / "IM1", WITH["CT"], picture=True)
    for name in ("SR", "PR"):
        _write(folder / "IMAGES" / name, WITHOUT[name], picture=False)
    for _ in range(2):
        assert main(["segment", str(folder), "-o", str(tmp_path / "out"), "--recursive", *OPTIONS]) == 0
        captured = capsys.readouterr()
        assert "1 of 1 images done" in captured.out
        assert "left out: 3 files that cannot be an image" in captured.err
