"""Points and boxes: what may be given, what they mean on drawn images, and how they reach the network's clusters."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msformer_fast import InputError, phantom, segment
from msformer_fast.cli import main
from msformer_fast.foreground import Maps, known_rule, known_targets
from msformer_fast.foreground.calibration import DOUBTFUL, Raw, calibrated
from msformer_fast.images import write_png
from msformer_fast.margin import Margin
from msformer_fast.metrics import dice
from msformer_fast.prompts.prompt import Prompt, as_prompt
from msformer_fast.prompts.rule import prompted

FAST: dict[str, Any] = {"size": 49, "channels": 6, "clusters": 8, "depth": 1, "max_iterations": 2, "device": "cpu"}
WORDS = "--size 49 --channels 6 --clusters 8 --depth 1 --max-iterations 2 --device cpu --threads 1 --quiet".split()  # noqa: SIM905


def alone(image: Any, prompt: Prompt) -> np.ndarray:
    """The mask of a prompt by the image's values alone."""
    labels = (image.mean(axis=2) > image.mean()).astype(np.uint8)
    return prompted([Maps(labels)], image, prompt).mask


def inner(mask: np.ndarray) -> tuple[float, float]:
    from scipy import ndimage

    row, column = np.unravel_index(ndimage.distance_transform_edt(mask).argmax(), mask.shape)
    return float(column), float(row)


@pytest.fixture(scope="module")
def discs() -> tuple[np.ndarray, list[np.ndarray]]:
    """Dark discs of radius 20: two mirrored ones, on light noise; and the masks of both."""
    y, x = np.mgrid[:120, :160]
    masks = [np.hypot(y - 60, x - at) < 20 for at in (40, 120)]
    rng = np.random.default_rng(0)
    image = 0.7 + rng.normal(0, 0.02, (120, 160, 3))
    for mask in masks:
        image[mask] -= 0.4
    return np.clip(image, 0, 1).astype(np.float32), masks


@pytest.mark.parametrize("seed", [0, 3])
def test_a_click_and_a_box_mean_the_lesion(seed: int) -> None:
    image, truth = phantom.lesion((129, 129), seed)
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    assert dice(alone(image, Prompt(points=(inner(truth),))), truth) > 0.9
    assert dice(alone(image, Prompt(boxes=(box,))), truth) > 0.9


def test_one_click_means_both_lungs() -> None:
    from scipy import ndimage

    image, truth = phantom.chest((129, 129), 1)
    mask = alone(image, Prompt(points=(inner(truth),)))
    assert dice(mask, truth) > 0.85
    parts, count = ndimage.label(truth)
    assert count == 2 and all((mask & (parts == part)).sum() > 0.7 * (parts == part).sum() for part in (1, 2))


def test_a_rule_that_knows_the_kind_has_its_say() -> None:
    image, truth = phantom.chest((129, 129), 1)
    labels = (image.mean(axis=2) > image.mean()).astype(np.uint8)
    name = known_rule(np.asarray(image, dtype=np.float64))
    proposals, scores = known_targets([Maps(labels)], np.asarray(image, dtype=np.float64), name)
    assert name == "lungs-xray" and proposals and scores.max() <= 0
    click = Prompt(points=(inner(truth),))
    assert "by a vote with rule 'lungs-xray'" in prompted([Maps(labels)], image, click).reason
    # Not of what lies elsewhere, nor of a box, which says more than the kind of image does.
    outside = Prompt(points=(inner(~truth),))
    assert "by a vote" not in prompted([Maps(labels)], image, outside).reason
    box = Prompt(points=click.points, boxes=((0.0, 0.0, 129.0, 129.0),))
    assert "by a vote" not in prompted([Maps(labels)], image, box).reason
    # Nor in a drawing, which is none of its kinds.
    drawing = np.where(truth, 0.2, 0.8)[..., None]
    assert known_rule(drawing) == "" and known_targets([Maps(labels)], drawing, "")[0] == []


def test_several_clicks_are_put_to_votes_each_of_its_own_part() -> None:
    from scipy import ndimage

    image, truth = phantom.chest((129, 129), 1)
    labels = (image.mean(axis=2) > image.mean()).astype(np.uint8)
    parts, _ = ndimage.label(truth)
    (left, right), middle = [inner(parts == part) for part in (1, 2)], inner(~truth)
    both = prompted([Maps(labels)], image, Prompt(points=(left, right)))
    assert "The parts of 2 clicks, by votes with rule 'lungs-xray'" in both.reason
    assert both.voted_with == "lungs-xray" and dice(both.mask, truth) > 0.9

    x, y = left
    once = prompted([Maps(labels)], image, Prompt(points=(left, (x, y + 3)), not_points=(middle,)))
    assert dice(once.mask, parts == 1) > 0.9
    assert not once.mask[parts == 2].any() and not once.mask[int(middle[1]), int(middle[0])]


def test_a_pair_and_what_rules_it_out(discs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    image, (left, right) = discs
    assert dice(alone(image, Prompt(points=((40, 60),))), left | right) > 0.93
    assert dice(alone(image, Prompt(points=((40, 60),), not_points=((120, 60),))), left) > 0.93
    assert dice(alone(image, Prompt(points=((40, 60),), boxes=((10, 30, 70, 90),))), left) > 0.93
    assert dice(alone(image, Prompt(points=((40, 60), (120, 60)))), left | right) > 0.93
    assert dice(alone(image, Prompt(boxes=((19, 39, 61, 81),))), left) > 0.93
    assert dice(alone(image, Prompt(boxes=((19, 39, 61, 81), (99, 39, 141, 81)))), left | right) > 0.93
    assert dice(alone(image, Prompt(boxes=((18, 39, 142, 81),))), left | right) > 0.93


def test_a_light_object_is_found_too(discs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    image, (left, right) = discs
    assert dice(alone(1 - image, Prompt(points=((40, 60),))), left | right) > 0.93
    assert dice(alone(1 - image, Prompt(boxes=((19, 39, 61, 81),))), left) > 0.93


def test_a_not_point_is_never_in_the_mask(discs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    image, (left, _) = discs
    mask = alone(image, Prompt(points=((32, 60),), not_points=((52, 60),)))
    assert mask[60, 32] and not mask[60, 52]
    assert mask[:, :80].sum() < left.sum()


def test_confidence_and_reason(discs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    image, _ = discs
    labels = (image.mean(axis=2) > 0.5).astype(np.uint8)
    found = prompted([Maps(labels)], image, Prompt(points=((40, 60),)))
    assert found.rule == "prompt" and 0.85 < found.confidence <= 1 and not found.doubtful
    assert "its like on the other side" in found.reason and found.labels == (0,)


@pytest.mark.parametrize("kind", ["lesion", "ct"])
def test_boxes_and_clicks_have_the_curve_of_the_kind(kind: str) -> None:
    image, truth = phantom.make(kind, (97, 97), 1)
    rule = known_rule(np.asarray(image, dtype=np.float64))
    assert rule == {"lesion": "lesion", "ct": "lungs-ct"}[kind]
    labels = (image.mean(axis=2) > image.mean()).astype(np.uint8)
    (x, y), (rows, columns) = inner(truth), np.nonzero(truth)
    box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
    for name, prompt in (("clicks", Prompt(((x, y), (x + 2, y + 2)))), ("box", Prompt(boxes=(box,)))):
        found = prompted([Maps(labels)], image, prompt)
        assert found.confidence == calibrated(f"{name} {rule}", Raw(found.agreement, 0.0)) != found.agreement
        assert found.doubtful == (found.confidence < DOUBTFUL[f"{name} {rule}"])
    # Two tones are no kind of image that there is a curve for.
    drawn = np.repeat(np.where(truth, 0.2, 0.9)[..., None], 3, axis=2)
    found = prompted([Maps(labels)], drawn, Prompt(boxes=(box,)))
    assert known_rule(drawn) == "" and found.confidence == found.agreement


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"points": "ab"}, "points: got 'ab'; accepted are X,Y, finite numbers"),
    "three": ({"points": [(1, 2, 3)]}, "points: got .* accepted are X,Y"),
    "nan": ({"points": [(1, float("nan"))]}, "points: got .*finite"),
    "truth value": ({"points": [(True, False)]}, "points: got"),
    "two for a box": ({"boxes": [(1, 2)]}, "boxes: got .* accepted are X0,Y0,X1,Y1"),
    "no area": ({"boxes": (5, 5, 5, 9)}, "boxes: 5,5,5,9 has no area"),
    "turned": ({"boxes": (9, 5, 5, 9)}, "has no area"),
    "both": ({"points": (5, 5), "not_points": (5.4, 5.2)}, "points: 5,5 is one of not_points too"),
    "not alone": ({"not_points": (5, 5)}, "not_points: given alone"),
    "beside the box": ({"points": (50, 5), "boxes": (0, 0, 9, 9)}, "points: 50,5 lies in no box"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_prompt(case: str) -> None:
    given, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        as_prompt(**given)


def test_what_is_a_prompt() -> None:
    assert as_prompt() is None and as_prompt(points=[], boxes=None) is None
    assert as_prompt(points=(3, 4)) == as_prompt(points=np.array([[3, 4]])) == Prompt(points=((3.0, 4.0),))
    prompt = as_prompt([(3, 4)], (7, 8), [(0, 0, 9, 9)])
    assert prompt is not None and prompt.as_dict() == {
        "points": [[3, 4]], "not_points": [[7, 8]], "boxes": [[0, 0, 9, 9]]
    }  # fmt: skip


def test_outside_of_the_image() -> None:
    shape = (60, 80, 3)
    for given, said in (
        ({"points": (80, 5)}, "point: 80,5 lies outside of the image of 80 x 60; accepted are x from 0 to 79"),
        ({"points": (5, -1)}, "point: 5,-1 lies outside"),
        ({"boxes": (90, 0, 99, 9)}, "box: 90,0,99,9 lies outside"),
        ({"points": (5, 5), "not_points": (5, 60)}, "not-point: 5,60 lies outside"),
    ):
        prompt = as_prompt(**given)
        assert prompt is not None
        with pytest.raises(InputError, match=said):
            prompt.check(shape)
    reaching_beyond = as_prompt(boxes=(-3, -3, 99, 30))
    assert reaching_beyond is not None
    reaching_beyond.check(shape)
    assert reaching_beyond.at(shape, (30, 40)).boxes == ((0, 0, 40, 15),)


def test_without_a_margin() -> None:
    margin, shape = Margin(top=10, bottom=0, left=20, right=5), (60, 80)
    prompt = Prompt(points=((25, 12),), not_points=((3, 3), (30, 30)), boxes=((10, 0, 40, 40),))
    assert prompt.within(margin, shape) == Prompt(((5, 2),), ((10, 20),), ((0, 0, 20, 30),))
    assert Prompt(points=((5, 30),)).within(margin, shape) is None
    assert Prompt(boxes=((0, 0, 15, 60),)).within(margin, shape) is None


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "mole.png"
    write_png(path, (phantom.lesion((60, 75), seed=1)[0] * 255).astype(np.uint8))
    return path


def test_segment_takes_and_records_them(picture: Path) -> None:
    result = segment(picture, points=[(37, 30)], not_points=(2, 2), **FAST)
    assert result.mask.shape == (60, 75) and result.mask[30, 37] and not result.mask[2, 2]
    record = result.as_dict()
    assert record["prompt"] == {"points": [[37, 30]], "not_points": [[2, 2]]}
    assert record["foreground"]["rule"] == "prompt" and "points" not in record["settings"]
    with pytest.raises(InputError, match="rule: got 'lungs' with points or boxes"):
        segment(picture, points=[(37, 30)], rule="lungs", **FAST)
    with pytest.raises(InputError, match="rule: 'prompt' needs points or boxes"):
        segment(picture, rule="prompt", **FAST)
    with pytest.raises(InputError, match="outside of the image of 75 x 60"):
        segment(picture, points=[(75, 30)], **FAST)


def test_a_click_in_a_margin_keeps_the_margin() -> None:
    image = np.ones((120, 120, 3), dtype=np.float32)
    image[20:-20, 20:-20] = phantom.lesion((80, 80), seed=2)[0]
    assert segment(image, points=(60, 60), **FAST).margin is not None
    assert segment(image, points=(5, 5), **FAST).margin is None


def test_the_command_line(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["segment", str(picture), "-o", str(tmp_path / "out"), *WORDS]
    assert main([*command, "--point", "37,30", "--not-point", "2,2", "--not-point", "4,2", "--box", "5,5,70,55"]) == 0
    record = json.loads((tmp_path / "out" / "mole.json").read_text())
    assert record["prompt"] == {
        "points": [[37, 30]], "not_points": [[2, 2], [4, 2]], "boxes": [[5, 5, 70, 55]]
    }  # fmt: skip
    capsys.readouterr()
    for words, said in (
        (["--point", "37"], "point: got '37'; accepted is X,Y"),
        (["--box", "1,2,3,x"], "box: got '1,2,3,x'; accepted is X0,Y0,X1,Y1"),
        (["--point", "99,5"], "point: 99,5 lies outside of the image of 75 x 60"),
        (["--point", "3,5", "--rule", "lesion"], "rule: got 'lesion' with points or boxes"),
        (["--rule", "prompt"], "'prompt' needs points or boxes"),
        (["--not-point", "3,5"], "not_points: given alone"),
    ):
        assert main([*command, "--overwrite", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_point_of_an_image_is_refused_in_a_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    command = ["segment", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "out"), *WORDS]
    assert main([*command, "--point", "20,20"]) == 2
    assert "is a volume of 3 slices; accepted are points X,Y,Z" in capsys.readouterr().err
    result = segment(tmp_path / "scan.nii.gz", frame=1, points=(20, 20), **FAST)
    assert result.prompt == Prompt(points=((20.0, 20.0),))


DATA = Path(os.environ.get("MSFORMER_FAST_DATA", "/nowhere")) / "data"


@pytest.mark.parametrize(
    ("name", "least"), [("montgomery/images/MCUCXR_0140_1.png", 0.9), ("ph2/images/IMD016.png", 0.88)]
)
def test_floors_on_images(name: str, least: float) -> None:
    """One click on images of the half for choosing, by their values alone."""
    from msformer_fast.evaluate import find_pairs
    from msformer_fast.formats.plain import read_image, read_mask
    from msformer_fast.outlines import carry_up

    path = DATA / name
    if not path.exists():
        pytest.skip("needs the images in MSFORMER_FAST_DATA")
    masks = dict(find_pairs(path.parent, path.parent.parent / "masks"))
    image = read_image(path)
    truth = read_mask(masks[path], image.shape[:2])
    assert dice(carry_up(alone(image, Prompt(points=(inner(truth),))), image), truth) > least
    assert Image.open(path).size == image.shape[1::-1]
