"""``segment`` reads whatever the command line reads, and every image is decoded once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import msformer_fast as mf
from msformer_fast.cli import main
from msformer_fast.float32_products import asked_for
from msformer_fast.formats import open_image
from msformer_fast.images import write_png

from .cohort_samples import OPTIONS, SETTINGS
from .medical_samples import GREY8, MULTI_FRAME_SECONDARY, ct, image, write

nibabel = pytest.importorskip("nibabel")

FRAMES = np.stack([GREY8, GREY8[::-1], np.zeros_like(GREY8)])


def drawn(path: Path) -> Path:
    write_png(path, (mf.phantom.lesion((48, 60), seed=0).image * 255).astype(np.uint8))
    return path


def many_frames(path: Path) -> Path:
    return write(path, image(FRAMES, NumberOfFrames=len(FRAMES), sop_class=MULTI_FRAME_SECONDARY))


def volume(path: Path, shape: tuple[int, ...] = (36, 40, 5)) -> Path:
    voxels = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path


def assert_segments(path: Path, frame: int | None = None, **reading: Any) -> mf.Segmentation:
    """As the pixels that the reader gives."""
    found = mf.segment(path, frame=frame, **reading, **SETTINGS)
    file = open_image(path, lungs=True, **reading)
    wanted = mf.segment(file.read(frame or 0), modality=file.modality, **SETTINGS)
    assert np.array_equal(found.labels, wanted.labels) and np.array_equal(found.mask, wanted.mask)
    assert found.labels.shape == file.shape
    return found


def refused(path: Any, **options: Any) -> str:
    with pytest.raises(mf.InputError) as caught:
        mf.segment(path, **options, **SETTINGS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_one_image(tmp_path: Path) -> None:
    assert_segments(drawn(tmp_path / "drawn.png"))
    assert_segments(write(tmp_path / "slice", ct()))
    windowed = assert_segments(write(tmp_path / "slice.dcm", ct()), window=(0, 3000))
    assert not np.array_equal(windowed.labels, mf.segment(tmp_path / "slice.dcm", **SETTINGS).labels)
    assert_segments(volume(tmp_path / "flat.nii.gz", (36, 40)))
    assert_segments(tmp_path / "drawn.png", frame=0)


def test_one_frame_of_several(tmp_path: Path) -> None:
    path = many_frames(tmp_path / "loop.dcm")
    assert f"{path}: has 3 frames and frame is None; accepted are 0 to 2, or segment_cohort" in refused(path)
    assert_segments(path, frame=1)
    assert f"{path}: has no frame 3; accepted are 0 to 2" in refused(path, frame=3)
    assert f"{path}, frame 2: all pixels are equal" in refused(path, frame=2)


def test_one_slice_of_a_volume(tmp_path: Path) -> None:
    path = volume(tmp_path / "volume.nii.gz", (36, 40, 44))
    assert "has 44 frames and frame is None" in refused(path)
    shapes = {axis: assert_segments(path, frame=7, axis=axis).labels.shape for axis in (0, 1, 2)}
    assert {axis: sorted(shape) for axis, shape in shapes.items()} == {0: [40, 44], 1: [36, 44], 2: [36, 40]}
    assert_segments(path, frame=7, window=(500, 200))
    assert "axis: got 3" in refused(path, axis=3, frame=0)


@pytest.mark.parametrize("frame", [0, 1])
@pytest.mark.parametrize("make", [lambda: torch.rand(3, 40, 40), lambda: torch.rand(40, 40).numpy()])
def test_an_image_in_memory_has_no_frames(make: Callable[[], Any], frame: int) -> None:
    assert f"frame: got {frame} for an image in memory" in refused(make(), frame=frame)


@pytest.mark.parametrize("frame", [1.0, "1", True])
def test_a_frame_is_a_number(frame: Any, tmp_path: Path) -> None:
    assert f"frame: got {frame!r}; accepted is an integer or None" in refused(
        many_frames(tmp_path / "a.dcm"), frame=frame
    )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of a file each time that it is decoded."""
    from msformer_fast.formats import plain as pictures
    from msformer_fast.formats.dicom import DicomFile

    names: list[str] = []
    plain, dicom = pictures.decode, DicomFile._decode

    def of_picture(path: Any, *rest: Any) -> Any:
        names.append(Path(path).name)
        return plain(path, *rest)

    def of_dicom(self: DicomFile, *rest: Any, **more: Any) -> Any:
        names.append(self.path.name)
        return dicom(self, *rest, **more)

    monkeypatch.setattr(pictures, "decode", of_picture)
    monkeypatch.setattr(DicomFile, "_decode", of_dicom)
    return names


def test_every_image_is_decoded_once(tmp_path: Path, decoded: list[str]) -> None:
    paths = [drawn(tmp_path / "drawn.png"), write(tmp_path / "slice.dcm", image(GREY8))]
    Image.open(paths[0]).save(tmp_path / "drawn.tif")
    for path in [*paths, tmp_path / "drawn.tif"]:
        mf.segment(path, **SETTINGS)
        assert decoded == [path.name]
        decoded.clear()
        assert main(["segment", str(path), "-o", str(tmp_path / f"out of {path.name}"), *OPTIONS, "--quiet"]) == 0
        assert decoded == [path.name]
        decoded.clear()


def test_what_cannot_be_decoded_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = drawn(tmp_path / "half.png")
    path.write_bytes(path.read_bytes()[:-200])
    assert main(["segment", str(path), "-o", str(tmp_path / "out"), *OPTIONS]) == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_from_python_goes_on_with_one_of_the_command_line(tmp_path: Path, monkeypatch: Any) -> None:
    from .cohort_samples import Inline, write_images

    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
    write_images(tmp_path / "in", 2)
    out = tmp_path / "out"
    assert main(["segment", str(tmp_path / "in"), "-o", str(out), *OPTIONS, "--quiet"]) == 0
    summary = mf.segment_cohort(tmp_path / "in", out, **SETTINGS)
    assert isinstance(summary, mf.CohortSummary)
    assert (summary.made, len(summary.lines), summary.failures) == (0, 2, [])
    told: list[str] = []
    again = mf.segment_cohort([tmp_path / "in"], out, overwrite=True, notice=told.append, **SETTINGS)
    assert again.made == 2 and [line["status"] for line in again.lines] == ["done", "done"]
    with pytest.raises(mf.InputError, match="max_memory: got -1; accepted are gigabytes above 0"):
        mf.segment_cohort(tmp_path / "in", out, max_memory=-1)
    with pytest.raises(mf.InputError, match="window: got 3 numbers"):
        mf.segment_cohort(tmp_path / "in", out, window=(1, 2, 3))


def test_a_run_from_python_has_the_precision_that_its_caller_told(tmp_path: Path, monkeypatch: Any) -> None:
    """The processes that run the network are not told."""
    from .cohort_samples import Inline, write_images

    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
    write_images(tmp_path / "in", 1)
    for precision in ("highest", "high"):
        with asked_for(precision):
            mf.segment_cohort(tmp_path / "in", tmp_path / precision, precision=None, **SETTINGS)
        record = json.loads(next((tmp_path / precision).glob("image*.json")).read_text())
        assert record["settings"]["precision"] == precision
