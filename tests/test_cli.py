"""The command line, run as a user would: its files, its errors, its exit codes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msformer_fast import phantom
from msformer_fast.cli import main
from msformer_fast.images import write_png

from .conftest import GOLDEN

FAST = [
    "--channels",
    "6",
    "--clusters",
    "8",
    "--depth",
    "1",
    "--size",
    "49",
    "--max-iterations",
    "2",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "mole.png"
    write_png(path, (phantom.lesion((60, 75), seed=1)[0] * 255).astype(np.uint8))
    return path


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], *words: str, code: int = 2) -> None:
    """The command ends with ``code`` and one line on stderr that holds every word; nothing on stdout."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("msformer-fast: error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_segment_writes_four_files(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["segment", str(image), "-o", str(folder), *FAST]) == 0
    names = ["mole.json", "mole_labels.png", "mole_mask.png", "mole_overlay.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    out = capsys.readouterr().out
    assert all(str(folder / name) in out for name in names)

    mask = np.asarray(Image.open(folder / "mole_mask.png"))
    assert mask.shape == (60, 75)
    assert set(np.unique(mask)) == {0, 255}
    labels = Image.open(folder / "mole_labels.png")
    assert labels.mode == "P"
    assert np.asarray(Image.open(folder / "mole_overlay.png")).shape == (60, 75, 3)
    record = json.loads((folder / "mole.json").read_text())
    assert record["image"] == "mole.png"
    assert record["iterations"] == len(record["history"]) == 2
    assert record["settings"]["channels"] == 6
    assert record["label_count"] == np.unique(np.asarray(labels)).size


@pytest.mark.usefixtures("threads")
def test_memory_and_threads(image: Path, tmp_path: Path) -> None:
    """The settings arrive: the threads are PyTorch's, and the record names the memory."""
    options = ["--memory", "lean", "--threads", "1", "--quiet"]
    assert main(["segment", str(image), "-o", str(tmp_path), *options, *FAST]) == 0
    assert torch.get_num_threads() == 1
    assert json.loads((tmp_path / "mole.json").read_text())["settings"]["memory"] == "lean"


def test_an_earlier_result_is_not_lost(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "mole_mask.png"
    kept.write_text("mine")
    fails(capsys, ["segment", str(image), "-o", str(tmp_path), *FAST], str(kept), "--overwrite")
    assert kept.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [kept]
    assert main(["segment", str(image), "-o", str(tmp_path), "--overwrite", "--quiet", *FAST]) == 0
    assert Image.open(kept).size == (75, 60)


def _text(path: Path) -> None:
    path.write_text("no image")


def _empty(path: Path) -> None:
    path.touch()


def _folder(path: Path) -> None:
    path.mkdir()


def _truncated(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (80, 80, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


def _bomb(path: Path) -> None:
    """A header that promises 30000 x 30000 pixels."""
    Image.new("L", (40, 40)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (30000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(data))


def _small(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 90), dtype=np.uint8)).save(path)


def _constant(path: Path) -> None:
    Image.new("RGB", (64, 64), (10, 20, 30)).save(path)


BAD = {
    "missing": (None, "No such file"),
    "folder": (_folder, "folder"),
    "empty": (_empty, "empty"),
    "truncated": (_truncated, "truncated"),
    "text": (_text, "not an image"),
    "bomb": (_bomb, "pixels"),
    "small": (_small, "33"),
    "constant": (_constant, "all pixels are equal"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, word = BAD[kind]
    path = tmp_path / "bad.png"
    if make is not None:
        make(path)
    out = tmp_path / "out"
    fails(capsys, ["segment", str(path), "-o", str(out), *FAST], "bad.png", word)
    assert not out.exists()


def test_a_float_image_out_of_range_or_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("high", 3.0), ("nan", np.nan), ("inf", np.inf)):
        pixels = np.random.default_rng(0).random((40, 40)).astype(np.float32)
        pixels[3, 4] = value
        path = tmp_path / f"{name}.tiff"
        Image.fromarray(pixels).save(path)
        fails(capsys, ["segment", str(path), "-o", str(tmp_path / "out"), *FAST], path.name)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        fails(capsys, ["segment", str(image), "-o", str(bad), *FAST], str(bad))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--rule", "kidney"], "lesion"),
        (["--size", "20"], "33"),
        (["--device", "toaster"], "toaster"),
        (["--backend", "cuda"], "reference"),
        (["--max-iterations", "0"], "max_iterations"),
        (["--memory", "tiny"], "lean"),
        (["--capture", "perhaps"], "always"),
        (["--threads", "0"], "threads"),
    ],
)
def test_a_bad_option(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], word: str
) -> None:
    fails(capsys, ["segment", str(image), "-o", str(tmp_path), *FAST, *options], word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_a_capture_that_cannot_be(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["segment", str(image), "-o", str(tmp_path), *FAST, "--capture", "always"], "CUDA or HIP")
    assert list(tmp_path.iterdir()) == []


def test_divergence_is_exit_1(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["segment", str(image), "-o", str(tmp_path), *FAST, "--learning-rate", "1e30"]
    fails(capsys, command, "iteration", "learning rate", code=1)
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_names_the_remedy(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1000000000000 bytes")

    monkeypatch.setattr("msformer_fast.segmentation.segment", allocate)
    fails(capsys, ["segment", str(image), "-o", str(tmp_path), *FAST], "memory", "--size")


def test_an_illegal_access_is_not_taken_for_too_little_memory(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("msformer_fast.segmentation.segment", crash)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        main(["segment", str(image), "-o", str(tmp_path), *FAST])


def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for seed in range(2):
        picture, truth = phantom.lesion((50, 50), seed=seed)
        write_png(tmp_path / "images" / f"{seed}.png", (picture * 255).astype(np.uint8))
        write_png(tmp_path / "masks" / f"{seed}_segmentation.png", truth)
    folder = tmp_path / "out"
    command = ["evaluate", str(tmp_path / "images"), str(tmp_path / "masks"), "-o", str(folder), *FAST]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "oracle (sees the truth)" in text
    assert "blind (no truth)" in text
    with open(folder / "evaluation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["0.png", "1.png"]
    summary = json.loads((folder / "evaluation.json").read_text())["summary"]
    for protocol in ("oracle", "blind"):
        mean = np.mean([float(row[f"{protocol}_dice"]) for row in rows])
        assert summary[protocol]["dice"] == pytest.approx(mean)
    assert (folder / "1_overlay.png").exists()

    fails(capsys, command, "--overwrite")
    write_png(tmp_path / "masks" / "1_segmentation.png", np.ones((49, 50), dtype=bool))
    fails(capsys, [*command, "--overwrite"], "1_segmentation.png", "49", "50")
    (tmp_path / "masks" / "1_segmentation.png").unlink()
    fails(capsys, [*command, "--overwrite"], "1.png", "no mask")
    (tmp_path / "images" / "0.png").unlink()
    (tmp_path / "images" / "1.png").unlink()
    fails(capsys, command, "no image")
    fails(capsys, ["evaluate", str(tmp_path / "none"), str(tmp_path / "masks")], "no such folder")


@pytest.mark.parametrize("kind", ["lesion", "chest"])
def test_demo(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--kind", kind, "-o", str(tmp_path / "demo"), *FAST]) == 0
    assert "Dice of the mask" in capsys.readouterr().out
    panel = Image.open(tmp_path / "demo" / f"phantom_{kind}_panel.png")
    assert panel.size[0] > 3 * 49 - 1
    assert (tmp_path / "demo" / f"phantom_{kind}_truth.png").exists()


def test_parity_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(GOLDEN / "dim8_img65.npz")]) == 0
    assert "0 beyond the bound" in capsys.readouterr().out
    with np.load(GOLDEN / "dim8_img65.npz") as archive:
        recorded = {name: archive[name].copy() for name in archive.files}
    recorded["logits"] *= 1.001
    np.savez(tmp_path / "run.npz", **recorded)
    assert main(["parity", str(tmp_path / "run.npz")]) == 1
    assert "BEYOND" in capsys.readouterr().out
    fails(capsys, ["parity", str(tmp_path / "none.npz")], "none.npz")


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "backends on cpu" in capsys.readouterr().out


def test_as_a_program_it_is_quiet_when_piped(image: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "msformer_fast", "segment", str(image), "-o", str(tmp_path), "--quiet", *FAST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 4
    usage = subprocess.run([*command[:3], "paint"], capture_output=True, text=True, timeout=60)
    assert usage.returncode == 2
    assert "Traceback" not in usage.stderr
