"""`evaluate` where names are not as simple as one stem, one image, one mask."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msformer_fast import phantom
from msformer_fast.cli import main
from msformer_fast.errors import InputError
from msformer_fast.evaluate import find_pairs, output_names
from msformer_fast.formats.plain import read_mask

FAST = ["--size", "49", "--channels", "6", "--clusters", "8", "--depth", "1", "--max-iterations", "2", "--quiet"]
FAST += ["--methods", "--device", "cpu"]


def write(folder: Path, images: list[str], masks: list[str]) -> tuple[Path, Path]:
    for each in ("images", "masks"):
        (folder / each).mkdir(exist_ok=True)
    for seed, name in enumerate(images):
        picture, _ = phantom.lesion((50, 56), seed=seed)
        Image.fromarray((picture * 255).astype(np.uint8)).save(folder / "images" / name)
    for seed, name in enumerate(masks):
        Image.fromarray(phantom.lesion((50, 56), seed=seed)[1]).save(folder / "masks" / name)
    return folder / "images", folder / "masks"


def paired(folder: Path, images: list[str], masks: list[str]) -> dict[str, str]:
    return {image.name: mask.name for image, mask in find_pairs(*write(folder, images, masks))}


def test_two_images_of_one_stem_have_outputs_and_masks_of_their_own(tmp_path: Path) -> None:
    images, masks = write(tmp_path, ["x.png", "x.bmp", "y.png"], ["x.png_mask.png", "x.bmp_mask.png", "y.png"])
    out = tmp_path / "out"
    assert main(["evaluate", str(images), str(masks), "-o", str(out), *FAST]) == 0
    written = sorted(path.name for path in out.glob("*_mask.png"))
    assert written == ["x.bmp_mask.png", "x.png_mask.png", "y_mask.png"]
    assert json.loads((out / "x.bmp.json").read_text())["image"] == "x.bmp"
    assert not np.array_equal(read_mask(out / "x.png_mask.png"), read_mask(out / "x.bmp_mask.png"))
    with open(out / "evaluation.csv", newline="") as file:
        rows = {row["image"]: float(row["blind_dice"]) for row in csv.DictReader(file)}
    assert set(rows) == {"x.png", "x.bmp", "y.png"} and rows["x.png"] != rows["x.bmp"]


def test_names_are_those_of_the_whole_folder_in_both_halves(tmp_path: Path) -> None:
    images, masks = write(tmp_path, ["x.bmp", "x.png"], ["x.bmp", "x.png"])
    out = tmp_path / "out"
    for half in ("odd", "even"):
        command = ["evaluate", str(images), str(masks), "-o", str(out), "--split", half, *FAST]
        assert main([*command, *(["--overwrite"] if half == "even" else [])]) == 0
    assert sorted(path.name for path in out.glob("*_mask.png")) == ["x.bmp_mask.png", "x.png_mask.png"]


def test_one_mask_for_two_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = write(tmp_path, ["x.png", "x.jpg"], ["x.png"])
    assert main(["evaluate", str(images), str(masks), "-o", str(tmp_path / "out"), *FAST]) == 2
    err = capsys.readouterr().err
    assert "x.png" in err and "x.jpg" in err and "would be the mask of both" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_mask_with_the_suffix_of_the_image(tmp_path: Path) -> None:
    assert paired(tmp_path, ["x.png", "x.bmp"], ["x.png", "x.bmp"]) == {"x.png": "x.png", "x.bmp": "x.bmp"}


def test_two_masks_that_could_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x.bmp and .*x.tif could be its mask"):
        paired(tmp_path, ["x.png"], ["x.tif", "x.bmp"])


def test_no_record_is_written_over_the_table(tmp_path: Path) -> None:
    images = [Path("evaluation.png"), Path("A.png"), Path("a.png")]
    assert output_names(images) == [
        "evaluation.png",
        "A.png",
        "a.png~2",
    ]


def test_outputs_among_the_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = write(tmp_path, ["x.png"], ["x.png"])
    options = [each for each in FAST if each != "--methods"]
    assert main(["segment", str(images / "x.png"), "-o", str(images), *options]) == 0
    assert main(["evaluate", str(images), str(masks), "-o", str(tmp_path / "out"), *FAST]) == 0
    out = capsys.readouterr().out
    assert "1 image(s)" in out and "left out: 3 files that this package wrote" in out
    (images / "x.png").unlink()
    with pytest.raises(InputError, match="no image in it but outputs of this package"):
        find_pairs(images, masks)
