"""Results of a card, made up, on their way into a folder and into the pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msformer_fast.benchmarks import lay_results
from msformer_fast.benchmarks.gpu_tables import NOT_MEASURED
from msformer_fast.errors import InputError
from tests.bench.made_up import CARD, candidate, units
from tests.conftest import ROOT

PAGE = (
    "before\n<!-- gpu:whole -->\nold\n<!-- /gpu:whole -->\nbetween\n<!-- gpu:tuning -->\n<!-- /gpu:tuning -->\nafter\n"
)


def written(path: Path, found: dict[str, dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in found.values()))
    return path


def test_the_pages_say_what_the_folders_hold() -> None:
    """Nothing in them is typed: drawn again they stay as they are."""
    for name in lay_results.PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        assert lay_results.redrawn(page, lay_results.cards()) == page, f"{name}: run benchmarks/lay_results.py"


def test_without_results_a_page_says_so() -> None:
    drawn = lay_results.redrawn(PAGE, {})
    assert drawn == PAGE.replace("old", NOT_MEASURED).replace(
        "<!-- gpu:tuning -->\n", f"<!-- gpu:tuning -->\n{NOT_MEASURED}\n"
    )
    with pytest.raises(InputError, match="gpu:nonsense: no such part; there are checks, whole, ops, tuning"):
        lay_results.redrawn("<!-- gpu:nonsense -->\n<!-- /gpu:nonsense -->", {})


def test_lines_go_into_the_folder_of_their_card_and_tables_out_of_it(tmp_path: Path) -> None:
    (folder,) = lay_results.lay([written(tmp_path / "a.jsonl", units())], tmp_path)
    assert folder == tmp_path / "benchmarks" / "results" / "Made-up-GPU-80GB"
    found = lay_results.cards(tmp_path)
    drawn = lay_results.redrawn(PAGE, found)
    assert f"{CARD}, torch 2.11.0, triton 3.6.0:" in drawn and NOT_MEASURED not in drawn
    line = (
        "| step 257, float32 | 20.0 | 4.00 (5.00, 5.00 to 5.00) | - | - | 2.00 (10.00, 10.00 to 10.00) | - | 10.0 (2.00"
    )
    assert line in drawn
    assert "| step 257, tf32 | 20.0 | 4.00 (5.00, 5.00 to 5.00) | - | - | - | - |" in drawn
    better = "| `mix_ffn` hidden, ieee | (8, 8, 64, 16, 8, 1) | (4, 8, 64, 16, 8, 2) | 1.25 (1.23 to 1.27) | faster |"
    row = "(32, 128, 0, 32, 8)"
    noise = f"| `efficient_attention` keys, ieee | {row} | {row}, 2 stages | 1.02 (1.00 to 1.04) | within noise |"
    assert better in drawn and noise in drawn
    assert lay_results.redrawn(drawn, found) == drawn
    others = lay_results.redrawn(
        "<!-- gpu:ops -->\n<!-- /gpu:ops -->\n<!-- gpu:checks -->\n<!-- /gpu:checks -->", found
    )
    assert "| `mix_ffn`, float32 | 9.00 | 3.00 (3.00, 3.00 to 3.00) | 7 % | einsum 9.00 | 6 |" in others
    assert "| `mix_ffn` | 2.0e-06 of 2.0e-05 | - | - | - |" in others


def test_what_was_faster_is_proposed_where_it_would_stand(tmp_path: Path) -> None:
    found = units()
    keys = found["tune/efficient_attention/keys/float32"]["found"]
    keys["candidates"] = [candidate(1.5, True, [32, 128, 0, 32, 8], stages=2), candidate(1.6, False, [1, 1, 1, 1, 1])]
    (folder,) = lay_results.lay([written(tmp_path / "a.jsonl", found)], tmp_path)
    assert (folder / "proposed_rows.txt").read_text() == (
        "--- kernels/efficient_attention_table.py, TABLE['keys', 'ieee']\n"
        "# 1.50 times faster (1.48 to 1.52): backward of mix_ffn: side 257, float32\n"
        '+    num_stages=2 for ("sm_90", 128), where the launcher says 1\n'
        "\n"
        "--- kernels/mix_ffn.py, TABLE['hidden', 'ieee']\n"
        "# 1.25 times faster (1.23 to 1.27): backward of mix_ffn: side 257, float32\n"
        "-    now (8, 8, 64, 16, 8, 1)\n"
        '+    ("sm_90", 128): (4, 8, 64, 16, 8, 2),\n'
    )
    for unit in found.values():
        unit.pop("found", None)
    assert lay_results.proposals(found) == "No candidate was faster by more than the rounds spread.\n"


def test_what_another_code_found_is_no_figure_of_this_one(tmp_path: Path) -> None:
    """Two calls of one code come together; an older code's lines go, in whichever order they are laid."""
    old, new = units("old", 1.0), units("new", 2.0)
    first = {name: line for name, line in new.items() if name.startswith("correct/")}
    second = {name: line for name, line in new.items() if name.startswith("rows/")}
    for order in ((old, first, second), (second, old, first)):
        for number, found in enumerate(order):
            (folder,) = lay_results.lay([written(tmp_path / f"{number}.jsonl", found)], tmp_path)
        lines = lay_results.cards(tmp_path)[folder.name]
        assert set(lines) == {*first, *second} and {line["code"] for line in lines.values()} == {"new"}
        (folder / "units.jsonl").unlink()


def test_a_dry_run_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing.jsonl: not there"):
        lay_results.lay([tmp_path / "missing.jsonl"], tmp_path)
    dry = {name: {**line, "dry_run": True} for name, line in units().items()}
    with pytest.raises(InputError, match="holds no piece that a card has done"):
        lay_results.lay([written(tmp_path / "dry.jsonl", dry)], tmp_path)
    assert not (tmp_path / "benchmarks").exists()
