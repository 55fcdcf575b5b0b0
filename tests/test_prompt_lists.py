"""Points and boxes in the columns of a list, image by image, and what a run that goes on makes of changed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msformer_fast import InputError
from msformer_fast.cohort.listing import find_images
from msformer_fast.prompts.text import parse, parse_cell

from .cohort_samples import OPTIONS, Inline, write_images


def listing(folder: Path, text: str) -> list[dict[str, list[list[float]]]]:
    (folder / "list.csv").write_text(text)
    return [dict(each.prompts) for each in find_images([str(folder / "list.csv")]).found]


def test_cells() -> None:
    assert parse("3,4", 2, "point") == parse(" 3 4 ", 2, "point") == parse("(3, 4)", 2, "point") == (3.0, 4.0)
    assert parse_cell("1,2; 3,4;", 2, "point") == [[1.0, 2.0], [3.0, 4.0]] and parse_cell(" ", 2, "point") == []
    with pytest.raises(InputError, match="point: got '3;4'"):
        parse("3;4", 2, "point")


def test_columns(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    rows = [f'{names[0]},"3,4; 5,6","9,9",', f'{names[1]},,,"1,2,30,40"', f"{names[2]},,,"]
    assert listing(tmp_path, "\n".join(["image,points,not_points,boxes", *rows])) == [
        {"points": [[3, 4], [5, 6]], "not_points": [[9, 9]]},
        {"boxes": [[1, 2, 30, 40]]},
        {},
    ]
    assert listing(tmp_path, f"image;point;box\n{names[0]};3,4;0,0,9,9\n") == [
        {"points": [[3, 4]], "boxes": [[0, 0, 9, 9]]}
    ]
    assert listing(tmp_path, f"{names[0]}\n{names[1]}\n") == [{}, {}]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ('"3"', "list.csv: row 2, point: got '3'; accepted is X,Y"),
        ('"3,x"', "row 2, point: got '3,x'"),
    ],
)
def test_cells_that_are_no_points(tmp_path: Path, cells: str, said: str) -> None:
    write_images(tmp_path, 1)
    name = next(path.name for path in tmp_path.glob("*.png"))
    with pytest.raises(InputError, match=said):
        listing(tmp_path, f"image,point\n{name},{cells}\n")


def test_one_image_twice(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    name = next(path.name for path in tmp_path.glob("*.png"))
    with pytest.raises(InputError, match="listed twice with different points"):
        listing(tmp_path, f'image,point\n{name},"3,4"\n{name},"5,6"\n')


def test_a_run_and_a_changed_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image has its own; those whose points changed are done again, the others are kept."""
    from msformer_fast.cli import main

    monkeypatch.setattr("msformer_fast.cohort.run.LocalEngine", Inline)
    write_images(tmp_path / "in", 2)
    first, second = sorted((tmp_path / "in").glob("*.png"))
    table = tmp_path / "list.csv"
    out = tmp_path / "out"

    def run(point: str) -> int:
        table.write_text(f'image,point\nin/{first.name},"{point}"\nin/{second.name},\n')
        return main(["segment", str(table), "-o", str(out), "--threads", "1", *OPTIONS])

    def record(path: Path) -> dict[str, object]:
        found: dict[str, object] = json.loads(next(out.rglob(f"{path.stem}.json")).read_text())
        return found

    assert run("20,20") == 0
    assert record(first)["prompt"] == {"points": [[20, 20]]} and "prompt" not in record(second)
    before = next(out.rglob(f"{second.stem}.json")).stat().st_mtime_ns
    assert run("22,21") == 0
    assert record(first)["prompt"] == {"points": [[22, 21]]}
    assert next(out.rglob(f"{second.stem}.json")).stat().st_mtime_ns == before
    assert run("999,999") == 1
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    failed = [line for line in lines if line["status"] == "failed"]
    assert len(failed) == 1 and "point: 999,999 lies outside" in failed[0]["reason"]
    assert run("20,20") == 0
