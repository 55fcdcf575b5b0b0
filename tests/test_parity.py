"""The network against recorded runs of the authors' code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from msformer_fast.errors import InputError
from msformer_fast.parity import compare

from .conftest import DATA, GOLDEN

RECORDS = sorted({path.name: path for folder in (DATA / "golden", GOLDEN) for path in folder.glob("*.npz")}.items())


@pytest.mark.parametrize("record", [path for _, path in RECORDS], ids=[name for name, _ in RECORDS])
def test_float64_equals_the_authors(record: Path) -> None:
    rows = compare(record, dtype=torch.float64)
    assert len(rows) > 60
    assert {row.name for row in rows} >= {"logits", "attention", "context_fine", "labels_after (share)"}
    assert [row for row in rows if not row.passed] == []


def test_float32_stays_close() -> None:
    rows = compare(GOLDEN / "dim8_img65.npz", dtype=torch.float32)
    assert [row for row in rows if not row.passed] == []


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    """The comparison can fail: one parameter off by 1e-6 shows far beyond the bound."""
    with np.load(GOLDEN / "dim8_img65.npz") as archive:
        recorded = {name: archive[name].copy() for name in archive.files}
    recorded["param/block_s.0.attn.values.weight"][0, 0] += 1e-6
    np.savez(tmp_path / "changed.npz", **recorded)
    failed = [row.name for row in compare(tmp_path / "changed.npz") if not row.passed]
    assert "logits" in failed
    assert "context_fine" in failed


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04 broken"])
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.npz"):
        compare(path)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "run.npz", meta=np.zeros(6))
    with pytest.raises(InputError, match="logits"):
        compare(tmp_path / "run.npz")
