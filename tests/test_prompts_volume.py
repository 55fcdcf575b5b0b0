"""Points and boxes in volumes: what they may be, and what becomes of an object from slice to slice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast import InputError, segment
from msformer_fast.cli import main
from msformer_fast.metrics import score_blind
from msformer_fast.prompts.carry import Neighbour
from msformer_fast.prompts.prompt import Prompt
from msformer_fast.prompts.volume import VolumePrompt, given_prompt

from .cohort_samples import OPTIONS
from .conftest import DATA

nibabel = pytest.importorskip("nibabel")
SLICES, SIDE = 11, 72
FAST = {"size": None, "channels": 8, "clusters": 8, "max_iterations": 3}


def ball(row: float, column: float, middle: float, radius: float, thickness: float) -> np.ndarray[Any, Any]:
    """(F, H, W) bool, an ellipsoid; it moves a little to the right from slice to slice."""
    z, y, x = np.mgrid[:SLICES, :SIDE, :SIDE].astype(float)
    moved = column + 0.7 * (z - middle)
    return ((z - middle) / thickness) ** 2 + ((y - row) / radius) ** 2 + ((x - moved) / radius) ** 2 <= 1


OBJECT, OTHER = ball(30, 24, 5, 13, 4.4), ball(48, 54, 5, 11, 3.4)


def volume(seed: int = 0, noise: float = 0.02) -> np.ndarray[Any, Any]:
    """(F, H, W) in [0, 1]: two dark ellipsoids of the same look, the second of them not meant."""
    rng = np.random.default_rng(seed)
    shown = np.where(OBJECT | OTHER, 0.3, 0.7) + rng.normal(0, noise, OBJECT.shape)
    return np.clip(shown, 0, 1)


def write(path: Path, shown: np.ndarray[Any, Any]) -> Path:
    # Voxel axis 0 runs to the patient's left, as columns do; axis 1 to the front, against rows.
    voxels = (shown[:, ::-1].transpose(2, 1, 0) * 900).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, 1, 1, 1])), path)
    return path


def read(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)[:, ::-1] > 0


def segmented(folder: Path, *words: str, shown: np.ndarray[Any, Any] | None = None) -> tuple[Any, Any]:
    """The mask (F, H, W) and the record of a volume with these words on the command line."""
    path = write(folder / "scan.nii.gz", volume() if shown is None else shown)
    assert main(["segment", str(path), "-o", str(folder / "out"), *OPTIONS, *words]) == 0
    return read(folder / "out" / "scan_mask.nii.gz"), json.loads((folder / "out" / "scan.json").read_text())


@pytest.mark.parametrize("z", [5, 8])
def test_a_click_is_carried_until_the_object_ends(tmp_path: Path, z: int) -> None:
    row, column = (int(np.median(each)) for each in np.nonzero(OBJECT[z]))
    mask, record = segmented(tmp_path, "--point", f"{column},{row},{z}", "--not-point", f"54,48,{z}")
    assert score_blind(mask.reshape(-1, SIDE), OBJECT.reshape(-1, SIDE)).dice > 0.85
    assert not (mask & OTHER).any()
    empty = [index for index in range(SLICES) if not OBJECT[index].any()]
    assert empty and not mask[empty].any()
    assert record["prompt"]["points"] == [[column, row, z]]
    beyond = [index for index, each in enumerate(record["slices"]) if "beyond" in each]
    assert beyond and not mask[beyond].any() and f"{len(beyond)} beyond what was pointed at" in record["reason"]
    assert [each["pixels"] for each in record["slices"] if "pixels" in each] == [
        int(each.sum()) for index, each in enumerate(mask) if index not in beyond
    ]
    assert os.listdir(tmp_path / "out") and not list((tmp_path / "out").glob(".*"))


def test_a_box_is_not_left(tmp_path: Path) -> None:
    mask, _ = segmented(tmp_path, "--box", "8,15,3,42,46,8")
    inside = np.zeros_like(OBJECT)
    inside[3:8] = True
    assert not mask[~inside].any() and not (mask & OTHER).any()
    assert score_blind(mask.reshape(-1, SIDE), (OBJECT & inside).reshape(-1, SIDE)).dice > 0.85


def test_two_boxes_are_two_objects(tmp_path: Path) -> None:
    mask, _ = segmented(tmp_path, "--box", "8,15,1,42,46,10", "--box", "42,36,2,67,61,9")
    for truth in (OBJECT, OTHER):
        near = np.zeros_like(truth)
        z, y, x = np.nonzero(truth)
        near[z.min() : z.max() + 1, y.min() : y.max() + 1, x.min() : x.max() + 1] = True
        assert (mask & truth).sum() > 0.75 * truth.sum()
    assert (mask & ~(OBJECT | OTHER)).sum() < 0.25 * mask.sum()


def test_clicks_in_two_slices_meet(tmp_path: Path) -> None:
    words = [
        word for z in (3, 7) for word in ("--point", f"{24 + round(0.7 * (z - 5))},30,{z}", "--not-point", f"54,48,{z}")
    ]
    mask, _ = segmented(tmp_path, *words)
    assert score_blind(mask.reshape(-1, SIDE), OBJECT.reshape(-1, SIDE)).dice > 0.85


def test_a_run_over_volumes_with_a_list(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", volume())
    (tmp_path / "list.csv").write_text('path,point,not_point\na.nii.gz,"24,30,5","54,48,5"\n')
    assert main(["segment", str(tmp_path / "list.csv"), "-o", str(tmp_path / "out"), *OPTIONS]) == 0
    mask = read(tmp_path / "out" / "a_mask.nii.gz")
    assert score_blind(mask.reshape(-1, SIDE), OBJECT.reshape(-1, SIDE)).dice > 0.85


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--point", "24,30"], "is a volume of 11 slices; accepted are points X,Y,Z and boxes X0,Y0,Z0,X1,Y1,Z1"),
        (["--point", "24,30,11"], "point: slice 11 is none of the 11; accepted is Z from 0 to 10"),
        (["--not-point", "1,1,-1", "--point", "24,30,5"], "not-point: slice -1 is none of the 11"),
        (["--point", "72,30,5"], "point: 72,30 lies outside of the image of 72 x 72"),
        (["--box", "1,1,11,9,9,12"], "box: slices 11 to 12 are none of the 11"),
        (["--box", "1,1,3,9,9,3"], "boxes: 1,1,3,9,9,3 has no volume"),
        (["--point", "24,30,5", "--box", "1,1,9,9"], "boxes: X0,Y0,X1,Y1 beside what is given of a volume"),
        (["--point", "1,2,3,4"], "accepted is X,Y, numbers of pixels, or X,Y,Z in a volume"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    path = write(tmp_path / "scan.nii.gz", volume())
    assert main(["segment", str(path), "-o", str(tmp_path / "out"), *OPTIONS, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_volumes_point_in_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from msformer_fast.images import write_png

    write_png(tmp_path / "a.png", (volume()[5] * 255).astype(np.uint8))
    words = ["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *OPTIONS, "--point", "24,30,5"]
    assert main(words) == 2
    assert "is one image; accepted are points X,Y and boxes X0,Y0,X1,Y1, without Z" in capsys.readouterr().err


def test_what_is_given_of_a_volume() -> None:
    assert given_prompt(points=(3, 4)) == Prompt(points=((3.0, 4.0),))
    assert given_prompt(points=np.array([3, 4, 5])) == given_prompt([(3, 4, 5)]) == VolumePrompt(((3.0, 4.0, 5.0),))
    assert given_prompt() is None
    for given, message in (
        ({"points": (1, 2, 3), "not_points": (1.2, 2.5, 3.9)}, "one of not_points too"),
        ({"points": (1, 2, 3), "boxes": (4, 4, 0, 9, 9, 9)}, "lies in no box"),
        ({"not_points": (1, 2, 3)}, "given alone"),
        ({"points": [(1, 2, 3), (1, 2)]}, "X,Y beside what is given of a volume"),
        ({"points": [(1, 2, float("nan"))]}, "finite numbers"),
    ):
        with pytest.raises(InputError, match=message):
            given_prompt(**given)
    found = VolumePrompt(((1, 2, 3), (40, 40, 6)), ((9, 9, 6),), ((0, 0, 1, 5, 5, 8), (30, 30, 2, 60, 60, 99)))
    first, second = found.beginnings(9)
    assert first.prompts == {3: Prompt(((1, 2),), (), ((0, 0, 5, 5),))} and (first.first, first.beyond) == (1, 8)
    assert second.prompts == {6: Prompt(((40, 40),), ((9, 9),), ((30, 30, 60, 60),))} and second.beyond == 9
    assert list(VolumePrompt(boxes=((0, 0, 2, 5, 5, 5),)).beginnings(9)[0].prompts) == [3]


def test_a_neighbour_in_place_of_a_click() -> None:
    shown = volume().astype(np.float32)[..., None]
    result = segment(shown[6], neighbour=Neighbour(shown[5], OBJECT[5]), **FAST)
    assert score_blind(result.mask, OBJECT[6]).dice > 0.9 and result.foreground.rule == "prompt"
    gone = segment(np.roll(shown[0], 1), neighbour=Neighbour(shown[5], OBJECT[5]), **FAST)
    assert not gone.mask.any() and "ends before this slice" in gone.foreground.reason
    with pytest.raises(InputError, match="neighbour: given with points or boxes"):
        segment(shown[6], neighbour=Neighbour(shown[5], OBJECT[5]), points=(24, 30), **FAST)
    with pytest.raises(InputError, match=r"neighbour: got pixels \(72, 72, 1\) and a mask \(71, 72\)"):
        segment(shown[6], neighbour=Neighbour(shown[5], OBJECT[5, 1:]), **FAST)


@pytest.mark.skipif(not (DATA / "data" / "lung_ct").is_dir(), reason="no research images here")
def test_a_click_in_a_stack_of_a_real_slice(tmp_path: Path) -> None:
    """A CT slice whose scale changes from slice to slice: one click in the middle finds the lungs in all."""
    from scipy import ndimage

    from msformer_fast.evaluate_prompts import truth_prompt
    from msformer_fast.formats.plain import read_image, read_mask

    path = sorted((DATA / "data" / "lung_ct" / "images").glob("*"))[2]
    image = read_image(path)[::4, ::4].mean(axis=2)
    truth = read_mask(DATA / "data" / "lung_ct" / "masks" / path.name)[::4, ::4]
    middle = np.array(truth.shape) / 2

    def scaled(values: np.ndarray[Any, Any], scale: float, order: int) -> np.ndarray[Any, Any]:
        offset = middle - middle / scale
        return ndimage.affine_transform(values, np.ones(2) / scale, offset, order=order, mode="nearest")

    scales = (0.88, 0.94, 1.0, 1.06)
    shown = np.clip(np.stack([scaled(image, scale, 1) for scale in scales]), 0, 1)
    masks = np.stack([scaled(truth.astype(np.uint8), scale, 0) > 0 for scale in scales])
    ((x, y),) = truth_prompt(truth, "point", path.name).points
    mask, _ = segmented(tmp_path, "--point", f"{x:g},{y:g},2", "--size", "129", shown=shown)
    each = [score_blind(mine, its).dice for mine, its in zip(mask, masks, strict=True)]
    # As good, nearly, as where the click was.
    assert each[2] > 0.88 and min(each) > each[2] - 0.05, each
