"""Which images a run finds, and how their outputs are called."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msformer_fast.cohort.listing import Found, find_images, output_names
from msformer_fast.errors import InputError

HOSTILE = [
    "a b.png",
    "line\nbreak.png",
    "-dash.png",
    "--help.png",
    "käse 日本語.png",
    "quote'\".png",
    "x;$(y).png",
    "~.png",
]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(folder: Path | str, **how: object) -> list[str]:
    return [each.relative for each in find_images([str(folder)], **how).found]  # type: ignore[arg-type]


def test_a_folder_lists_its_images_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a.jpeg", "c.nii.gz", "notes.txt", ".hidden.png", "below/d.bmp")
    (tmp_path / "1.2.840").write_bytes(bytes(128) + b"DICM")
    listing = find_images([str(tmp_path)])
    assert [each.relative for each in listing.found] == ["1.2.840", "a.jpeg", "b.PNG", "c.nii.gz"]
    assert listing.ignored == 1
    assert all(os.path.isabs(each.path) for each in listing.found)
    assert names(tmp_path, recursive=True)[-2:] == ["below/d.bmp", "c.nii.gz"]


def test_hostile_names(tmp_path: Path) -> None:
    touch(tmp_path, *HOSTILE)
    if sys.platform.startswith("linux"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png"))).touch()
    listing = find_images([str(tmp_path)])
    assert {os.path.basename(each.path) for each in listing.found} >= set(HOSTILE)
    assert all(os.path.exists(each.path) for each in listing.found)
    assert len(listing.found) == len(os.listdir(tmp_path))


def test_links(tmp_path: Path) -> None:
    """Loops end, a link to an image is an image, and a link to nothing is not passed over in silence."""
    touch(tmp_path, "in/a.png", "in/deep/b.png", "elsewhere/c.png")
    (tmp_path / "in/deep/loop").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in/self").symlink_to(tmp_path / "in/self")
    (tmp_path / "in/self.png").symlink_to(tmp_path / "in/self.png")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "in/other").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = names(tmp_path / "in", recursive=True)
    assert found == ["a.png", "deep/b.png", "gone.png", "other/c.png", "self.png"]


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "x/1.png", "x/y/2.png", "x/y/3.txt", "odd[1].png", "odd1.png")
    monkeypatch.chdir(tmp_path)
    assert names("x/**/*.png") == ["1.png", "y/2.png"]
    assert names(f"{tmp_path}/x/*/*") == ["y/2.png"]
    assert names("odd[1].png") == ["odd[1].png"]  # what is there goes before what it might mean
    with pytest.raises(InputError, match="no image in .*none"):
        find_images(["none*.png"])


def test_a_list(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.png", "data/sub/b.png", "far/c.png")
    plain = tmp_path / "data/plain.csv"
    plain.write_text("a.png\nsub/b.png\n\n../far/c.png\nmissing.png\na.png\n")
    assert names(plain) == ["a.png", "sub/b.png", "c.png", "missing.png"]
    headed = tmp_path / "data/headed.csv"
    headed.write_text('\ufeffpatient,Image,grade\n1,a.png,3\n2,"sub/b.png",1\n', encoding="utf-8")
    assert names(headed) == ["a.png", "sub/b.png"]
    (tmp_path / "data/short.csv").write_text("id,path\n1,a.png\n2\n")
    with pytest.raises(InputError, match=r"short.csv: row 3 has no path"):
        find_images([str(tmp_path / "data/short.csv")])


def test_inputs_together_count_each_file_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    found = find_images([str(tmp_path / "b.png"), str(tmp_path), str(tmp_path / "*.png")]).found
    assert [each.relative for each in found] == ["b.png", "a.png"]


def test_outputs_are_not_taken_for_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/a_mask.png")
    assert names(tmp_path, recursive=True, leave_out=tmp_path / "out") == ["a.png"]
    with pytest.raises(InputError, match="is the folder of the images too"):
        find_images([str(tmp_path)], leave_out=tmp_path)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        find_images([str(tmp_path / "nothing")])
    with pytest.raises(InputError, match="need --recursive"):
        find_images([str(tmp_path)])


def test_ten_thousand_files_are_listed_without_opening_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(10_000):
        (tmp_path / f"{index:05d}.png").touch()
    opened = []
    real = open

    def counted(*arguments: object, **options: object) -> object:
        opened.append(arguments)
        return real(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", counted)
    found = find_images([str(tmp_path)]).found
    assert len(found) == len(set(output_names(found, {}))) == 10_000
    assert not opened


def found_of(*relatives: str) -> list[Found]:
    return [Found(f"/data/{each}", each) for each in relatives]


def test_one_stem_twice_keeps_both_suffixes() -> None:
    assert output_names(found_of("a.png", "a.jpg", "b.nii.gz", "x/a.png"), {}) == ["a.png", "a.jpg", "b", "x/a"]
    assert output_names(found_of("A.png", "a.png"), {}) == ["A.png", "a.png~2"]  # one name where case does not count
    assert output_names(found_of("cohort.png"), {}, reserved=["cohort"]) == ["cohort.png"]


def test_long_names_are_cut_and_stay_apart(tmp_path: Path) -> None:
    long = ["ä" * 110 + end for end in ("1.png", "2.png")] + ["y" * 251 + ".png"]
    made = output_names(found_of(*long), {})
    assert len(set(made)) == 3
    for name in made:
        (tmp_path / f"{name}_overlay.png").touch()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "d/", "D/"]),
            st.text("aAb.~2", min_size=1, max_size=4),
            st.sampled_from([".png", ".jpg", ".nii.gz", ""]),
        ).map("".join),
        unique=True,
        max_size=8,
    ),
    st.data(),
)
def test_names_never_clash_nor_change(relatives: list[str], data: st.DataObject) -> None:
    """No two alike, whatever the files are called; a run that goes on gives the names of one that was never stopped."""
    found = [Found(f"/data/{number}/{each}", each) for number, each in enumerate(relatives)]
    whole = output_names(found, {})
    assert len({name.casefold() for name in whole}) == len(whole)
    through = {each.path: name for each, name in zip(found, whole, strict=True) if data.draw(st.booleans())}
    assert output_names(found, through) == whole
