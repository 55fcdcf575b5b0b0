"""Presets: what they set, what counts before them, and that Python and the command line agree."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msformer_fast import InputError, phantom, segment, segment_cohort
from msformer_fast.cli import _parser, main
from msformer_fast.images import write_png
from msformer_fast.options import apply_preset, settings_of
from msformer_fast.presets import DEFAULT, PRESETS, Preset, preset, preset_name


def settings(*words: str) -> dict[str, Any]:
    arguments = _parser().parse_args(["segment", "x.png", *words])
    apply_preset(arguments)
    return settings_of(arguments)


def test_options_count_before_the_preset() -> None:
    names = Preset._fields
    for name, each in PRESETS.items():
        assert tuple(settings("--preset", name)[key] for key in names) == each
    assert settings() == settings("--preset", DEFAULT)
    given = settings("--preset", "paper", "--size", "65", "--patience", "3")
    assert tuple(given[key] for key in names) == (65, 50, 3, "highest")
    assert settings("--patience", "never")["patience"] is None
    assert settings("--max-iterations", "9", "--preset", "quick")["max_iterations"] == 9
    assert settings()["precision"] == "high" and settings("--precision", "highest")["precision"] == "highest"


def test_python_has_the_same_defaults() -> None:
    for function in (segment, segment_cohort):
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in PRESETS[DEFAULT]._fields} == PRESETS[DEFAULT]._asdict()


def test_names() -> None:
    assert [preset_name(each._asdict()) for each in PRESETS.values()] == list(PRESETS)
    assert preset_name({**PRESETS["quick"]._asdict(), "size": 97}) == "quick, but size 97"
    assert preset_name({**PRESETS["quick"]._asdict(), "precision": None}) == "quick, but precision None"
    with pytest.raises(InputError, match="preset: got 'fast'; accepted is one of paper, quick"):
        preset("fast")


def test_the_record_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "mole.png", (phantom.lesion((60, 75), seed=1)[0] * 255).astype(np.uint8))
    words = "--size 49 --channels 6 --clusters 8 --depth 1 --quiet --threads 1 --device cpu".split()  # noqa: SIM905
    command = ["segment", str(tmp_path / "mole.png"), "-o", str(tmp_path / "out"), *words]
    assert main(command) == 0
    record = json.loads((tmp_path / "out" / "mole.json").read_text())
    assert record["settings"]["preset"] == "quick, but size 49" and record["settings"]["patience"] == 3
    assert main([*command, "--preset", "best"]) == 2
    assert "preset: got 'best'" in capsys.readouterr().err
