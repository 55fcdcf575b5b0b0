"""The search for the first launch that differs, on a recording in which one was changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from tests.harness.first_difference import compare, launched

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="compares with the interpreter")

CALL = {"op": "stability_loss", "variant": "tiny", "dtype": "float32", "seed": 3, "target": "sm_90"}


def test_the_launch_that_was_changed_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call, file = CALL | {"multiprocessors": 4}, tmp_path / "launches.pt"
    launches, results = launched(call)
    torch.save({"call": call, "launches": launches, "results": results}, file)
    compare(file)
    text = capsys.readouterr().out
    assert "first above 0.001: none" in text
    assert {"output 0", "gradient of queries", "gradient of keys"} <= {line[:34].strip() for line in text.splitlines()}

    kernel, written = launches[2]
    name = next(iter(written))
    written[name].view(-1)[0] += 1
    torch.save({"call": call, "launches": launches, "results": results}, file)
    compare(file)
    assert f"first above 0.001: {kernel}, launch 3, argument {name}: " in capsys.readouterr().out


def test_other_launches_are_said_to_be_others(tmp_path: Path) -> None:
    call, file = CALL | {"multiprocessors": 4}, tmp_path / "launches.pt"
    torch.save({"call": call, "launches": [("another_kernel", {})], "results": {}}, file)
    with pytest.raises(SystemExit, match=r"other kernels were launched: \['another_kernel'\]"):
        compare(file)
